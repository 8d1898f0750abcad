"""What is known of why a network said what it said about one picture: tables and sentences, for one layer of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query.questions.columns import unit_columns
from query.questions.image_units import stored_row
from query.record.dense import Dense
from query.record.run_tables import Layer, Run
from query.record.unit import Unit

if TYPE_CHECKING:
    from pipeline.explain import Explanation

SHOWN = 5  # units on each side that are ablated
_NAMES = {
    "integrated": "integrated gradients",
    "patching": "the gradient on the picture, times the distance from the baseline",
    "gradient": "gradient x activation",
}


@dataclass(frozen=True)
class Facts:
    """One picture, explained by one layer of a run.

    `values` has the arrays: attributions and activations float32 [C, H, W], the neuron groups, the logits. `pixels`
    uint8 [H, W, 3] is the picture as the network saw it. `unit_pictures` and `group_pictures` are feature
    visualizations that were rendered for this explanation, uint8 [h, w, 3] by channel and by group, if asked for.
    """

    dense: Dense
    layer: Layer
    image: str
    image_id: int | None
    pixels: NDArray[np.uint8]
    baseline: str
    labels: tuple[str, ...]
    values: Explanation
    unit_pictures: dict[int, NDArray[np.uint8]]
    group_pictures: dict[int, NDArray[np.uint8]]

    def class_name(self, index: int) -> str:
        return self.labels[index].split(",")[0] if index < len(self.labels) else f"class {index}"

    @property
    def title(self) -> str:
        target, other = self.class_name(self.values.target), self.values.against
        if self.values.target != int(self.values.logits.argmax()):  # the network does not say so
            return f"What speaks for {target}" + ("?" if other is None else f", and what for {self.class_name(other)}?")
        return f"Why {target}?" if other is None else f"Why {target}, and not {self.class_name(other)}?"

    @property
    def question(self) -> str:
        """What is explained, in words."""
        target = self.class_name(self.values.target)
        if self.values.against is None:
            return f"the logit of {target}"
        return f"the logit of {target} minus that of {self.class_name(self.values.against)}"

    @property
    def predictions(self) -> pd.DataFrame:
        """The five likeliest classes: rank, class_index, label, probability, logit."""
        logits = self.values.logits.astype(np.float64)
        probability = np.exp(logits - logits.max())
        probability /= probability.sum()
        order = np.argsort(-logits, kind="stable")[:5]
        return pd.DataFrame(
            {
                "rank": np.arange(1, len(order) + 1),
                "class_index": order,
                "label": pd.Series([self.class_name(int(i)) for i in order], dtype="str"),
                "probability": probability[order],
                "logit": logits[order],
            }
        )

    @property
    def units(self) -> pd.DataFrame:
        """All units of the layer, the highest attribution first.

        Columns: model, layer, channel, rank, attribution, ablation (by how much the score falls without the unit; NaN
        but for the first and the last), value (its maximum on the picture), tail_p (the share of pictures that fire it
        at least as much), n.
        """
        run, by_unit = self.dense.run, self.values.by_unit
        value = self.values.activations.max((1, 2))
        if self.image_id is None:
            tail_p = (1 + self.dense.book(self.layer, "max").images_reaching(value)) / (run.n + 1)
        else:  # the picture is one of those that the store counted
            tail_p = stored_row(self.dense, self.image_id, np.arange(self.layer.start, self.layer.stop)).tail_p
        order = np.argsort(-by_unit, kind="stable")
        return pd.DataFrame(
            {
                **unit_columns(run, self.layer.start + order),
                "rank": np.arange(1, len(order) + 1),
                "attribution": by_unit[order],
                "ablation": [self.values.ablations.get(int(channel), np.nan) for channel in order],
                "value": value[order],
                "tail_p": tail_p[order],
                "n": run.n,
            }
        )

    @property
    def positions(self) -> pd.DataFrame:
        """All positions of the layer's map, in rows: y, x, attribution."""
        by_position = self.values.by_position
        y, x = np.indices(by_position.shape)
        return pd.DataFrame({"y": y.ravel(), "x": x.ravel(), "attribution": by_position.ravel()})

    @property
    def groups(self) -> pd.DataFrame:
        """The picture's neuron groups, the strongest first.

        Columns: group_index, attribution, ablation (by how much the score falls without the group's part of the
        layer), units (the five with the largest loadings, as text).
        """
        found = self.values.groups
        return pd.DataFrame(
            {
                "group_index": np.arange(len(found.loadings)),
                "attribution": self.values.group_attributions,
                "ablation": self.values.group_ablations,
                "units": pd.Series(
                    [", ".join(str(c) for c in units) for units in self.units_of_groups(5)], dtype="str"
                ),
            }
        )

    def units_of_groups(self, k: int) -> list[list[int]]:
        """Return the k channels with the largest loadings of each group."""
        return [np.argsort(-np.abs(row), kind="stable")[:k].tolist() for row in self.values.groups.loadings]

    def strongest_units(self, most: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the unit that fires most at each place, by its own spread over positions, and how strong the place is.

        int64 [h, w] channels and float64 [h, w], the length of the place's vector over the greatest length. A map of
        more than `most` rows or columns is cut into as many cells, and the strongest place of each counts.
        """
        activations = self.values.activations.astype(np.float64)
        mean, variance = moments(self.dense.run, self.layer)
        z = (activations - mean[:, None, None]) / np.sqrt(np.maximum(variance, 1e-12))[:, None, None]
        z[variance <= 0] = -np.inf
        length = np.sqrt((activations**2).sum(0))
        length /= max(float(length.max()), 1e-30)
        rows, columns = (min(most, side) for side in length.shape)
        channel, strength = np.zeros((rows, columns), np.int64), np.zeros((rows, columns))
        down, across = (np.linspace(0, side, cells + 1).astype(int) for side, cells in
                        zip(length.shape, (rows, columns), strict=True))  # fmt: skip
        for y, x in np.ndindex(rows, columns):
            cell = length[down[y] : down[y + 1], across[x] : across[x + 1]]
            at = np.unravel_index(int(cell.argmax()), cell.shape)
            channel[y, x] = z[:, down[y] + at[0], across[x] + at[1]].argmax()
            strength[y, x] = cell[at]
        return channel, strength

    @property
    def sentences(self) -> list[str]:
        """Return what the numbers say and do not say, one sentence for each."""
        v, rows = self.values, self.predictions
        first, second = (rows.iloc[i] for i in (0, min(1, len(rows) - 1)))
        low = "zero" if self.baseline == "zero" else f"its mean over the {self.dense.run.n:,} pictures"
        said = [
            f"The network says {first.label} ({first.probability:.1%}), then {second.label} "
            f"({second.probability:.1%}).",
            f"Explained: {self.question}, which is {v.score:.2f}. With every unit of this layer at {low} it would be "
            f"{v.baseline_score:.2f}, so the layer adds {v.score - v.baseline_score:.2f}. {self._sum()}",
            f"Attribution is {_NAMES[v.method]}"
            + (f" in {v.steps} steps" if v.method == "integrated" else "")
            + ": an estimate of what each value adds, given all others.",
            f"Ablation (without): by how much the score really falls when the unit is set to {low} everywhere, or the "
            "group's part of the layer is taken away. Where it differs much from the attribution, trust the ablation: "
            "the estimate is wrong there, or other units make up for this one.",
        ]
        if self.layer.has_places:
            said.append(
                "The map says where the layer's values count. Each position sees more of the picture than its own "
                "square."
            )
        if abs(v.elsewhere) > 0.01 * abs(v.score - v.baseline_score):
            said.append(f"{v.elsewhere:+.2f} comes from values at no position of the picture, such as class tokens.")
        if count := len(v.groups.loadings):
            said.append(
                f"Groups are parts of the layer's values, from zero: {count} of them give back "
                f"{v.groups.explained:.0%} of the layer on this picture, where no more than {v.groups.possible:.0%} is "
                "possible, and what they add is no share of what the layer adds."
            )
        said.append("All of it is about what the network computed, not about what makes the answer right.")
        return said

    def _sum(self) -> str:
        """Return how far the attributions add up to what the layer adds."""
        v = self.values
        added, residue = v.score - v.baseline_score, abs(v.residue)
        if residue <= max(0.01 * abs(added), 1e-5):
            return f"The attributions add up to that within {residue:.2g}."
        total = added + v.residue
        if v.complete:
            return (
                f"The attributions add up to {total:.2f}: they are much larger than their sum, and the difference is "
                "less than 0.1 % of their sizes."
            )
        return f"The attributions add up to {total:.2f} instead: take their order, not their size."

    def unit(self, channel: int) -> Unit:
        return Unit(self.dense.run, self.layer, channel)


def moments(run: Run, layer: Layer) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each unit's mean and variance over all positions of the run's images: float64 [C] each."""
    rows = run.rows("units", "channel, mean, variance", "layer = ?", [layer.name], "ORDER BY channel")
    if rows["channel"].to_pylist() != list(range(layer.channels)):
        raise run.inconsistent(f"units does not have one row for each unit of {layer.name}")
    return rows["mean"].to_numpy(), rows["variance"].to_numpy()
