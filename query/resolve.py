"""What a person names - unit, layer, image, class, run - found in the store, or one line that says what is near."""

from __future__ import annotations

import bisect
import difflib
import fnmatch
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from query.record.run_tables import DatasetClass, Layer, Run
from store.errors import UsageError

UNIT = re.compile(r"(?P<layer>.+):(?P<channel>\d+)")
ImageName = int | str | os.PathLike[str]
ClassName = int | str
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """A unit of one run."""

    run: Run
    layer: Layer
    channel: int

    @property
    def name(self) -> str:
        return f"{self.layer.name}:{self.channel}"

    @property
    def place(self) -> int:
        return self.layer.start + self.channel


def unknown(what: str, name: object, known: Iterable[object]) -> UsageError:
    texts = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), texts, 3, cutoff=0.4)
    if near:
        return UsageError(f"{what} {str(name)!r} is unknown; near: {', '.join(near)}")
    return UsageError(f"{what} {str(name)!r} is unknown; there are {_some(texts)}")


def choose_runs(runs: Sequence[Run], model: str | None, dataset: str | None) -> list[Run]:
    """The runs of this model and dataset; an unknown name is an error."""
    if not runs:
        raise UsageError(
            "the store has no finished run yet (its scan is not folded): run `unitscope run CONFIG --store STORE`"
        )
    for what, name, known in (
        ("model", model, {r.model for r in runs}),
        ("dataset", dataset, {r.dataset for r in runs}),
    ):
        if name is not None and name not in known:
            raise unknown(what, name, sorted(known))
    found = [r for r in runs if model in (None, r.model) and dataset in (None, r.dataset)]
    if not found:
        raise unknown("run", f"{model}@{dataset}", [r.name for r in runs])
    return found


def the_one(runs: Sequence[Run], what: str) -> Run:
    """The only run left, or an error that lists the choices."""
    if len(runs) > 1:
        choices = ", ".join(r.name for r in runs)
        raise UsageError(
            f"{what} is ambiguous among the runs {choices}: choose with model= and dataset= (--model, --dataset)"
        )
    return runs[0]


def find_unit(runs: Sequence[Run], text: str) -> Unit:
    """LAYER:CHANNEL, or MODEL/LAYER:CHANNEL."""
    match = UNIT.fullmatch(str(text))
    if match is None:
        raise UsageError(f"unit {text!r}: expected LAYER:CHANNEL or MODEL/LAYER:CHANNEL, e.g. {_example(runs)}")
    name, channel = match["layer"], int(match["channel"])
    prefix, slash, rest = name.partition("/")
    if slash:
        of_model = [r for r in runs if r.model == prefix]
        if not of_model:
            raise unknown("model", prefix, sorted({r.model for r in runs}))
        runs, name = of_model, rest
    having = [r for r in runs if name in r.by_name]
    if not having:
        raise unknown("layer", name, dict.fromkeys(layer for r in runs for layer in r.by_name))
    run = the_one(having, f"unit {text}")
    layer = run.by_name[name]
    if channel >= layer.channels:
        raise UsageError(f"unit {text}: layer {name} has channels 0 to {layer.channels - 1}")
    return Unit(run, layer, channel)


def find_layer(run: Run, name: str) -> Layer:
    if name not in run.by_name:
        raise unknown("layer", name, run.by_name)
    return run.by_name[name]


def find_layers(run: Run, globs: str | Sequence[str]) -> list[Layer]:
    """The layers that match, in order."""
    chosen: set[str] = set()
    for glob in [globs] if isinstance(globs, str) else globs:
        found = [name for name in run.by_name if name == glob or fnmatch.fnmatchcase(name, glob)]
        if not found:
            raise unknown("layer", glob, run.by_name)
        chosen.update(found)
    return [layer for layer in run.layers if layer.name in chosen]


def units_of_layers(run: Run, globs: str | Sequence[str] | None) -> NDArray[np.int64]:
    """Rising places of the units in the layers that match; all without globs."""
    if globs is None:
        return np.arange(run.units)
    return np.concatenate([np.arange(layer.start, layer.stop) for layer in find_layers(run, globs)])


