"""Sources whose pictures are files on disk.

They are `folder:PATH`, and `package:demo`, the photographs that three installed packages contain.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.data.decode import SUFFIXES
from pipeline.data.imagenet import imagenet_labels, imagenet_synsets
from pipeline.data.source import ClassName, Entry, Source, class_names, in_order_of_class, require_utf8
from store import regular_file
from store.errors import UsageError


class FolderSource(Source):
    """Every picture below a folder. The first folder of a picture's relative path is its class."""

    def __init__(self, text: str, root: str, name: str) -> None:
        self.text, self.root, self.name = text, root, name

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        root = Path(self.root)
        if not root.is_dir():
            raise UsageError(f"dataset folder {root} does not exist (relative paths count from {Path.cwd()})")
        files = sorted(p.relative_to(root) for p in _pictures(root, self.left_out))
        if not files:
            raise UsageError(f"dataset folder {root} holds no pictures ({', '.join(SUFFIXES)})")
        classes = class_names(p.parts[0] for p in files if len(p.parts) > 1)
        return in_order_of_class(Entry(p.as_posix(), classes[p.parts[0]] if len(p.parts) > 1 else None) for p in files)

    def read(self, entry: Entry) -> bytes:
        return regular_file.read(Path(self.root) / entry.path)


class DemoSource(Source):
    """About forty real photographs that come with foolbox (from ImageNet), scikit-image and scikit-learn."""

    text, root = "package:demo", ""

    def __init__(self, name: str) -> None:
        self.name = name

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        return in_order_of_class(_demo_entries())

    def read(self, entry: Entry) -> bytes:
        return regular_file.read(self.file(entry))

    def file(self, entry: Entry) -> Path:
        package, _, inside = entry.path.partition("/")
        return _package_folder(package) / inside


def _pictures(root: Path, left_out: Counter[str]) -> list[Path]:
    """Return the pictures below a folder. Links to folders are followed, unless they lead to a folder above themselves.

    What is left out is counted: files by their suffix, and whatever is neither a file nor a folder.
    """
    pictures: list[Path] = []
    # Folders to list, each with its real path and before it those of the folders through which it was reached.
    waiting: list[tuple[Path, tuple[str, ...]]] = [(root, (os.path.realpath(root),))]
    while waiting:
        folder, above = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                inside = list(listing)
        except OSError as error:
            raise UsageError(f"dataset folder {error.filename} cannot be read: {error.strerror}") from error
        for item in inside:
            kind = _kind(item)
            if kind == "folder":
                real = os.path.realpath(item.path) if item.is_symlink() else os.path.join(above[-1], item.name)
                if item.is_symlink() and any(_is_within(upper, real) for upper in above):
                    left_out["link(s) to a folder above themselves"] += 1
                else:
                    waiting.append((Path(item.path), (*above, real)))
            elif kind == "picture":
                require_utf8(item.path, f"dataset folder {root}")
                pictures.append(Path(item.path))
            elif kind:
                left_out[kind] += 1
    return pictures


def _kind(item: os.DirEntry[str]) -> str:
    """Return "folder", "picture", what else something in a folder is, or "" for a hidden file that is no picture."""
    try:
        is_folder, is_file = item.is_dir(), item.is_file()
        there = is_folder or is_file or os.path.exists(item.path)
    except OSError:  # a link that cannot be followed
        is_folder = is_file = there = False
    suffix = os.path.splitext(item.name)[1].lower()
    if item.name.startswith("."):
        return "hidden folder(s)" if is_folder else "hidden picture(s)" if suffix in SUFFIXES else ""
    if is_folder:
        return "folder"
    if there and not is_file:
        return "device(s), socket(s) or named pipe(s)"
    if suffix in SUFFIXES:  # if the picture is not there, the index says so
        return "picture"
    return "broken link(s)" if not there else suffix or "file(s) without a suffix"


def _is_within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


_SKIMAGE = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "moon.png",
    "motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip
_SKLEARN = ("china.jpg", "flower.jpg")


def _demo_entries() -> Iterable[Entry]:
    labels, synsets = imagenet_labels(), imagenet_synsets()
    for file in sorted((_package_folder("foolbox") / "data").glob("imagenet_*.jpg")):
        index = int(file.stem.rpartition("_")[2])  # the file's name ends with the number of its class
        yield Entry(f"foolbox/data/{file.name}", ClassName(index, labels[index], synsets[index]))
    yield from (Entry(f"skimage/data/{n}", None) for n in _SKIMAGE)
    yield from (Entry(f"sklearn/datasets/images/{n}", None) for n in _SKLEARN)


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"dataset package:demo needs {name}: pip install 'unitscope[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))
