"""All units of one layer, sorted and filtered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from query import resolve
from query.questions.unit_states import ALWAYS_ON, CLIPPED
from query.record.dense import Dense
from query.record.run_tables import Layer, Run
from query.web import pictures
from query.web.answers import facts
from query.web.answers.panel import Answer, Lines, panel, text
from query.web.answers.unit import neighbours
from store import layout

SORTS = {
    "channel": "channel",
    "maximum": "largest value",
    "max_mean": "mean of the largest values",
    "fraction_active": "share of positions above zero",
    "selectivity": "class selectivity",
    "trust": "trust in its visualization",
    "auc": "how well it tells the class named here",
    "tail_p": "rarity on the picture named here",
}
SHOWN = {
    "": "all units",
    "living": "without dead units",
    "rendered": "only rendered units",
    **{s: s for s in facts.STATES},
}
_COLUMNS = (
    "maximum", "max_mean", "fraction_active", "selectivity", "saturated", "dead", "q50", "q99",
)  # fmt: skip


def layer_page(dense: Dense, layer: Layer, query: Mapping[str, str]) -> Answer:
    """Return the page of a layer. `query` has the choices of its form: sort, show, class, image.

    Raises UsageError for a class or an image that is not there.
    """
    run = dense.run
    sort, show = query.get("sort", ""), query.get("show", "")
    of_class, image = query.get("class", "").strip(), query.get("image", "").strip()
    if sort not in SORTS or sort == "channel":
        sort = "auc" if of_class else "tail_p" if image else "channel"
    if (sort == "auc" and not of_class) or (sort == "tail_p" and not image):
        sort = "channel"
    show = show if show in SHOWN else ""
    columns, sql = _columns(dense, layer, of_class, image)
    states = facts.states(run, layer)
    order = _ordered(columns, sort)
    rows = _rows(columns, states, [channel for channel in order if _is_shown(columns, states, channel, show)])
    before, after = facts.previous_and_next(layer.index, len(run.layers))
    feeding, fed = neighbours(dense, layer)
    state_list = list(states.values())
    early = show == "rendered" and not run.has("visualizations")  # no view has what is being rendered
    return {
        "page": "layer",
        **facts.of_run(run),
        **facts.of_layer(layer),
        "previous": None if before is None else run.layers[before].name,
        "next": None if after is None else run.layers[after].name,
        "fed_by": [one.name for one in feeding],
        "feeds": [one.name for one in fed],
        "counts": {state: state_list.count(state) for state in facts.STATES},
        "rendered": int(columns["rendered"].sum()),
        "choices": {"sort": SORTS, "show": SHOWN},
        "choice": {"sort": sort, "show": show, "class": of_class, "image": image},
        "distribution": facts.counts(columns["max_mean"]),
        "panels": {"units": panel("Units", "", rows, "" if early else _sql(sql, sort, show))},
    }


def _columns(
    dense: Dense, layer: Layer, of_class: str, image: str
) -> tuple[dict[str, NDArray[Any]], tuple[str, list[str]]]:
    """Return the columns of the layer's units, and the parts of a query that gives them: FROM ... and its columns."""
    run, lines = dense.run, Lines(dense.run)
    table = run.lookup(run.only("units")).rows(("channel", *_COLUMNS), {"layer": layer.name})
    columns: dict[str, NDArray[Any]] = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    if columns["channel"].tolist() != list(range(layer.channels)):
        raise run.inconsistent(f"units does not have one row for each channel of {layer.name}")
    columns["rendered"] = _rendered(dense, layer)
    names = ["u.channel", *(f"u.{name}" for name in _COLUMNS)]
    joins = "FROM units u"
    if run.has("visualizations"):
        columns["trust"] = _trust(run, layer)
        names.append("v.value_vs_best_example AS trust")
        joins += (
            "\nLEFT JOIN visualizations v ON v.model = u.model AND v.dataset = u.dataset AND v.layer = u.layer "
            "AND v.channel = u.channel AND v.kind = 'channel' AND v.direction = 'positive' AND v.repeat = 0"
        )
    if of_class:
        found = resolve.find_class(run, of_class)
        stats = run.recorded("class_stats_by_class", layout.class_stats_by_class(run.name)).rows(
            ("channel", "auc", "mean_max"), {"class_index": found.index, "layer": layer.name}
        )
        columns["auc"] = _spread(layer, stats["channel"].to_numpy(), stats["auc"].to_numpy(zero_copy_only=False))
        names.append("s.auc")
        joins += (
            f"\nLEFT JOIN class_stats s ON s.model = u.model AND s.dataset = u.dataset AND s.layer = u.layer "
            f"AND s.channel = u.channel AND s.class_index = {found.index}"
        )
    if image:
        _, image_id = resolve.find_image([run], image, files=False)
        assert isinstance(image_id, int)
        codes = dense.image(image_id, "max")[layer.columns]
        units = np.arange(layer.start, layer.stop)
        columns["tail_p"] = dense.decode_tail(units, codes)
        columns["value"] = dense.decode(units, codes, "max")
        _exact(dense, layer, image_id, columns)
        names += ["i.value", "i.tail_p"]
        joins += f"\nJOIN image_row({image_id}{lines.chosen}) i ON i.layer = u.layer AND i.channel = u.channel"
    where = lines.where(f"u.layer = {text(layer.name)}", alias="u")
    return columns, (f"{joins}\n{where}", names)


