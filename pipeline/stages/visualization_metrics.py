"""Metrics of how far to trust a feature visualization.

It is compared with the best natural example, with the median image and with the other units of its layer.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pipeline import graph
from pipeline.data.decode import open_image
from pipeline.featurevis import Picture
from pipeline.graph import Layer
from pipeline.job import Job
from pipeline.runtime.devices import DTYPES
from pipeline.scan.measurer import inner
from store import codes, hdf5, layout, parquet

SAMPLE = 32  # images of which medians are taken that the store does not hold


@dataclass(frozen=True)
class Trust:
    """The metrics of one picture.

    `value_vs_best_example` is the picture's value divided by that of its best natural example. It is NaN for deepdream,
    and if the example's value is zero or of the other sign than the direction. `rank_in_layer` is 1 if no other unit
    of the layer responds more strongly, relative to its own distribution. It is -1 for negative pictures and for
    deepdream. `beats_median` tells whether the picture's value is beyond that of the median image.
    """

    value_vs_best_example: float
    rank_in_layer: int
    beats_median: bool


class VisualizationMetrics:
    """Judge pictures of one layer, at the model's input size.

    Pictures and examples are compared by their values before the layer's upper limit, such as that of ReLU6: an example
    at the limit could not be exceeded otherwise. Ranks and medians are of values after it, as the store holds them.
    """

    def __init__(self, job: Job, layer: Layer) -> None:
        self.job, self.layer = job, layer
        module = graph.truncated(graph.unclipped(job.spec.model.graph.module, layer), layer)
        folded = copy.deepcopy(graph.fold_norms(module, keep={layer.node}))
        self._format = job.spec.model.graph.memory_format
        self._dtype = DTYPES[job.spec.config.compute.precision]
        own = graph.in_memory_format(folded, self._format)
        self._open: fx.GraphModule = own.to(device=job.spec.device, dtype=self._dtype)
        path = job.store.root / layout.array(job.store.run, "codes")
        with hdf5.reading(path) as file:
            self._edges = {k: hdf5.dataset(file, f"{layer.name}/{k}/edges")[()] for k in ("max", "mean")}
            self._counts = {k: hdf5.dataset(file, f"{layer.name}/{k}/counts")[()] for k in ("max", "mean")}
            self._means = hdf5.dataset(file, f"{layer.name}/max/means")[()]
        units = parquet.read(job.store.root / layout.table(job.store.run, "units"))
        rows = units.filter(np.array(units["layer"].to_pylist()) == layer.name)
        self._max_mean, self._max_sd = (rows[c].to_numpy() for c in ("max_mean", "max_sd"))
        self._mean_codes = hdf5.read(job.store.root / layout.codes_by_unit(job.store.run, layer.name), "mean")
        self._examples = self._strongest()
        self._best_values: dict[tuple[str, bool], dict[int, NDArray[np.float32]]] = {}  # by kind, direction and image

    def judge(self, images: NDArray[np.uint8], pictures: Sequence[Picture], kind: str) -> list[Trust]:
        """Return the metrics of each picture. `images` holds the rendered pictures, uint8 [n, H, W, C]."""
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.job.spec.device).float() / 255
        x = self.job.spec.model.preprocess.resized(x)
        if kind == "deepdream":
            energy = self._energy(x)
            return [Trust(float("nan"), -1, bool(e > self._median_energy)) for e in energy]
        positive = pictures[0].direction == "positive"  # all pictures have one direction: they are of one group
        highest = self._measured(x, "max")
        of = ("max" if positive else "min") if kind == "neuron" else "mean"
        values = highest if of == "max" else self._measured(x, of)
        reached, best = self._open_values(x, kind, positive), self._best(pictures, kind, positive)
        judged = []
        for row, picture in enumerate(pictures):
            sign = 1 if positive else -1
            ratio = float(reached[row, picture.channel]) / best[row] if sign * best[row] > 0 else float("nan")
            median = self._median(picture.channel, of)
            rank = self._rank(highest[row], picture.channel) if sign > 0 else -1
            judged.append(Trust(ratio, rank, sign * float(values[row, picture.channel]) > sign * median))
        return judged

    def _measured(self, x: Tensor, statistic: str) -> NDArray[np.float32]:
        """Return max, min or mean of every unit of the layer, as the scan measures it: float32 [n, C]."""
        units = self.job.spec.units.slice([y.name for y in self.job.spec.layers].index(self.layer.name))

        def measure(part: Tensor) -> NDArray[np.float32]:
            found: NDArray[np.float32] = getattr(self.job.runtime.measurer.pictures(part), statistic)[:, units]
            return found.copy()

        return self._padded(x, measure)

    def _padded(self, x: Tensor, measure: Callable[[Tensor], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Measure pictures in batches padded to the scan's size; smaller ones depend on the number of threads."""
        size, measured = self.job.spec.config.scan.batch_size, []
        for part in x.split(size):
            filled = torch.cat([part, part[-1:].expand(size - len(part), -1, -1, -1)])
            measured.append(measure(filled)[: len(part)])
        return np.concatenate(measured)

    def _open_values(self, x: Tensor, kind: str, positive: bool) -> NDArray[np.float32]:
        """Return a value of every channel before the clip: float32 [n, C].

        It is the spatial mean, or for the kind "neuron" the maximum (the minimum for negative pictures), over the
        positions and with the number type that the scan measures.
        """

        def measure(part: Tensor) -> NDArray[np.float32]:
            activations = self._activations(part)
            rows, columns, cut = inner(activations.shape[2], activations.shape[3], self.job.spec.config.scan.border)
            activations = activations[:, :, cut : cut + rows, cut : cut + columns]
            extreme = activations.amax if positive else activations.amin
            values = extreme((2, 3)) if kind == "neuron" else activations.double().mean((2, 3))
            return values.float().cpu().numpy()

        return self._padded(x, measure)

    def _activations(self, x: Tensor) -> Tensor:
        inputs = self.job.spec.model.preprocess.normalize(x).to(self._dtype).contiguous(memory_format=self._format)
        with torch.inference_mode():
            activations: Tensor = self._open(inputs)
        return activations

    def _best(self, pictures: Sequence[Picture], kind: str, positive: bool) -> list[float]:
        """Return per picture the highest value before the clip among natural examples (lowest if it is negative)."""
        chosen = [self._candidates(picture, kind) for picture in pictures]
        known = self._best_values.setdefault((kind, positive), {})
        ids = np.array(sorted({int(i) for candidates in chosen for i in candidates} - known.keys()), np.int64)
        for first in range(0, len(ids), SAMPLE):  # few images are in memory at a time
            part = ids[first : first + SAMPLE]
            known |= dict(zip(part.tolist(), self._open_values(self._images(part), kind, positive), strict=True))
        best = max if positive else min
        return [
            float(best(known[int(i)][picture.channel] for i in candidates))
            for picture, candidates in zip(pictures, chosen, strict=True)
        ]

    def _images(self, ids: NDArray[np.int64]) -> Tensor:
        """Read images of the dataset: float32 [n, C, H, W] in 0..1."""
        pixels = [self.job.spec.model.preprocess.pixels(open_image(self.job.dataset.read_image(int(i)))) for i in ids]
        return torch.from_numpy(np.stack(pixels)).to(self.job.spec.device).float() / 255

    def _energy(self, x: Tensor) -> NDArray[np.float32]:
        """Return the mean square over the whole layer, which deepdream maximizes: float32 [n]."""

        def measure(part: Tensor) -> NDArray[np.float32]:
            activations = self._activations(part)
            return activations.double().square().mean((1, 2, 3)).float().cpu().numpy()

        return self._padded(x, measure)

    @functools.cached_property
    def _sample(self) -> Tensor:
        """At most SAMPLE images, evenly spread over the dataset."""
        ids = self.job.store.accepted
        return self._images(ids[np.unique(np.linspace(0, len(ids) - 1, min(SAMPLE, len(ids))).astype(np.int64))])

    @functools.cached_property
    def _median_energy(self) -> float:
        """The median of `_energy` over the sample."""
        return float(np.median(self._energy(self._sample)))

    @functools.cached_property
    def _median_minima(self) -> NDArray[np.float32]:
        """The median over the sample of each channel's minimum, of which the store has no distribution."""
        return np.median(self._measured(self._sample, "min"), axis=0)

    def _candidates(self, picture: Picture, kind: str) -> NDArray[np.int64]:
        """Return the ids of natural images among which the best example of a picture is sought."""
        ids = self.job.store.accepted
        positive = picture.direction == "positive"
        if kind != "neuron":
            row = self._mean_codes[picture.channel, ids]
            return ids[[row.argmax() if positive else row.argmin()]]
        return self._examples.get((picture.channel, "highest" if positive else "lowest"), ids[:1])

    def _strongest(self) -> dict[tuple[int, str], NDArray[np.int64]]:
        """Return the ids of examples among which the best before the clip is, by (channel, "highest" or "lowest").

        These are all stored examples at the clip, which are equal after it, or else the first example.
        """
        table = parquet.read(
            self.job.store.root / layout.table(self.job.store.run, "top_examples"),
            ["layer", "channel", "direction", "rank", "image_id", "value"],
        )
        frame = table.to_pandas()
        bound = self.layer.upper_bound
        clipped = (frame["direction"] == "highest") & (frame["value"] >= (np.inf if bound is None else bound))
        near = frame[(frame["layer"] == self.layer.name) & ((frame["rank"] == frame["rank"].min()) | clipped)]
        groups = near.groupby(["channel", "direction"], observed=True)["image_id"]
        return {(int(key[0]), str(key[1])): ids.to_numpy() for key, ids in groups}

    def _median(self, channel: int, of: str) -> float:
        """Return the highest code edge that half of the images reach: the median image's value, to the width of a code.

        It is 0 if that edge is infinite. `of` is the statistic, "max" or "mean"; for "min", see `_median_minima`.
        """
        if of == "min":
            return float(self._median_minima[channel])
        reached = codes.reaching(self._counts[of])[channel]
        last = int(np.flatnonzero(reached >= self._counts[of][channel].sum() / 2)[-1])
        edge = float(self._edges[of][channel, last])
        return edge if np.isfinite(edge) else 0.0

    def _rank(self, values: NDArray[np.float32], channel: int) -> int:
        """Return the rank of a channel in its layer, from 1.

        It is 1 plus the number of units that stand higher in their own distributions: by tail probability, then by
        z-score.
        """
        tail = codes.tail_probability(values, self._edges["max"], self._counts["max"], self._means)
        sd = np.where(self._max_sd > 0, self._max_sd, np.inf)
        z = (values - self._max_mean) / sd
        better = (tail < tail[channel]) | ((tail == tail[channel]) & (z > z[channel]))
        return 1 + int(better.sum())
