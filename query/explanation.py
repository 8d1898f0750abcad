"""Why the network said what it said about one picture: tables, sentences and a sheet, for one layer of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from query import arguments, live, resolve
from query.explanation_terms import BASELINES, METHODS
from query.questions.columns import unit_columns
from query.record.dense import Dense
from query.record.run_tables import Layer, Run
from query.record.unit import Unit
from query.resolve import ClassName, ImageName
from store.errors import UsageError, unknown
from store.unit_name import whole_number

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.explain import Explanation
    from query.live import Probe

SHOWN = 5  # units on each side that are ablated
_NAMES = {
    "integrated": "integrated gradients",
    "patching": "the gradient on the picture, times the distance from the baseline",
    "gradient": "gradient x activation",
}


@dataclass(frozen=True)
class Explained:
    """One picture, explained by one layer of a run.

    `values` has the arrays: attributions and activations float32 [C, H, W], the neuron groups, the logits. `pixels`
    uint8 [H, W, 3] is the picture as the network saw it.
    """

    dense: Dense
    layer: Layer
    image: str
    pixels: NDArray[np.uint8]
    baseline: str
    labels: tuple[str, ...]
    values: Explanation

    def class_name(self, index: int) -> str:
        return self.labels[index].split(",")[0] if index < len(self.labels) else f"class {index}"

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
        """All units of the layer, by attribution falling.

        Columns: model, layer, channel, rank, attribution, ablation (by how much the score falls without the unit; NaN
        but for the first and the last), value (its maximum on the picture), tail_p (the share of pictures that fire it
        at least as much), n.
        """
        run, by_unit = self.dense.run, self.values.by_unit
        value = self.values.activations.max((1, 2))
        reached = self.dense.book(self.layer, "max").images_reaching(value)
        order = np.argsort(-by_unit, kind="stable")
        return pd.DataFrame(
            {
                **unit_columns(run, self.layer.start + order),
                "rank": np.arange(1, len(order) + 1),
                "attribution": by_unit[order],
                "ablation": [self.values.ablations.get(int(channel), np.nan) for channel in order],
                "value": value[order],
                "tail_p": ((1 + reached) / (run.n + 1))[order],
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

    @property
    def sentences(self) -> list[str]:
        """Return what the numbers say and do not say, one sentence for each."""
        v, rows = self.values, self.predictions
        first, second = (rows.iloc[i] for i in (0, min(1, len(rows) - 1)))
        zero = (
            "every unit of this layer at zero"
            if self.baseline == "zero"
            else (f"every unit of this layer at its mean over the {self.dense.run.n:,} pictures")
        )
        residue = abs(v.residue)
        sums = (
            f"The attributions add up to that within {residue:.2g}."
            if v.complete
            else f"The attributions miss that by {residue:.2g}: take their order, not their size."
        )
        said = [
            f"The network says {first.label} ({first.probability:.1%}), then {second.label} "
            f"({second.probability:.1%}).",
            f"Explained: {self.question}, which is {v.score:.2f}. With {zero} it would be {v.baseline_score:.2f}, so "
            f"the layer adds {v.score - v.baseline_score:.2f}. {sums}",
            f"Attribution is {_NAMES[v.method]}"
            + (f" in {v.steps} steps" if v.method == "integrated" else "")
            + ": an estimate of what each value adds, given all others.",
            "Without: by how much the score really falls when the unit, or the group, is taken away everywhere. Where "
            "it differs much from the attribution, other units make up for it or depend on it.",
            "The map says where the layer's values count. Each position sees more of the picture than its own square.",
        ]
        if abs(v.elsewhere) > 0.01 * abs(v.score - v.baseline_score):
            said.append(f"{v.elsewhere:+.2f} comes from values at no position of the picture, such as class tokens.")
        if len(v.groups.loadings):
            said.append(
                f"The {len(v.groups.loadings)} groups give back {v.groups.explained:.0%} of the layer on this picture; "
                f"no {len(v.groups.loadings)} directions give back more than {v.groups.possible:.0%}."
            )
        said.append("All of it is about what the network computed, not about what makes the answer right.")
        return said

    def unit(self, channel: int) -> Unit:
        return Unit(self.dense.run, self.layer, channel)

    def sheet(self) -> Image.Image:
        """Draw everything on one page, RGB."""
        from query.presentation.explanation_sheet import explanation_sheet

        return explanation_sheet(self)


def explained(
    dense: Dense,
    probe: Probe,
    image: ImageName,
    source: int | Path,
    target: ClassName | None,
    against: ClassName | None,
    layer: str | None,
    method: str,
    baseline: str,
    groups: int,
) -> Explained:
    """Explain a picture: `image` as it was asked for, `source` its image_id or file. See `Scope.explain`."""
    run = dense.run
    chosen = _layer(run, layer)
    arguments.one_of(method, METHODS, "method")
    arguments.one_of(baseline, BASELINES, "baseline")
    if method == "gradient" and baseline == "mean":
        baseline = "zero"  # gradient x activation is by definition against zero
    pixels = _pixels(dense, probe, source)
    order = np.argsort(-probe.logits(pixels, chosen.name), kind="stable")
    first = int(order[0]) if target is None else output_class(run, probe.labels, len(order), target)
    if against is None:
        second = int(order[1] if first == order[0] else order[0]) if len(order) > 1 else None
    else:
        second = None if against == "" else output_class(run, probe.labels, len(order), against)
    if first == second:
        raise UsageError(f"target and against are one class ({first}): give two, or leave one out")
    low = None if baseline == "zero" else _means(run, chosen)
    values = probe.explain(pixels, chosen.name, first, second, method, low, groups, SHOWN)
    shown = pixels.transpose(1, 2, 0) if len(pixels) == 3 else np.repeat(pixels.transpose(1, 2, 0), 3, 2)
    return Explained(dense, chosen, arguments.spelled(image), shown, baseline, probe.labels, values)


def _layer(run: Run, name: str | None) -> Layer:
    """Return the layer of that name, or the last one whose positions are places of the picture."""
    if name is not None:
        return resolve.find_layer(run, name)
    with_places = [layer for layer in run.layers if layer.has_places]
    return with_places[-1] if with_places else run.layers[-1]


def _means(run: Run, layer: Layer) -> NDArray[np.float32]:
    """Return each unit's mean over all positions of the run's images: float32 [C]."""
    rows = run.rows("units", "channel, mean", "layer = ?", [layer.name], "ORDER BY channel")
    means: NDArray[np.float32] = rows["mean"].to_numpy().astype(np.float32)
    if len(means) != layer.channels:
        raise run.inconsistent(f"units has {len(means)} rows of {layer.name}")
    return means


def _pixels(dense: Dense, probe: Probe, source: int | Path) -> NDArray[np.uint8]:
    """Return a picture as the network sees it: uint8 [channels, H, W]."""
    if not isinstance(source, int):
        return probe.pixels(source)
    found = live.dataset_picture(dense.run, source)
    if found is not None:
        return probe.pixels(found)
    kept = dense.kept_jpeg(source)
    if kept is None:
        raise UsageError(
            f"image {source}: its file is not at hand, and the store does not keep the picture: give a picture file"
        )
    return probe.as_stored(live.open_picture(kept))


def output_class(run: Run, labels: tuple[str, ...], outputs: int, asked: ClassName) -> int:
    """Return the output of the network that a person means: its index, its label, or a synset of the dataset."""
    text = arguments.spelled(asked).strip()
    if text.isascii() and text.isdigit():
        index = whole_number(text)
        if index >= outputs:
            raise UsageError(f"class {text}: the network has {outputs} outputs, from 0 to {outputs - 1}")
        return index
    names = {label.split(",")[0].strip().casefold(): index for index, label in reversed(list(enumerate(labels)))}
    names |= {label.casefold(): index for index, label in reversed(list(enumerate(labels)))}
    imagenet = run.model_row["label_space"] == "imagenet-1k"
    synsets = {c.synset: c.index for c in run.classes if c.synset and imagenet}
    if text.casefold() in names:
        return names[text.casefold()]
    if text in synsets:
        return synsets[text]
    raise unknown("class", text, [label.split(",")[0] for label in labels] or [f"0 to {outputs - 1}"])
