"""Stage `examples`: store each distinct example picture once, as the network saw it, and the maps of its units."""

from __future__ import annotations

import functools
import io
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline import graph
from pipeline.data.loading import Batch
from pipeline.graph import Layer
from pipeline.job import Expected, Job, Shard, Stage, Work
from pipeline.runtime.ordered_map import ordered_map
from pipeline.runtime.timing import timed, timed_iter
from pipeline.scan.measurer import folded_network
from store import codes, hdf5, layout, parquet
from store.commits import Record
from store.hdf5 import Array

MAP = 14  # the largest height and width of a stored activation map
QUALITY = 90  # of the stored JPEG


@dataclass(frozen=True)
class Wanted:
    """The maps to keep, one per row, sorted by (image_id, place).

    `place` is the index of the layer in the run, and `rank` counts from 0.
    """

    image_id: NDArray[np.int64]
    place: NDArray[np.int64]
    channel: NDArray[np.int64]
    rank: NDArray[np.int64]
    pictures: NDArray[np.int64]  # distinct image ids in rising order, those of the lowest examples included

    layers: int

    def of(self, image_id: int, layer_index: int) -> slice:
        """Return the rows of one image in one layer."""
        key = image_id * self.layers + layer_index
        first, last = np.searchsorted(self._keys, [key, key + 1])
        return slice(int(first), int(last))

    @functools.cached_property
    def _keys(self) -> NDArray[np.int64]:
        return self.image_id * self.layers + self.place


def _wanted(job: Job) -> Wanted:
    table = parquet.read(job.store.root / layout.table(job.store.run, "top_examples"))
    rank, ids = table["rank"].to_numpy().astype(np.int64), table["image_id"].to_numpy()
    names = table["layer"].combine_chunks()
    index = {layer.name: i for i, layer in enumerate(job.spec.layers)}
    layers = np.array([index[n] for n in names.dictionary.to_pylist()])[names.indices.to_numpy()]
    high = np.array([d == "highest" for d in table["direction"].combine_chunks().dictionary.to_pylist()])
    is_high = high[table["direction"].combine_chunks().indices.to_numpy()]
    near = rank <= job.spec.config.examples.count
    maps = np.flatnonzero(near & is_high)
    maps = maps[np.lexsort((layers[maps], ids[maps]))]
    channel = table["channel"].to_numpy().astype(np.int64)
    pictures = (
        np.union1d(ids[near], _around_quantiles(job)) if job.spec.config.examples.quantiles else np.unique(ids[near])
    )
    return Wanted(ids[maps], layers[maps], channel[maps], rank[maps] - 1, pictures, len(job.spec.layers))


_found_around: dict[tuple[Path, str], NDArray[np.int64]] = {}  # by store and fingerprint: every shard asks


def _around_quantiles(job: Job) -> NDArray[np.int64]:
    """Return the images around the quantiles of every unit, rising, as the question `quantile_images` chooses them."""
    key = (job.store.root, job.spec.fingerprint)
    if key not in _found_around:
        accepted = np.sort(job.dataset.readable)
        late = job.store.root / layout.table(job.store.run, "rejected_images")
        if late.exists():
            accepted = np.setdiff1d(accepted, parquet.read(late, ["image_id"])["image_id"].to_numpy())
        wanted = np.zeros(len(job.dataset.images), np.bool_)
        for layer in job.spec.layers:
            with hdf5.reading(job.store.root / layout.codes_by_unit(job.store.run, layer.name)) as file:
                stored = hdf5.dataset(file, "max")
                for channel in range(layer.channels):
                    chosen = codes.around_quantiles(
                        stored[channel][accepted], job.spec.config.examples.quantiles, codes.QUANTILE_IMAGES
                    )
                    wanted[accepted[chosen.ravel()]] = True
        _found_around.clear()
        _found_around[key] = np.flatnonzero(wanted)
    return _found_around[key]


def _phases(job: Job) -> list[list[Shard]]:
    size, total = job.spec.config.scan.shard_size, len(_wanted(job).pictures)
    cuts = [(a, min(a + size, total)) for a in range(0, total, size)]
    return [[Shard(f"{i:05d}", a, b, b - a) for i, (a, b) in enumerate(cuts)], [Shard("finish")]]


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    if shard.name != "finish":
        return _pictures(job, shard, advance)
    record = _finish(job, shard)
    advance(1)
    return record


@dataclass
class _Found:
    """Activation maps by layer index: uint8 [k, h, w], and their owners, int64 [k, 2] of (channel, rank)."""

    maps: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)
    owners: dict[int, list[NDArray[np.int64]]] = field(default_factory=dict)


class _Maps:
    """Run batches and collect the wanted activation maps. Several threads may call it at once."""

    def __init__(self, job: Job, wanted: Wanted) -> None:
        self.job, self.wanted = job, wanted
        self.places = {layer.name: i for i, layer in enumerate(job.spec.layers)}
        network = folded_network(job.spec.model, job.spec.layers).to(job.spec.device)
        self.network = graph.with_taps(network, job.spec.layers, self._tap)
        self.current = threading.local()

    @timed("forward")
    def __call__(self, batch: Batch) -> tuple[Batch, _Found]:
        self.current.ids, self.current.found = batch.ids.tolist(), _Found()
        if len(batch.ids):
            x = torch.from_numpy(batch.pixels).to(self.job.spec.device).float() / 255
            with torch.inference_mode():
                model = self.job.spec.model
                self.network(model.preprocess.normalize(x).contiguous(memory_format=model.graph.memory_format))
        return batch, self.current.found

    @timed("reduce")
    def _tap(self, layer: Layer, x: Tensor) -> None:
        if not layer.spatial:
            return  # its map shows nothing of where in the picture
        index, collected = self.places[layer.name], self.current.found
        for row, image_id in enumerate(self.current.ids):
            rows = self.wanted.of(image_id, index)
            if rows.start == rows.stop:
                continue
            channels = self.wanted.channel[rows]
            maps = quantized_maps(x[row, torch.from_numpy(channels).to(x.device)].float())
            collected.maps.setdefault(index, []).append(maps)
            collected.owners.setdefault(index, []).append(np.stack([channels, self.wanted.rank[rows]], 1))


