"""Sources whose pictures are files on disk.

They are `folder:PATH`, and `package:demo`, the photographs that three installed packages contain.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.data.decode import SUFFIXES
from pipeline.data.imagenet import imagenet_labels, imagenet_synsets
from pipeline.data.source import ClassName, Entry, Source, class_names, in_order_of_class
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
        files = sorted(p.relative_to(root) for p in _pictures(root))
        if not files:
            raise UsageError(f"dataset folder {root} holds no pictures ({', '.join(SUFFIXES)})")
        classes = class_names(p.parts[0] for p in files if len(p.parts) > 1)
        return in_order_of_class(Entry(p.as_posix(), classes[p.parts[0]] if len(p.parts) > 1 else None) for p in files)

    def read(self, entry: Entry) -> bytes:
        return (Path(self.root) / entry.path).read_bytes()


class DemoSource(Source):
    """About forty real photographs that come with foolbox (from ImageNet), scikit-image and scikit-learn."""

    text, root = "package:demo", ""

    def __init__(self, name: str) -> None:
        self.name = name

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        return in_order_of_class(_demo_entries())

    def read(self, entry: Entry) -> bytes:
        return self.file(entry).read_bytes()

    def file(self, entry: Entry) -> Path:
        package, _, inside = entry.path.partition("/")
        return _package_folder(package) / inside


def _pictures(root: Path) -> list[Path]:
    def unreadable(error: OSError) -> None:
        raise UsageError(f"dataset folder {error.filename} cannot be read: {error.strerror}")

    pictures = []
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = {s: os.path.realpath(os.path.join(folder, s)) for s in subfolders if not s.startswith(".")}
        subfolders[:] = [s for s in real if real[s] not in seen]  # a link back to a folder above would never end
        seen |= set(real.values())
        pictures += [Path(folder, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    for path in pictures:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UsageError(f"file name {os.fsencode(path)!r} is not UTF-8: rename it") from None
    return pictures


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
