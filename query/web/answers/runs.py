"""The runs of a store: the first page."""

from __future__ import annotations

from query.record.dense import Dense
from query.web import pictures
from query.web.answers import facts
from query.web.answers.panel import Answer, panel
from query.web.site import Site
from store import layout

_COLUMNS = "run, model, dataset, fingerprint"
STRIP = 8  # units that stand for a run


def runs_page(site: Site) -> Answer:
    """Return the first page: every run that has begun, with what is missing and how to get it."""
    scope = site.scope
    progress, records = ({} if site.trouble else site.progress()), scope.records
    files = {one.name: one for one in scope.catalog.runs}
    rows = [
        {
            "run": name,
            "model": name.partition("@")[0],
            "dataset": name.partition("@")[2],
            "digest": files[name].digest if name in files else "",
            **_of_open(records.get(name)),
            "stages": [vars(stage) for stage in stages],
            "missing": [stage.name for stage in stages if not stage.complete],
        }
        for name, stages in progress.items()
    ]
    sql = "SELECT run, model, dataset, fingerprint FROM runs ORDER BY run"
    table = [row for _, dense in sorted(records.items()) for row in dense.run.rows("runs", _COLUMNS).to_pylist()]
    return {
        "page": "runs",
        "config": f"{site.root}/{layout.EXPLORED}" if (site.root / layout.EXPLORED).is_file() else "CONFIG",
        "root": str(site.root),
        "store": site.root.resolve().name,
        "trouble": site.trouble,
        "runs": rows,
        "panels": {"runs": panel("Runs", "", table, sql if records else "")},
    }


def _of_open(dense: Dense | None) -> Answer:
    """Return what is known of a run that has folded; of others it is None."""
    if dense is None:
        return {"open": False, "units": None, "layers": None, "n": None, "strip": []}
    run = dense.run
    return {"open": True, "units": run.units, "layers": len(run.layers), "n": run.n, "strip": strip(dense)}


def strip(dense: Dense) -> list[Answer]:
    """Return a few units that stand for a run: rendered ones of layers from early to late."""
    run = dense.run
    chosen = [layer for layer in run.layers if layer.spatial] or list(run.layers)
    shown = [layer for layer in chosen if pictures.visualizations(dense, layer)] or chosen
    units: list[Answer] = []
    for number in range(STRIP):
        layer = shown[number * len(shown) // STRIP]
        states = facts.states(run, layer)
        channels = sorted(pictures.visualizations(dense, layer)) or [
            c for c in range(layer.channels) if c not in states
        ]
        taken = {unit["channel"] for unit in units if unit["layer"] == layer.name}
        free = [c for c in channels if c not in taken]
        if free:
            units.append({"layer": layer.name, "channel": free[0]})
    return units