def quantized_maps(maps: Tensor) -> NDArray[np.uint8]:
    """Shrink maps, float [n, H, W], by max pooling and quantize them: uint8 [n, h, w] with h and w at most 14.

    The code 0 stands for the minimum of the pooled map or for zero, whichever is lower, and 255 for its maximum.
    """
    small = F.adaptive_max_pool2d(maps[:, None], (min(maps.shape[1], MAP), min(maps.shape[2], MAP)))[:, 0]
    low, high = small.amin((1, 2), keepdim=True).clamp(max=0), small.amax((1, 2), keepdim=True)
    scaled = (small - low) / (high - low).clamp(min=1e-12) * 255
    return scaled.round().to(torch.uint8).cpu().numpy()


def _pictures(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    wanted = _wanted(job)
    ids = wanted.pictures[shard.first : shard.last]
    jpegs: list[bytes] = []
    total = _Found()
    for batch, collected in ordered_map(
        _Maps(job, wanted), timed_iter(job.runtime.batches(ids)), job.runtime.streams, job.runtime.network_threads
    ):
        if batch.bad:
            raise OSError(f"{job.dataset.path_of(batch.bad[0][0])}: {batch.bad[0][1]} (the scan could decode it)")
        for index, maps in collected.maps.items():
            total.maps.setdefault(index, []).extend(maps)
            total.owners.setdefault(index, []).extend(collected.owners[index])
        jpegs += [encoded(p, job.spec.config.examples.size) for p in batch.pixels[: len(batch.ids)]]
        advance(len(batch.ids))
    arrays = _flat(ids, jpegs)
    for index in sorted(total.maps):
        arrays[f"{index}/maps"] = Array(np.concatenate(total.maps[index]), None, "gzip")
        arrays[f"{index}/owners"] = Array(np.concatenate(total.owners[index]), None, "gzip")
    with job.store.publication("examples", shard.name) as out:
        hdf5.write(out.path(layout.partial(job.store.run, "examples", f"{shard.name}.h5")), arrays)
        return out.commit()


def encoded(pixels: NDArray[np.uint8], size: int) -> bytes:
    """Return a picture, uint8 [C, H, W], as JPEG. Its short side becomes `size` pixels, unless that is 0."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if size:
        scale = size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _flat(ids: NDArray[np.int64], jpegs: list[bytes]) -> dict[str, Array]:
    offsets = np.cumsum([0, *(len(j) for j in jpegs)]).astype(np.int64)
    flat = np.frombuffer(b"".join(jpegs), np.uint8)
    return {"image_ids": Array(ids), "offsets": Array(offsets), "jpeg": Array(flat, (1 << 20,))}


def _finish(job: Job, shard: Shard) -> Record:
    files = [
        job.store.root / layout.partial(job.store.run, "examples", f"{name}.h5")
        for name in sorted(job.store.done("examples"))
        if name != "finish"
    ]
    ids = np.concatenate([np.zeros(0, np.int64), *(hdf5.read(f, "image_ids") for f in files)])
    jpegs = [j for f in files for j in _split(hdf5.read(f, "offsets"), hdf5.read(f, "jpeg"))]
    arrays = _flat(ids, jpegs)
    for index, layer in enumerate(job.spec.layers):
        if not layer.spatial:
            continue
        shape = (layer.channels, job.spec.config.examples.count, min(layer.height, MAP), min(layer.width, MAP))
        full = np.zeros(shape, np.uint8)
        for file in files:
            with hdf5.reading(file) as partial:
                if f"{index}" in partial:
                    owners = hdf5.dataset(partial, f"{index}/owners")[()]
                    full[owners[:, 0], owners[:, 1]] = hdf5.dataset(partial, f"{index}/maps")[()]
        arrays[f"maps/{layer.name}"] = Array(full, (1, *shape[1:]), "gzip")
    with job.store.publication("examples", shard.name) as out:
        hdf5.write(out.path(layout.example_images(job.store.run)), arrays)
        return out.commit({"pictures": len(ids)})


def _split(offsets: NDArray[np.int64], flat: NDArray[np.uint8]) -> list[bytes]:
    return [flat[a:b].tobytes() for a, b in itertools.pairwise(offsets.tolist())]


def _images_planned(job: Job) -> int:
    """Return the largest number of distinct images that the examples of all units can have."""
    examples = job.spec.config.examples
    each = examples.count + len(examples.quantiles) * codes.QUANTILE_IMAGES
    return min(len(job.dataset.entries), int(job.spec.units.offsets[-1]) * each)


def _expected(job: Job) -> Expected:
    return Expected(-(-_images_planned(job) // job.spec.config.scan.shard_size), 1, exact=False)


def _work(job: Job) -> Work:
    images, count = _images_planned(job), job.spec.config.examples.count
    positions = sum(x.channels * min(x.height, MAP) * min(x.width, MAP) for x in job.spec.layers if x.spatial)
    return Work(images=images, encoded=images, positions=positions * min(count, len(job.dataset.entries)))


STAGE = Stage("examples", "img", _phases, _run, _expected, _work)
