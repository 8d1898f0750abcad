"""Styles, scripts and the font of the page: a fixed list of files, under an address that changes with them."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from query.web.errors import not_found

FOLDER = Path(__file__).parent / "static"
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}


@functools.cache
def _files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in _KINDS}


def static_file(name: str) -> tuple[bytes, str]:
    """Return a file and its media type. Raises PageError for any name that is not on the list."""
    if name not in _files():
        raise not_found("there is no such file")
    return _files()[name], _KINDS[Path(name).suffix]


@functools.cache
def version() -> str:
    """Return a digest of all files."""
    return hashlib.sha256(b"\0".join(_files().values())).hexdigest()[:12]
