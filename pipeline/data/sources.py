"""Opens a source of pictures: `folder:PATH`, `webdataset:PATTERN`, `parquet:PATTERN` or `package:demo`."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.data.folder import DemoSource, FolderSource
from pipeline.data.parquet import ParquetSource
from pipeline.data.source import Source
from pipeline.data.webdataset import WebDatasetSource
from store.errors import UsageError


def open_source(text: str, name: str = "") -> Source:
    """Open a source by its text in a config. No file is read yet. Raises UsageError if the text is of no known form.

    `name` is the dataset's name; if it is empty, the name is made from the path.
    """
    kind, _, rest = text.partition(":")
    if text == "package:demo":
        return DemoSource(name or "demo")
    if rest and kind == "folder":
        return FolderSource(text, rest, name or _slug(Path(rest).resolve().name))
    if rest and kind in ("webdataset", "parquet"):
        stem = Path(rest).name.partition(".")[0]
        name = name or _slug(re.sub(r"[-_]*[*?{\[].*$", "", stem) or Path(rest).resolve().parent.name)
        return WebDatasetSource(text, rest, name) if kind == "webdataset" else ParquetSource(text, rest, name)
    raise UsageError(
        f"dataset source {text!r}: expected folder:PATH, webdataset:PATTERN, parquet:PATTERN or package:demo"
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "images"
