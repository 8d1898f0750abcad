"""What is worth keeping from one process to the next, in the user's cache. All of it may be deleted at any time."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from store import regular_file

_MOST = 1 << 26  # bytes of one file


def folder(name: str) -> Path:
    """Return the folder of one kind of finding: unitscope/NAME in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unitscope" / name


def read(path: Path) -> dict[str, Any]:
    """Return the object that a file keeps, or {} if there is none or it cannot be read."""
    try:
        kept = json.loads(regular_file.read(path, _MOST))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def write(path: Path, body: dict[str, Any]) -> None:
    """Keep an object in a file, replaced as a whole, if the folder can be written."""
    write_bytes(path, json.dumps(body).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Keep bytes in a file, replaced as a whole, if the folder can be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                file.write(data)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
