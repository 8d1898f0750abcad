"""Ask why a network said what it said about one picture, and get tables, sentences and a sheet."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from query import arguments, live, resolve
from query.explanation.facts import Facts, moments
from query.explanation.sheet import explanation_sheet
from query.explanation.terms import BASELINES, METHODS
from query.record.dense import Dense
from query.record.run_tables import Layer, Run
from query.resolve import ClassName
from store.errors import UsageError, unknown
from store.unit_name import whole_number

if TYPE_CHECKING:
    from PIL import Image

    from query.live import Probe

ABLATED, MOST_GROUPS = 5, 32  # units on each side, and groups at most


class Explained(Facts):
    """One picture, explained by one layer of a run."""

    def sheet(self) -> Image.Image:
        """Draw everything on one page, RGB."""
        return explanation_sheet(self)


def explained(
    dense: Dense,
    probe: Probe,
    image: str,
    image_id: int | None,
    pixels: NDArray[np.uint8],
    target: ClassName | None = None,
    against: ClassName | None = None,
    layer: str | None = None,
    method: str = "integrated",
    baseline: str | None = None,
    groups: int = 6,
    render: int = 0,
    ablate: int = ABLATED,
    most_steps: int | None = None,
) -> Explained:
    """Explain a picture, uint8 [channels, H, W] as the network sees it. See `Scope.explain`.

    `image` is its name, `image_id` its number in the dataset, if it is of it. `most_steps` bounds integrated gradients.
    """
    run = dense.run
    chosen = layer_to_explain(run, layer)
    arguments.one_of(method, METHODS, "method")
    baseline = baseline if baseline is not None else "zero" if method == "gradient" else "mean"
    arguments.one_of(baseline, BASELINES, "baseline")
    if method == "gradient" and baseline == "mean":
        raise UsageError("gradient x activation is against zero by definition: patching is the same against the mean")
    if not 0 <= groups <= MOST_GROUPS:
        raise UsageError(f"groups={groups}: expected 0 to {MOST_GROUPS}")
    order = np.argsort(-probe.logits(pixels, chosen.name), kind="stable")
    first = int(order[0]) if target is None else output_class(run, probe.labels, len(order), target)
    if against is None:
        second = int(order[1] if first == order[0] else order[0]) if len(order) > 1 else None
    else:
        second = None if against == "" else output_class(run, probe.labels, len(order), against)
    if first == second:
        raise UsageError(f"target and against are one class ({first}): give two, or leave one out")
    low = None if baseline == "zero" else moments(run, chosen)[0].astype(np.float32)
    values = probe.explain(pixels, chosen.name, first, second, method, low, groups, ablate, most_steps)
    shown = pixels.transpose(1, 2, 0) if len(pixels) == 3 else np.repeat(pixels.transpose(1, 2, 0), 3, 2)
    found = Explained(dense, chosen, image, image_id, shown, baseline, probe.labels, values, {}, {})
    return _with_pictures(found, probe, render) if render else found


def _with_pictures(found: Explained, probe: Probe, steps: int) -> Explained:
    """Render the directions of the groups, and the units that speak most for and against, in one batch."""
    loadings = found.values.groups.loadings
    units = sorted(found.values.ablations)
    vectors = np.concatenate([loadings, np.eye(found.layer.channels, dtype=np.float32)[units]])
    pictures = probe.render_directions(found.layer.name, vectors, steps)
    return replace(
        found,
        group_pictures=dict(enumerate(pictures[: len(loadings)])),
        unit_pictures=dict(zip(units, pictures[len(loadings) :], strict=True)),
    )


def layer_to_explain(run: Run, name: str | None) -> Layer:
    """Return the layer of that name, or the last one whose positions are places of the picture."""
    if name is not None:
        return resolve.find_layer(run, name)
    with_places = [layer for layer in run.layers if layer.has_places]
    return with_places[-1] if with_places else run.layers[-1]


def pixels_of(dense: Dense, probe: Probe, source: int | Path) -> NDArray[np.uint8]:
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
    if isinstance(asked, bool) or not isinstance(asked, (int, str)) or (isinstance(asked, int) and asked < 0):
        raise UsageError(f"class {arguments.shown(asked)}: expected the index, the label or the synset of an output")
    text = arguments.spelled(asked).strip()
    if text.isascii() and text.isdigit():
        index = whole_number(text)
        if index >= outputs:
            raise UsageError(f"class {text}: the network has {outputs} outputs, from 0 to {outputs - 1}")
        return index
    names = [(label, label.split(",")[0].strip()) for label in labels]
    same = [index for index, spellings in enumerate(names) if text in spellings] or [
        index for index, spellings in enumerate(names) if text.casefold() in (one.casefold() for one in spellings)
    ]
    if len(same) > 1:
        raise UsageError(f"class {text!r} is the name of the outputs {', '.join(map(str, same))}: give one of these")
    if same:
        return same[0]
    imagenet = run.model_row["label_space"] == "imagenet-1k"
    synsets = {c.synset: c.index for c in run.classes if c.synset and imagenet}
    if text.lower() in synsets:
        return synsets[text.lower()]
    raise unknown("class", text, [label.split(",")[0] for label in labels] or [f"0 to {outputs - 1}"])


def same_picture(run: Run, path: Path) -> int | None:
    """Return the image_id of an accepted picture of the dataset with the same bytes as a file, or None."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    rows = run.rows("images", "image_id", "sha256 = ? AND status = 'accepted'", [digest], "ORDER BY image_id")
    accepted = run.images.accepted
    return next((image_id for image_id in rows["image_id"].to_pylist() if accepted[image_id]), None)
