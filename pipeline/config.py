"""A run's config: it is read from TOML into frozen dataclasses.

Every key but the `source` of [model] and of [dataset] has a default. An unknown key is an error.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tomli_w

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
    limit: int = 0  # images in total, spread evenly over the index; 0 = no limit
    limit_per_class: int = 0
    max_bad_fraction: float = 0.01


@dataclass(frozen=True)
class CalibrateConfig:
    images: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class ScanConfig:
    topk: int = 100
    lowest: int = 100  # weakest images kept per unit, in signed layers only
    batch_size: int = 16
    shard_size: int = 1024
    border: int = 0  # positions that are left out at each edge of a map


@dataclass(frozen=True)
class ExamplesConfig:
    count: int = 20
    quantiles: tuple[float, ...] = ()  # of each unit's values, around which six pictures are kept too
    size: int = 0  # short side of the stored pictures in pixels; 0 = the network's input size


@dataclass(frozen=True)
class VisualizeConfig:
    layers: Layers = "blocks"
    units_per_layer: int = 8  # the first units that are not dead; 0 = all
    kinds: tuple[str, ...] = ("channel",)
    directions: tuple[str, ...] = ("positive",)
    repeats: int = 1
    size: int = 128
    input: str = "model"
    steps: int = 512
    batch: int = 16  # on one thread, torch uses a faster 1 x 1 convolution from a batch of 16 on
    parameterization: str = "fft"
    color: str = "decorrelated"
    transforms: str = "default"
    learning_rate: float = 0.0  # 0 = the parameterization's default: 0.005 for cppn, 1 for maco, 0.05 for others
    seed: int = 0
    shard_size: int = 64  # pictures per shard on average over layers; shards have fewer if a step costs more


@dataclass(frozen=True)
class ConnectionsConfig:
    layers: Layers = "blocks"  # the layers whose inputs are found, among those of the run
    count: int = 50  # strongest inputs kept per unit


@dataclass(frozen=True)
class ComputeConfig:
    device: str = "auto"
    precision: str = "float32"  # docs/scanning.md says what the other precisions and `compile` change
    compile: bool = False
    workers: int = 1
    threads: int = 0  # threads per worker; 0 = the machine's cores, divided among the workers
    gpus: float = 0.0  # GPUs per Ray task, which may be a fraction; 0 = one if the device is a GPU


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    dataset: DatasetConfig
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    scan: ScanConfig = field(default_factory=ScanConfig)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    visualize: VisualizeConfig = field(default_factory=VisualizeConfig)
    connections: ConnectionsConfig = field(default_factory=ConnectionsConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)


CHOICES = {
    ("compute", "device"): ("auto", "cpu", "cuda"),
    ("compute", "precision"): ("float32", "bfloat16", "float16"),
    ("visualize", "input"): ("model", "canvas"),
    ("visualize", "kinds"): ("channel", "neuron", "diversity", "deepdream"),
    ("visualize", "directions"): ("positive", "negative"),
    ("visualize", "parameterization"): ("fft", "pixel", "laplacian_pyramid", "shared", "cppn", "maco"),
    ("visualize", "color"): ("decorrelated", "plain", "grayscale"),
    ("visualize", "transforms"): ("default", "none", "crop", "maco"),
}
MOST = 2**31 - 1  # of any number
AT_LEAST_ONE = {
    ("calibrate", "images"), ("scan", "topk"), ("scan", "batch_size"), ("scan", "shard_size"), ("examples", "count"),
    ("connections", "count"), ("visualize", "repeats"), ("visualize", "steps"), ("visualize", "batch"),
    ("visualize", "shard_size"), ("compute", "workers"),
}  # fmt: skip


def read_config(path: Path) -> Config:
    """Read a TOML file. Raises UsageError, which names the file, the key, the value and the values that are allowed."""
    try:
        body = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"config {path} does not exist: see configs/ for complete examples") from None
    except (ValueError, RecursionError, OSError) as error:  # TOMLDecodeError is a ValueError
        raise UsageError(f"config {path} is no readable TOML: {error}") from error
    return parse_config(body, str(path))


def parse_config(body: Mapping[str, Any], where: str) -> Config:
    hints = get_type_hints(Config)
    _check_names(where, "section", body, hints)
    sections = {}
    for name, section_class in hints.items():
        section = body.get(name, {})
        if not isinstance(section, Mapping):
            raise UsageError(f"{where}: {name} must be a section, [{name}]")
        sections[name] = _section(where, name, section_class, section)
    return Config(**sections)


def _section(where: str, name: str, section_class: Any, section: Mapping[str, Any]) -> Any:
    hints = get_type_hints(section_class)
    _check_names(f"{where}: [{name}]", "key", section, hints)
    for item in fields(section_class):
        if item.default is MISSING and not section.get(item.name):
            raise UsageError(f'{where}: [{name}] {item.name} is missing, e.g. {item.name} = "{_EXAMPLE[name]}"')
    may_be_empty = {item.name for item in fields(section_class) if item.default == ()}
    values = {
        key: () if value == [] and key in may_be_empty else _value(f"{where}: [{name}] {key}", hints[key], value)
        for key, value in section.items()
    }
    for key, value in values.items():
        _check_range(f"{where}: [{name}] {key}", (name, key), value)
    return section_class(**values)


_EXAMPLE = {"model": "torchvision:resnet50", "dataset": "folder:photos"}


def _check_names(where: str, noun: str, names: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in names:
        if key not in known:
            hint = did_you_mean(key, known) or f"known are {', '.join(known)}"
            raise UsageError(f"{where}: unknown {noun} {key!r}: {hint}")


def _value(where: str, hint: Any, value: Any) -> Any:
    if hint == Layers:
        hint = str if isinstance(value, str) else tuple[str, ...]
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        if not isinstance(value, list) or not value:
            raise UsageError(f"{where} = {value!r}: expected a list of {inner.__name__}")
        return tuple(_value(where, inner, item) for item in value)
    if isinstance(value, int) and abs(value) > MOST:
        raise UsageError(f"{where}: expected at most {MOST}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UsageError(f"{where} = {value!r}: expected {hint.__name__}")
    return value


def _check_range(where: str, key: tuple[str, str], value: Any) -> None:
    for item in value if isinstance(value, tuple) else (value,):
        if key in CHOICES and item not in CHOICES[key]:
            raise UsageError(f"{where} = {item!r}: expected one of {', '.join(CHOICES[key])}")
        if isinstance(item, float) and not math.isfinite(item):
            raise UsageError(f"{where} = {item!r}: expected a finite number")
        if isinstance(item, str) and not item.isprintable():
            raise UsageError(f"{where} = {item!r}: expected text without control characters")
        least = 1 if key in AT_LEAST_ONE else 0
        if isinstance(item, (int, float)) and item < least:
            raise UsageError(f"{where} = {item!r}: expected at least {least}")
    if key == ("connections", "count") and value > 32_767:
        raise UsageError(f"{where} = {value!r}: expected at most 32767")
    if key in (("scan", "topk"), ("scan", "lowest")) and value > 32_767:
        raise UsageError(f"{where} = {value!r}: expected at most 32767; the dense record holds the rest")
    if key == ("visualize", "size") and value < 16:
        raise UsageError(f"{where} = {value!r}: expected at least 16")
    if key == ("dataset", "max_bad_fraction") and value > 1:
        raise UsageError(f"{where} = {value!r}: expected a share from 0 to 1")
    if key == ("examples", "quantiles") and not all(0 <= q <= 1 for q in value):
        raise UsageError(f"{where} = {value!r}: expected shares from 0 to 1, as in [0.99, 0.9, 0.5]")
    if key[1] == "name" and value and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{,99}", value):
        raise UsageError(
            f"{where} = {value!r}: expected a slug of a-z, 0-9, dot, underscore and hyphen, of at most 100 characters"
        )


# Keys that change no result. They are not part of the fingerprint and of the stored config.
UNHASHED = {
    ("compute", "workers"), ("compute", "threads"), ("compute", "gpus"), ("model", "name"), ("dataset", "name"),
    ("dataset", "max_bad_fraction"),
}  # fmt: skip


def fingerprinted(config: Config, device: str) -> dict[str, dict[str, Any]]:
    """Return the keys that change results, by section, sorted. `device` is the device that "auto" was resolved to."""
    sections = asdict(config)
    sections["compute"]["device"] = device
    if not config.examples.quantiles:  # a key that older runs do not know: without it they can be gone on with
        del sections["examples"]["quantiles"]
    if config.connections == ConnectionsConfig():  # the same for a section
        del sections["connections"]
    return {
        name: {key: value for key, value in sorted(section.items()) if (name, key) not in UNHASHED}
        for name, section in sorted(sections.items())
    }


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return sections as TOML. Any value comes back from it as it was, but that a tuple is then a list."""
    return tomli_w.dumps(sections)
