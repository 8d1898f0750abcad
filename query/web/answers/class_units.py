"""One class: its photographs, the units that tell it, and what the network takes it for."""

from __future__ import annotations

from typing import Any

from query.questions.class_units import units_for_class
from query.record.dense import Dense
from query.record.run_tables import DatasetClass
from query.web.answers import facts
from query.web.answers.panel import Answer, Lines, objects, panel, text

EACH, PHOTOGRAPHS, CONFUSIONS = 6, 24, 10


def class_page(dense: Dense, of_class: DatasetClass) -> Answer:
    run, lines = dense.run, Lines(dense.run)
    places = [known.index for known in run.classes]
    place = places.index(of_class.index)
    before, after = facts.previous_and_next(place, len(places))
    images = run.images.of_class(of_class.index)
    return {
        "page": "class",
        **facts.of_run(run),
        "class_index": of_class.index,
        "synset": of_class.synset,
        "label": of_class.label,
        "images": len(images),
        "previous": None if before is None else places[before],
        "next": None if after is None else places[after],
        "panels": {
            "photographs": _photographs(dense, of_class, lines),
            "units": _units(dense, of_class, lines),
            "confusions": _confusions(dense, of_class, lines),
        },
    }


def _photographs(dense: Dense, of_class: DatasetClass, lines: Lines) -> Answer:
    run = dense.run
    ids = run.images.of_class(of_class.index)[:PHOTOGRAPHS]
    paths = run.image_rows(ids, "path")["path"].to_pylist()
    rows = [{"image_id": int(i), "path": path} for i, path in zip(ids, paths, strict=True)]
    several = f"dataset = {text(run.dataset)} AND " if len(run.catalog.datasets) > 1 else ""
    sql = (
        "SELECT image_id, path FROM images\n"
        f"WHERE {several}class_index = {of_class.index} AND status = 'accepted'\n"
        f"ORDER BY image_id LIMIT {PHOTOGRAPHS}"
    )
    return panel("Photographs", f"The first {len(rows)} of the class.", rows, sql)


def _units(dense: Dense, of_class: DatasetClass, lines: Lines) -> Answer:
    run = dense.run
    rows: list[dict[str, Any]] = []
    if run.has("class_stats_by_class"):
        frame = units_for_class(run, of_class, None, None)
        order = {layer.name: layer.index for layer in run.layers}
        frame = frame.assign(place=frame["layer"].map(order)).groupby("place", sort=True).head(EACH)
        rows = objects(frame.sort_values(["place", "rank"]).drop(columns="place"))
    sql = (
        f"SELECT c.* FROM units_for_class('{of_class.index}', {run.units}{lines.chosen}) c\n"
        f"JOIN layers l ON l.model = c.model AND l.layer = c.layer AND l.dataset = {text(run.dataset)}\n"
        f"QUALIFY row_number() OVER (PARTITION BY c.layer ORDER BY c.rank) <= {EACH}\nORDER BY l.layer_index, c.rank"
    )
    known = any(row["auc"] is not None for row in rows)
    about = (
        "The units of each layer that tell it best: auc is the chance that a photograph of the class fires the unit "
        "more than another does."
        if known
        else "By z of the class mean: auc needs ten photographs of a class, and this one has fewer."
    )
    return panel("Units that tell it", about, rows, sql, lines.call("units_for_class", str(of_class.index)))


def _confusions(dense: Dense, of_class: DatasetClass, lines: Lines) -> Answer:
    run = dense.run
    sql = (
        "SELECT p.class_index, p.label, count(*) AS images, avg(p.probability) AS mean_probability\n"
        "FROM predictions p JOIN images i USING (dataset, image_id)\n"
        f"{lines.where(f'i.class_index = {of_class.index}', 'p.rank = 1', alias='p')}\n"
        f"GROUP BY p.class_index, p.label ORDER BY images DESC, p.class_index LIMIT {CONFUSIONS}"
    )
    rows: list[dict[str, Any]] = []
    if run.has("predictions"):
        run.catalog.intact.require([*run.catalog.table("predictions"), *run.catalog.table("images")])
        rows = objects(run.database.table(sql).to_pandas())
    return panel("What the network says of them", "Its likeliest class of each photograph of the class.", rows, sql)
