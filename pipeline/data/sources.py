"""Where pictures come from: `folder:PATH` and `package:demo`. A source lists its entries and reads their bytes."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.models.labels import SYNSET, imagenet_labels, imagenet_synsets
from store.errors import UsageError

from .decode import SUFFIXES


@dataclass(frozen=True)
class ClassName:
    index: int
    label: str
    synset: str | None


@dataclass(frozen=True)
class Entry:
    """One file: its path relative to the source's root, and its class where the layout tells one."""

    path: str
    label: ClassName | None


@dataclass(frozen=True)
class Source:
    """An ordered list of pictures. `root` is as the config gave it; paths are read relative to it."""

    text: str
    name: str
    root: str
    entries: tuple[Entry, ...]

    def read(self, path: str) -> bytes:
        return self.file(path).read_bytes()

    def file(self, path: str) -> Path:
        return file_of(self.text, self.root, path)


def open_source(text: str, name: str = "") -> Source:
    """Lists a source's pictures, sorted by class, then path. Raises UsageError where there are none."""
    kind, _, rest = text.partition(":")
    if kind == "folder" and rest:
        entries = _folder_entries(Path(rest))
        name = name or re.sub(r"[^a-z0-9._-]+", "-", Path(rest).resolve().name.lower()).strip("-._") or "images"
        root = rest
    elif text == "package:demo":
        entries, name, root = _demo_entries(), name or "demo", ""
    else:
        raise UsageError(f"dataset source {text!r}: expected folder:PATH or package:demo")
    ordered = sorted(entries, key=lambda e: (e.label.index if e.label else 1 << 31, e.path))
    return Source(text, name, root, tuple(ordered))


def file_of(source: str, root: str, path: str) -> Path:
    """The file on disk of an image of a dataset, from the `source` and `root` that the store keeps."""
    if source == "package:demo":
        package, _, inside = path.partition("/")
        return _package_folder(package) / inside
    return Path(root) / path


def _folder_entries(root: Path) -> list[Entry]:
    if not root.is_dir():
        raise UsageError(f"dataset folder {root} does not exist (relative paths count from {Path.cwd()})")
    files = sorted(p.relative_to(root) for p in _pictures(root))
    if not files:
        raise UsageError(f"dataset folder {root} holds no pictures ({', '.join(SUFFIXES)})")
    names = sorted({p.parts[0] for p in files if len(p.parts) > 1})
    classes = class_names(names)
    return [Entry(p.as_posix(), classes[p.parts[0]] if len(p.parts) > 1 else None) for p in files]


def _pictures(root: Path) -> list[Path]:
    def unreadable(error: OSError) -> None:
        raise UsageError(f"dataset folder {error.filename} cannot be read: {error.strerror}")

    found = []
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = {s: os.path.realpath(os.path.join(folder, s)) for s in subfolders if not s.startswith(".")}
        subfolders[:] = [s for s in real if real[s] not in seen]  # a link back to a folder above would never end
        seen |= set(real.values())
        found += [Path(folder, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise UsageError(f"file name {os.fsencode(path)!r} is not UTF-8: rename it") from None
    return found


def class_names(folders: Sequence[str]) -> dict[str, ClassName]:
    """Classes of folder names: ImageNet synsets get their standard index, other folders their rank."""
    if folders and all(SYNSET.fullmatch(f) for f in folders):
        synsets = {s: i for i, s in enumerate(imagenet_synsets())}
        if all(f in synsets for f in folders):
            return {f: ClassName(synsets[f], imagenet_labels()[synsets[f]], f) for f in folders}
    return {f: ClassName(i, f, f if SYNSET.fullmatch(f) else None) for i, f in enumerate(sorted(folders))}


# Real photographs in the wheels of foolbox (ImageNet, the class in the name), scikit-image and scikit-learn.
_SKIMAGE = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "moon.png",
    "motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip
_SKLEARN = ("china.jpg", "flower.jpg")


def _demo_entries() -> list[Entry]:
    labels, synsets = imagenet_labels(), imagenet_synsets()
    entries = []
    for file in sorted((_package_folder("foolbox") / "data").glob("imagenet_*.jpg")):
        index = int(file.stem.rpartition("_")[2])
        entries.append(Entry(f"foolbox/data/{file.name}", ClassName(index, labels[index], synsets[index])))
    entries += [Entry(f"skimage/data/{n}", None) for n in _SKIMAGE]
    entries += [Entry(f"sklearn/datasets/images/{n}", None) for n in _SKLEARN]
    return entries


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"dataset package:demo needs {name}: pip install 'unitscope[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))