def find_image(runs: Sequence[Run], image: ImageName) -> tuple[Run, int | Path]:
    """The run and an image_id in its dataset, or a picture file on disk.

    All digits: an image_id. Else a path in the dataset: exactly, or the only one that ends with it at a slash; else a
    file on disk.
    """
    text = os.fspath(image) if isinstance(image, os.PathLike) else str(image)
    if isinstance(image, bool) or (isinstance(image, int) and image < 0):
        raise UsageError(f"image {image!r}: an image_id is 0 or more")
    if text.isascii() and text.isdigit():
        run = the_one(runs, f"image {text}")
        return run, _accepted(run, int(text))
    found = {run.dataset: _by_path(run, text) for run in {r.dataset: r for r in runs}.values()}
    holding = [run for run in runs if found[run.dataset] is not None]
    if holding:
        run = the_one(holding, f"image {text}")
        image_id = found[run.dataset]
        assert image_id is not None
        return run, _accepted(run, image_id)
    if Path(text).is_file():
        return the_one(runs, f"image {text}"), Path(text)
    raise _unknown_image(runs, text)


def find_images(run: Run, images: ClassName | Sequence[ImageName]) -> NDArray[np.int64]:
    """Accepted images: all of a class (index, synset or label), or those of a list, by image_id or path."""
    if isinstance(images, (int, str)):
        return run.images.of_class(find_class(run, images).index)
    found = [find_image([run], image)[1] for image in images]
    for image in found:
        if isinstance(image, Path):
            raise UsageError(f"{image}: sets of images are of the dataset; name them by image_id or path")
    return np.array([image for image in found if not isinstance(image, Path)], np.int64)


def find_class(run: Run, name: ClassName) -> DatasetClass:
    """A class of the dataset by index, synset or label (labels without regard to case)."""
    classes = run.classes
    if not classes:
        raise UsageError(f"dataset {run.dataset} has no classes")
    text = str(name)
    if text.isascii() and text.isdigit():
        place = bisect.bisect_left(classes, int(text), key=lambda c: c.index)
        found = [c for c in classes[place : place + 1] if c.index == int(text)]
    else:
        found = [c for c in classes if c.synset == text or c.label.casefold() == text.casefold()]
    if not found:
        raise unknown("class", text, [c.label for c in classes])
    if len(found) > 1:
        choices = ", ".join(f"{c.index} ({c.synset})" for c in found)
        raise UsageError(f"class {text!r} is the label of several classes: give one of the indices {choices}")
    return found[0]


def _accepted(run: Run, image_id: int) -> int:
    known = run.images.accepted
    if image_id >= len(known):
        raise UsageError(f"image {image_id}: dataset {run.dataset} has image_ids 0 to {len(known) - 1}")
    if not known[image_id]:
        reasons = run.database.table(
            "SELECT reason FROM images WHERE dataset = ? AND image_id = ?", [run.dataset, image_id]
        )["reason"].to_pylist()
        raise UsageError(f"image {image_id} was rejected ({reasons[0] if reasons else 'no reason recorded'})")
    return image_id


def _by_path(run: Run, text: str) -> int | None:
    exact = run.rows("images", "image_id", "path = ?", [text])["image_id"].to_pylist()
    if exact:
        return int(exact[0])
    ending = run.rows("images", "image_id, path", "ends_with(path, ?)", [f"/{text}"], "ORDER BY image_id LIMIT 5")
    paths = ending["path"].to_pylist()
    if len(paths) > 1:
        raise UsageError(f"image {text!r} is the end of several paths: {', '.join(paths)}")
    return int(ending["image_id"][0].as_py()) if paths else None


def _unknown_image(runs: Sequence[Run], text: str) -> UsageError:
    """By edit distance in DuckDB: a dataset's paths need not all come into Python."""
    near: dict[str, None] = {}
    for run in {r.dataset: r for r in runs}.values():
        closest = "ORDER BY levenshtein(parse_filename(path), parse_filename(?)), image_id LIMIT 3"
        near |= dict.fromkeys(run.rows("images", "path", parameters=[text], last=closest)["path"].to_pylist())
    return UsageError(
        f"image {text!r} is no image_id, no path in the dataset and no file on disk; near: {', '.join(list(near)[:3])}"
    )


def _example(runs: Sequence[Run]) -> str:
    layer = next((layer for r in runs for layer in r.layers), None)
    return f"{layer.name}:0" if layer else "layer1.0.relu_1:17"


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
