"""The images of a job: the source's listing, the committed index, and the bytes of one image."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.data import sources
from pipeline.data.indexing import limited
from pipeline.data.source import Entry, Source
from store import layout, parquet
from store.errors import UsageError


class Dataset:
    """The images of a config's `[dataset]`.

    `source`, `name`, `entries` and `listing` need only the source; everything else needs the committed index.
    """

    def __init__(self, config: Config, root: Path) -> None:
        self._config, self._root = config.dataset, root

    @functools.cached_property
    def source(self) -> Source:
        return sources.open_source(self._config.source, self._config.name)

    @property
    def name(self) -> str:
        return self.source.name

    @functools.cached_property
    def entries(self) -> list[Entry]:
        """The images of the source that `limit` and `limit_per_class` leave."""
        return limited(self.source.entries, self._config.limit, self._config.limit_per_class)

    @functools.cached_property
    def listing(self) -> str:
        """SHA-256 of the listing of the source, for which no image is read."""
        return self.source.listing(lambda: self.entries)

    @functools.cached_property
    def images(self) -> pa.Table:
        """The dataset's index, once it is committed."""
        return parquet.read(self._root / layout.dataset_table(self.name, "images"))

    @functools.cached_property
    def readable(self) -> NDArray[np.int64]:
        """image_id of the images that the index accepted, in order of position."""
        status = np.array(self.images["status"].to_pylist())
        order = np.argsort(self.images["position"].to_numpy(), kind="stable")
        return order[status[order] == "accepted"].astype(np.int64)

    def entry(self, image_id: int) -> Entry:
        """Return the location of an indexed image in the source."""
        files, offsets, lengths = self._places
        return Entry(self._paths[image_id], None, files[image_id], offsets[image_id], lengths[image_id])

    @functools.cached_property
    def _places(self) -> tuple[list[str | None], list[int | None], list[int | None]]:
        file, offset, length = (self.images[name].to_pylist() for name in ("source_file", "offset", "length"))
        return file, offset, length

    @functools.cached_property
    def _paths(self) -> list[str]:
        return [str(p) for p in self.images["path"].to_pylist()]

    @functools.cached_property
    def _digests(self) -> list[str]:
        return [str(d) for d in self.images["sha256"].to_pylist()]

    def path_of(self, image_id: int) -> str:
        return self._paths[image_id]

    def read_image(self, image_id: int) -> bytes:
        """Return the bytes of an image. Raises UsageError if they are not the bytes that were indexed."""
        path = self._paths[image_id]
        try:
            data = self.source.read(self.entry(image_id))
        except OSError as error:
            raise UsageError(
                f"{path} was indexed and cannot be read now ({error.strerror}): put it back and run again"
            ) from error
        if hashlib.sha256(data).hexdigest() != self._digests[image_id]:
            raise UsageError(
                f"{path} has changed since it was indexed: put it back, or index the pictures under another `name`"
            )
        return data
