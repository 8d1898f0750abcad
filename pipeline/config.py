"""A run's config: TOML in, frozen dataclasses out. Every key but two has a default; an unknown one is an error."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from store.errors import UsageError, did_you_mean

Layers = str | tuple[str, ...]  # "blocks", "all" or globs


@dataclass(frozen=True)
class ModelConfig:
    source: str
    weights: str = "DEFAULT"
    name: str = ""
    layers: Layers = "blocks"


@dataclass(frozen=True)
class DatasetConfig:
    source: str
    name: str = ""
    limit: int = 0  # images in all, spread evenly over the index; 0 = no limit
    limit_per_class: int = 0
    max_bad_fraction: float = 0.01


@dataclass(frozen=True)
class CalibrateConfig:
    images: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class ScanConfig:
    topk: int = 100
    lowest: int = 100  # of signed layers
    batch_size: int = 16
    shard_size: int = 1024
    border: int = 0  # positions left out at each edge of a map


@dataclass(frozen=True)
class ExamplesConfig:
    count: int = 20
    size: int = 0  # pixels of the stored pictures' short side; 0 = the network's input


@dataclass(frozen=True)
class VisualizeConfig:
    layers: Layers = "blocks"
    units_per_layer: int = 8  # the first that are not dead; 0 = all
    kinds: tuple[str, ...] = ("channel",)
    directions: tuple[str, ...] = ("positive",)
    repeats: int = 1
    size: int = 128
    input: str = "canvas"
    steps: int = 512
    batch: int = 16  # on one thread torch has a faster 1 x 1 convolution from 16 on
    parameterization: str = "fft"
    color: str = "decorrelated"
    transforms: str = "default"
    learning_rate: float = 0.0  # 0 = the parameterization's own: 0.05, of cppn 0.005, of maco 1
    seed: int = 0
    shard_size: int = 64  # pictures a shard, on average over layers: fewer where a step costs more


@dataclass(frozen=True)
class ComputeConfig:
    device: str = "auto"
    precision: str = "float32"  # docs/scanning.md has what the others and compile change
    compile: bool = False
    workers: int = 1
    threads: int = 0  # a worker's; 0 = the machine's cores shared out
    gpus: float = 0.0  # that a Ray task takes, in fractions too; 0 = one where the device is a GPU


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    dataset: DatasetConfig
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    scan: ScanConfig = field(default_factory=ScanConfig)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    visualize: VisualizeConfig = field(default_factory=VisualizeConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)


CHOICES = {
    ("compute", "device"): ("auto", "cpu", "cuda"),
    ("compute", "precision"): ("float32", "bfloat16", "float16"),
    ("visualize", "input"): ("canvas", "model"),
    ("visualize", "kinds"): ("channel", "neuron", "diversity", "deepdream"),
    ("visualize", "directions"): ("positive", "negative"),
    ("visualize", "parameterization"): ("fft", "pixel", "laplacian_pyramid", "shared", "cppn", "maco"),
    ("visualize", "color"): ("decorrelated", "plain", "grayscale"),
    ("visualize", "transforms"): ("default", "none", "crop", "maco"),
}
AT_LEAST_ONE = {
    ("calibrate", "images"), ("scan", "topk"), ("scan", "batch_size"), ("scan", "shard_size"), ("examples", "count"),
    ("visualize", "repeats"), ("visualize", "steps"), ("visualize", "batch"), ("visualize", "shard_size"),
    ("compute", "workers"),
}  # fmt: skip


def read_config(path: Path) -> Config:
    """Reads a TOML file. Raises UsageError that names the file, the key, what was found and what is allowed."""
    try:
        body = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"config {path} does not exist: complete ones are in configs/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"config {path} is no readable TOML: {error}") from error
    return parse_config(body, str(path))


def parse_config(body: Mapping[str, Any], where: str) -> Config:
    hints = get_type_hints(Config)
    _check_names(where, "section", body, hints)
    sections = {}
    for name, kind in hints.items():
        found = body.get(name, {})
        if not isinstance(found, Mapping):
            raise UsageError(f"{where}: {name} must be a section, [{name}]")
        sections[name] = _section(where, name, kind, found)
    return Config(**sections)


def _section(where: str, name: str, kind: Any, found: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    _check_names(f"{where}: [{name}]", "key", found, hints)
    for item in fields(kind):
        if item.default is MISSING and not found.get(item.name):
            raise UsageError(f'{where}: [{name}] {item.name} is missing, e.g. {item.name} = "{_EXAMPLE[name]}"')
    values = {key: _value(f"{where}: [{name}] {key}", hints[key], value) for key, value in found.items()}
    for key, value in values.items():
        _check_range(f"{where}: [{name}] {key}", (name, key), value)
    return kind(**values)


_EXAMPLE = {"model": "torchvision:resnet50", "dataset": "folder:photos"}


def _check_names(where: str, what: str, found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in found:
        if key not in known:
            hint = did_you_mean(key, known) or f"known are {', '.join(known)}"
            raise UsageError(f"{where}: unknown {what} {key!r}: {hint}")


def _value(where: str, hint: Any, value: Any) -> Any:
    if hint == Layers:
        hint = str if isinstance(value, str) else tuple[str, ...]
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if isinstance(value, list) and value and all(isinstance(v, inner) for v in value):
            return tuple(value)
        raise UsageError(f"{where} = {value!r}: expected a list of {inner.__name__}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"{where} = {value!r}: expected {hint.__name__}")
    return value


def _check_range(where: str, key: tuple[str, str], value: Any) -> None:
    for one in value if isinstance(value, tuple) else (value,):
        if key in CHOICES and one not in CHOICES[key]:
            raise UsageError(f"{where} = {one!r}: expected one of {', '.join(CHOICES[key])}")
        if isinstance(one, float) and not math.isfinite(one):
            raise UsageError(f"{where} = {one!r}: expected a finite number")
        least = 1 if key in AT_LEAST_ONE else 0
        if isinstance(one, (int, float)) and one < least:
            raise UsageError(f"{where} = {one!r}: expected at least {least}")
    if key in (("scan", "topk"), ("scan", "lowest")) and value > 32_767:
        raise UsageError(f"{where} = {value!r}: expected at most 32767; the dense record holds the rest")
    if key == ("visualize", "size") and value < 16:
        raise UsageError(f"{where} = {value!r}: expected at least 16")
    if key == ("dataset", "max_bad_fraction") and value > 1:
        raise UsageError(f"{where} = {value!r}: expected a share from 0 to 1")
    if key[1] == "name" and value and not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", value):
        raise UsageError(f"{where} = {value!r}: expected a slug of a-z, 0-9, dot, underscore and hyphen")


# Keys that change no result: kept out of the fingerprint and of the stored config.
UNHASHED = {
    ("compute", "workers"), ("compute", "threads"), ("compute", "gpus"), ("model", "name"), ("dataset", "name"),
    ("dataset", "max_bad_fraction"),
}  # fmt: skip


def fingerprinted(config: Config, device: str) -> dict[str, dict[str, Any]]:
    """The keys that change results, by section, sorted; `device` is what "auto" came to."""
    sections = asdict(config)
    sections["compute"]["device"] = device
    return {
        name: {key: value for key, value in sorted(section.items()) if (name, key) not in UNHASHED}
        for name, section in sorted(sections.items())
    }


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items()), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