def _exact(dense: Dense, layer: Layer, image_id: int, columns: dict[str, NDArray[Any]]) -> None:
    """Replace decoded values by those that the table `tail` keeps."""
    lookup = dense.run.recorded("tail_by_image", layout.tail_by_image(dense.run.name, image_id // layout.BLOCK))
    table = lookup.rows(["channel", "value", "tail_p"], {"image_id": image_id, "layer": layer.name})
    channels = table["channel"].to_numpy()
    for name in ("value", "tail_p"):
        columns[name][channels] = table[name].to_numpy()


def _rendered(dense: Dense, layer: Layer) -> NDArray[np.bool_]:
    """Return which units have a feature visualization, also one whose stage is not complete yet."""
    rendered = np.zeros(layer.channels, np.bool_)
    if dense.run.has("visualizations"):
        table = dense.run.lookup(dense.run.only("visualizations")).rows(("channel",), {"layer": layer.name})
        channels = table["channel"].to_numpy()
    else:
        channels = np.array(list(pictures.visualizations(dense, layer)), np.int64)
    rendered[channels[(channels >= 0) & (channels < layer.channels)]] = True
    return rendered


def _trust(run: Run, layer: Layer) -> NDArray[np.float32]:
    """Return the value of each unit's own visualization against its best photograph, float32 [C]; NaN if unknown."""
    key: dict[str, str | int] = {"layer": layer.name, "kind": "channel", "direction": "positive", "repeat": 0}
    table = run.lookup(run.only("visualizations")).rows(("channel", "value_vs_best_example"), key)
    return _spread(layer, table["channel"].to_numpy(), table["value_vs_best_example"].to_numpy(zero_copy_only=False))


def _spread(layer: Layer, channels: NDArray[np.int32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    whole = np.full(layer.channels, np.nan, np.float32)
    whole[channels] = values
    return whole


def _ordered(columns: dict[str, NDArray[Any]], sort: str) -> list[int]:
    """Return the channels in the order asked: numbers falling (channel and tail_p rising), unknown ones last."""
    if sort == "channel" or sort not in columns:
        return list(range(len(columns["channel"])))
    values = columns[sort].astype(np.float64)
    keys = values if sort == "tail_p" else -values
    order: list[int] = np.lexsort((columns["channel"], np.where(np.isnan(keys), np.inf, keys))).tolist()
    return order


def _is_shown(columns: dict[str, NDArray[Any]], states: Mapping[int, str], channel: int, show: str) -> bool:
    state = states.get(channel, "")
    if show == "rendered":
        return bool(columns["rendered"][channel])
    return not show or (state != "dead" if show == "living" else state == show)


def _rows(columns: dict[str, NDArray[Any]], states: Mapping[int, str], channels: list[int]) -> list[Answer]:
    """Return the units as plain rows. A number that is not known is None."""
    names = [name for name in columns if name not in ("rendered", "dead")]
    lists = [[None if value != value else value for value in columns[name][channels].tolist()] for name in names]
    rendered = columns["rendered"][channels].tolist()
    return [
        dict(zip(names, values, strict=True)) | {"state": states.get(channel, ""), "rendered": shown}
        for channel, shown, *values in zip(channels, rendered, *lists, strict=True)
    ]


def _sql(parts: tuple[str, list[str]], sort: str, show: str) -> str:
    """Return the SQL that gives the rows. It has no column `rendered`."""
    joined, names = parts
    column = {"auc": "s.auc", "tail_p": "i.tail_p", "trust": "trust"}.get(sort, f"u.{sort}")
    known = column in names or (sort == "trust" and any(name.endswith(" AS trust") for name in names))
    order = f"{column} {'' if sort == 'tail_p' else 'DESC '}NULLS LAST, u.channel" if known else "u.channel"
    if sort == "channel":
        order = "u.channel"
    on = f"u.fraction_active >= {ALWAYS_ON} AND NOT l.signed"
    state = (
        f"CASE WHEN u.dead THEN 'dead' WHEN {on} THEN 'always on' WHEN u.saturated >= {CLIPPED} THEN 'clipped' "
        "ELSE '' END AS state"
    )
    kept = {"": "", "living": " AND NOT u.dead"}
    condition = kept.get(show, f" AND state = {text(show)}")
    if show == "rendered":
        condition = (
            " AND EXISTS (FROM visualizations v WHERE v.model = u.model AND v.dataset = u.dataset "
            "AND v.layer = u.layer AND v.channel = u.channel)"
        )
    listed = ", ".join(name for name in names if name != "u.dead")
    first, _, where = joined.partition("\nWHERE")
    layers = "\nJOIN layers l ON l.model = u.model AND l.dataset = u.dataset AND l.layer = u.layer"
    return f"SELECT {listed}, {state}\n{first}{layers}\nWHERE{where}{condition}\nORDER BY {order}"
