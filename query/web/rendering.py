"""Answers as HTML."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from query import live
from query.record.dense import Dense
from query.web import address, pictures
from query.web.answers.facts import trust
from query.web.answers.panel import Answer
from query.web.site import Site
from query.web.static_files import version
from store.errors import UsageError

# What the words of the page mean, shown where they stand.
TERMS = {
    "tail_p": "The share of pictures that fire this unit at least as much.",
    "z": "How many standard deviations the value lies above the unit's average.",
    "auc": "The chance that a photograph of the class fires the unit more than another photograph does; 0.5 is chance.",
    "selectivity": "(mean of the best class - mean of the others) / their sum; 1: fires for one class only.",
    "unit": "One channel of one layer.",
    "dead": "It never fires on any of the pictures.",
    "always on": "It is above zero at 99 % of all positions or more.",
    "clipped": "Its largest value is at the activation's upper bound on half of the pictures or more.",
    "receptive field": "The part of the picture that one position of the layer's map can see.",
    "signed": "Values of this layer can be negative.",
    "correlation": "Of the two units' largest values on each picture: 1 means that they rise and fall together.",
}


class Pages:
    """Make HTML of answers."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._environment = Environment(
            loader=PackageLoader("query.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, auto_reload=False,
        )  # fmt: skip
        self._environment.filters |= {"number": number, "share": share, "thousands": thousands, "tail": tail}
        self._environment.filters["grouped"] = grouped
        self._environment.globals |= {
            "address": address, "terms": TERMS, "trust": trust, "version": version(),
            "grid": grid,
        }  # fmt: skip

    def html(self, template: str, answer: Answer, path: str) -> str:
        run = str(answer.get("run") or "")
        return self._environment.get_template(template).render(
            a={"run": run} | answer, panels=answer.get("panels", {}), path=path, state=self.state(run),
            runs=list(self._site.scope.records), photo=self.photographs(run), state_of=self.state,
        )  # fmt: skip

    def error(self, status: int, text: str, path: str) -> str:
        return self._environment.get_template("error.html").render(
            a={"page": "error", "run": "", "status": status, "text": text}, panels={}, path=path, state="",
            runs=list(self._site.scope.records), photo=self.photographs(""), state_of=self.state,
        )  # fmt: skip

    def state(self, run: str) -> str:
        """Return what addresses of pictures end with: they change when the run does."""
        records = self._site.scope.records
        return f"?v={records[run].run.files.digest[:12]}-{pictures.FORMAT}" if run in records else ""

    def photographs(self, run: str) -> Any:
        """Return a function from an image_id to the address of its photograph, or "" where there is none to show."""
        records = self._site.scope.records
        if run not in records:
            return lambda _: ""
        dense = records[run]
        known = dense.remember("kept pictures", lambda: frozenset(dense.kept_pictures[0].tolist()))
        at_hand = files_at_hand(dense)

        def photo(image_id: int) -> str:
            shown = image_id in known or at_hand
            return address.photograph(run, image_id) + self.state(run) if shown else ""

        return photo


def files_at_hand(dense: Dense) -> bool:
    """Return whether the dataset's own files can be read here, as the first picture shows."""

    def readable() -> bool:
        try:
            return live.dataset_picture(dense.run, int(dense.run.images.all[0])) is not None
        except UsageError:
            return False

    return dense.remember("files at hand", readable)


EAGER = 24  # units of a grid whose pictures are asked for before the page is laid out


def grid(rows: Sequence[Answer], sort: str, state: str) -> Markup:
    """Return the units of a layer as links with their part of a tile. A template would take ten times as long."""
    return Markup("\n").join(_in_grid(row, sort, state, place >= EAGER) for place, row in enumerate(rows))


def _in_grid(row: Answer, sort: str, state: str, lazy: bool) -> Markup:
    channel = row["channel"]
    if row["state"] == "dead":
        shown = '<span class="cell dead">never fired</span>'
    else:
        down, across = divmod(channel % pictures.UNITS, pictures.ACROSS)
        source = f"-/tiles/{channel // pictures.UNITS}.jpg{escape(state)}"
        later = ' loading="lazy"' if lazy else ""
        img = f'<img src="{source}" alt="unit {channel}"{later} decoding="async">'
        shown = f'<span class="cell c{across} r{down}">{img}</span>'
    value = row["state"] if sort == "channel" and row["state"] != "dead" else ""
    if sort != "channel" and row.get(sort) is not None:
        value = {"tail_p": tail, "fraction_active": share, "trust": _times}.get(sort, number)(row[sort])
    beside = f"<i>{escape(value)}</i>" if value else ""
    return Markup(f'<a class="unit" href="{channel}/">{shown}<span class="cap">{channel}{beside}</span></a>')


def _times(value: Any) -> str:
    return f"{number(value, 2)}×"


def grouped(rows: Sequence[Answer], key: str) -> list[tuple[Any, list[Answer]]]:
    """Return neighbouring rows that have the same value of `key` together, in their order."""
    return [(value, list(group)) for value, group in itertools.groupby(rows, lambda row: row[key])]


def number(value: Any, digits: int = 3) -> str:
    """Format a number for reading: some significant digits, thousands apart, a dash if it is not known."""
    if value is None or isinstance(value, str) or math.isnan(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(abs(value))))
    return f"{value:,.{max(digits - whole, 0)}f}" if abs(value) >= 1 else f"{value:.{digits}g}"


def thousands(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def share(value: Any) -> str:
    """Format a share as per cent."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.3g} %"


def tail(value: Any) -> str:
    """Format a tail probability: one picture in so many."""
    if value is None or math.isnan(value):
        return "–"
    return f"1 in {1 / value:,.0f}" if value <= 0.2 else f"{100 * value:.0f} %"
