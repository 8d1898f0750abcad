"""Find what a person names (run, unit, layer, image, class) in a store. A name that is not there is a UsageError."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from query import arguments
from query.record.run_tables import DatasetClass, Layer, Run
from query.record.unit import Unit
from store import unit_name
from store.errors import UsageError, did_you_mean, shortened, unknown
from store.layer_globs import matching
from store.unit_name import whole_number

ImageName = int | str | os.PathLike[str]
ClassName = int | str


def choose_runs(runs: Sequence[Run], model: str | None, dataset: str | None) -> list[Run]:
    """Return the runs of this model and dataset. None stands for any."""
    if not runs:
        raise UsageError(
            "the store has no finished run yet (its scan is not folded): run `unitscope run CONFIG --store STORE`"
        )
    for what, name, known in (
        ("model", model, {r.model for r in runs}),
        ("dataset", dataset, {r.dataset for r in runs}),
    ):
        if name is not None and arguments.text(what, name) not in known:
            raise unknown(what, name, sorted(known))
    chosen = [r for r in runs if model in (None, r.model) and dataset in (None, r.dataset)]
    if not chosen:
        raise unknown("run", f"{model}@{dataset}", [r.name for r in runs])
    return chosen


def the_one(runs: Sequence[Run], what: str) -> Run:
    """Return the only run there is. Raises UsageError, which lists the choices, if there are several."""
    if len(runs) > 1:
        choices = ", ".join(r.name for r in runs)
        raise UsageError(
            f"{what} is ambiguous among the runs {choices}: choose with model= and dataset= (--model, --dataset)"
        )
    return runs[0]


def find_unit(runs: Sequence[Run], text: str) -> Unit:
    """Find LAYER:CHANNEL or MODEL/LAYER:CHANNEL."""
    first = next((layer for r in runs for layer in r.layers), None)
    name = unit_name.parse_unit_name(arguments.spelled(text), f"{first.name}:0" if first else unit_name.EXAMPLE)
    if name.model:
        of_model = [r for r in runs if r.model == name.model]
        if not of_model:
            raise unknown("model", name.model, sorted({r.model for r in runs}))
        runs = of_model
    having = [r for r in runs if name.layer in r.by_name]
    if not having:
        raise unknown("layer", name.layer, dict.fromkeys(layer for r in runs for layer in r.by_name))
    run = the_one(having, f"unit {text}")
    layer = run.by_name[name.layer]
    unit_name.check_channel(layer.name, name.channel, layer.channels)
    return Unit(run, layer, name.channel)


def find_layer(run: Run, name: str) -> Layer:
    """Find a layer by its name."""
    if arguments.text("layer", name) not in run.by_name:
        raise unknown("layer", name, run.by_name)
    return run.by_name[name]


def find_layers(run: Run, globs: str | Sequence[str]) -> list[Layer]:
    """Find the layers that any glob matches, in the order of the run."""
    return [run.by_name[name] for name in matching(list(run.by_name), arguments.globs(globs))]


def units_of_layers(run: Run, globs: str | Sequence[str] | None) -> NDArray[np.int64]:
    """Return the rising unit indices of the layers that match, or of all layers if there are no globs."""
    if globs is None:
        return np.arange(run.units)
    return np.concatenate([np.arange(layer.start, layer.stop) for layer in find_layers(run, globs)])


def find_image(runs: Sequence[Run], image: ImageName, files: bool = True) -> tuple[Run, int | Path]:
    """Find the run and the image_id in its dataset, or the path of a picture file on disk.

    A name of digits alone is an image_id. Any other name is a path in the dataset, or the end of just one path there
    from a slash on, or else a file on disk, unless `files` is False because a stranger asks.
    """
    text = arguments.spelled(os.fspath(image) if isinstance(image, os.PathLike) else image)
    if isinstance(image, bool) or (isinstance(image, int) and image < 0):
        raise UsageError(f"image {image!r}: an image_id is 0 or more")
    if text.isascii() and text.isdigit():
        image_id = whole_number(text)
        run = the_one(runs, f"image {image_id}")
        return run, _accepted(run, image_id)
    by_dataset = {run.dataset: _by_path(run, text) for run in {r.dataset: r for r in runs}.values()}
    holding = [run for run in runs if by_dataset[run.dataset] is not None]
    if holding:
        run = the_one(holding, f"image {text}")
        found = by_dataset[run.dataset]
        assert found is not None
        return run, _accepted(run, found)
    if files and os.path.isfile(text):
        return the_one(runs, f"image {text}"), Path(text)
    raise _unknown_image(runs, text, files)


def find_images(run: Run, images: ClassName | Sequence[ImageName]) -> NDArray[np.int64]:
    """Find accepted images: all of a class (index, synset or label), or a list of them by image_id or path."""
    if isinstance(images, (int, str)):
        return run.images.of_class(find_class(run, images).index)
    if not isinstance(images, Iterable):
        raise UsageError(f"images {arguments.shown(images)}: expected a class, or a list of images")
    ids = []
    for name in images:
        _, image = find_image([run], name)
        if isinstance(image, Path):
            raise UsageError(f"{image}: sets of images are of the dataset; name them by image_id or path")
        ids.append(image)
    return np.array(ids, np.int64)


def find_class(run: Run, name: ClassName) -> DatasetClass:
    """Find a class of the dataset by index, synset or label. The case of a label does not matter."""
    classes = run.classes
    if not classes:
        raise UsageError(f"dataset {run.dataset} has no classes")
    text = arguments.spelled(name)
    if text.isascii() and text.isdigit():
        index = whole_number(text)
        row = bisect.bisect_left(classes, index, key=lambda c: c.index)
        matches = [c for c in classes[row : row + 1] if c.index == index]
    else:
        matches = []
    if not matches:  # a label can be a number too
        matches = [c for c in classes if c.synset == text or c.label.casefold() == text.casefold()]
    if not matches:
        raise unknown("class", text, [c.label for c in classes])
    if len(matches) > 1:
        choices = ", ".join(f"{c.index} ({c.synset})" for c in matches)
        raise UsageError(f"class {text!r} is the label of several classes: give one of the indices {choices}")
    return matches[0]


def _accepted(run: Run, image_id: int) -> int:
    """Return the image_id, or raise UsageError if there is no such image or it was rejected."""
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
    """Return the image_id of the path, or of the only path that ends with /text. None if there is no such path."""
    exact = run.rows("images", "image_id", "path = ?", [text])["image_id"].to_pylist()
    if exact:
        return int(exact[0])
    ending = run.rows("images", "image_id, path", "ends_with(path, ?)", [f"/{text}"], "ORDER BY image_id LIMIT 5")
    paths = ending["path"].to_pylist()
    if len(paths) > 1:
        raise UsageError(f"image {text!r} is the end of several paths: {', '.join(paths)}")
    return int(ending["image_id"][0].as_py()) if paths else None


def _unknown_image(runs: Sequence[Run], text: str, files: bool) -> UsageError:
    """Return the error that suggests the nearest file names, by edit distance.

    DuckDB finds them, so that the paths of a large dataset do not all come into Python.
    """
    near: dict[str, None] = {}
    for run in {r.dataset: r for r in runs}.values():
        closest = "ORDER BY levenshtein(parse_filename(path), parse_filename(?)), image_id LIMIT 3"
        near |= dict.fromkeys(run.rows("images", "path", parameters=[text], last=closest)["path"].to_pylist())
    hint = did_you_mean(text, near) or f"the nearest paths are {', '.join(list(near)[:3])}"
    nowhere = "no path in the dataset and no file on disk" if files else "and no path in the dataset"
    return UsageError(f"image {shortened(text)!r} is no image_id, {nowhere}: {hint}")
