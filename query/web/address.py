"""Where things are on the page. Addresses are folders; `-` begins what is no object of a store (docs/page.md)."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlencode

_SAFE = "@.-_~:,"  # besides letters and digits


def path(*parts: object) -> str:
    """Return the address of a folder: /a/b/. Each part is quoted, so that a name cannot become two."""
    return "/" + "".join(f"{_part(part)}/" for part in parts)


def file(*parts: object) -> str:
    """Return the address of a file: /a/b."""
    return path(*parts)[:-1]


def with_query(address: str, /, **query: object) -> str:
    """Return an address with a query string; values that are empty or None are left out."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{address}?{urlencode(given)}" if given else address


def _part(part: object) -> str:
    text = quote(str(part), safe=_SAFE)
    return {"": "%00", ".": "%2E", "..": "%2E%2E"}.get(text, text)  # a browser would resolve dots


def run(name: str) -> str:
    return path(name)


def layer(run_name: str, layer_name: str) -> str:
    return path(run_name, layer_name)


def unit(run_name: str, layer_name: str, channel: int) -> str:
    return path(run_name, layer_name, channel)


def image(run_name: str, image_id: int) -> str:
    return path(run_name, "-", "image", image_id)


def of_class(run_name: str, class_index: int) -> str:
    return path(run_name, "-", "class", class_index)


def drop(run_name: str, sha256: str) -> str:
    return path(run_name, "-", "drop", sha256)


def photograph(run_name: str, picture: int | str) -> str:
    """Return the address of a picture as the network saw it: of an image_id, or of a dropped one's SHA-256."""
    return file(run_name, "-", "photograph", f"{picture}.jpg")


def visualization(run_name: str, row: Mapping[str, object]) -> str:
    """Return the address of a feature visualization, by its row of the table `visualizations`."""
    name = f"{row['kind']}.{row['direction']}.{row['repeat']}.webp"
    return file(run_name, row["layer"], row["channel"], "-", "visualization", name)


def tile(run_name: str, layer_name: str, number: int) -> str:
    """Return the address of the tile with 64 units of a layer, from unit 64 * number on."""
    return file(run_name, layer_name, "-", "tiles", f"{number}.jpg")


def thumbnail(run_name: str, layer_name: str, channel: int) -> str:
    """Return the address of one unit's small picture: the same as in its tile."""
    return file(run_name, layer_name, channel, "-", "thumbnail.jpg")


def stored_map(run_name: str, layer_name: str, channel: int, rank: int) -> str:
    """Return the address of a unit's stored activation map on its example of this rank, from 1."""
    return file(run_name, layer_name, channel, "-", "maps", f"{rank}.png")


def live_map(run_name: str, picture: int | str, layer_name: str, channel: int) -> str:
    """Return the address of a unit's activation map on any picture, for which the model runs."""
    return file(run_name, "-", "map", picture, layer_name, f"{channel}.png")
