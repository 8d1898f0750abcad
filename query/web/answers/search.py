"""Search: units, layers, classes, files."""

from __future__ import annotations

import difflib

from query.web import address
from query.web.answers.panel import Answer
from query.web.site import Site
from store.unit_name import is_unit_name, parse_unit_name

EACH, NEAR = 12, 6


def search_page(site: Site, asked: str, run_name: str = "") -> Answer:
    """Return what a text finds in every run. `jump` is the address of a unit that the text names, or empty."""
    asked = asked.strip()[:200]
    found: list[Answer] = []
    near: list[Answer] = []
    jump = ""
    for name, dense in site.scope.records.items():
        run = dense.run
        if asked and is_unit_name(asked):
            unit = parse_unit_name(asked)
            layer = run.by_name.get(unit.layer)
            if layer and unit.channel < layer.channels and unit.model in ("", run.model):
                jump = jump if jump and name != run_name else address.unit(name, unit.layer, unit.channel)
        lower = asked.casefold().rpartition(":")[0] if is_unit_name(asked) else asked.casefold()
        if not lower:
            continue
        layers = [one.name for one in run.layers if lower in one.name.casefold()]
        found += [_hit("layer", name, one, address.layer(name, one)) for one in layers[:EACH]]
        classes = [
            c for c in run.classes if lower in c.label.casefold() or lower == (c.synset or "") or lower == str(c.index)
        ]
        found += [_hit("class", name, c.label, address.of_class(name, c.index)) for c in classes[:EACH]]
        paths = run.rows(
            "images", "image_id, path", "contains(lower(path), ?) AND status = 'accepted'", [lower],
            f"ORDER BY image_id LIMIT {EACH}",
        ).to_pylist()  # fmt: skip
        found += [_hit("photograph", name, one["path"], address.image(name, one["image_id"])) for one in paths]
        if not layers and not classes and not paths:
            near += _near(name, dense.run.by_name, [(c.label, c.index) for c in run.classes], lower)
    return {"page": "search", "q": asked, "run": run_name, "jump": jump, "hits": found, "near": [] if found else near}


def _near(name: str, layers: object, classes: list[tuple[str, int]], text: str) -> list[Answer]:
    names = list(layers) if isinstance(layers, dict) else []
    by_label = {label.casefold(): (label, index) for label, index in classes}
    close = difflib.get_close_matches(text, names, NEAR, 0.4)
    hits = [_hit("layer", name, one, address.layer(name, one)) for one in close]
    for one in difflib.get_close_matches(text, list(by_label), NEAR, 0.5):
        label, index = by_label[one]
        hits.append(_hit("class", name, label, address.of_class(name, index)))
    return hits


def _hit(kind: str, run: str, name: str, href: str) -> Answer:
    return {"kind": kind, "run": run, "name": name, "href": href}
