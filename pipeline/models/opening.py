"""Opens a model: `torchvision:NAME`, `timm:NAME` or `python:MODULE:FACTORY`, with its preprocessing and labels."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.data import imagenet
from pipeline.models import checked, efficientnet_lite, factory, labels, preprocessing, weights
from pipeline.models.preprocessing import Preprocess
from store.errors import UsageError, unknown

if TYPE_CHECKING:
    from pipeline.graph import Graph

_TIMM_SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")  # prefixes that timm itself understands
SLUG = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Model:
    """A network with its weights, preprocessing and labels.

    `network` is in eval mode, and its parameters are float32, on the CPU, and need no gradients. `labels` has one text
    per output. `label_space` is imagenet-1k if the labels are ImageNet's, else the model's name.
    """

    name: str
    source: str
    weights: str
    family: str  # torchvision, timm or python; it decides how the network is traced
    network: nn.Module
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    label_space: str

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return weights.digest(self.network)

    @functools.cached_property
    def graph(self) -> Graph:
        """The traced network, which was checked against the network itself. Its nodes are the layers.

        Raises UsageError if the network cannot be traced faithfully, or if a factory gave more or fewer labels than the
        network has outputs, where these are known.
        """
        from pipeline import graph

        shape = (1, self.preprocess.channels, self.preprocess.height, self.preprocess.width)
        kept = checked.key(self.source, self.digest, shape) if self.family in checked.FAMILIES else None
        known = checked.read(kept) if kept else None
        traced = graph.build(self.network, self.family, shape, known)
        if kept and known is None:
            checked.write(kept, traced.findings)
        outputs = traced.sizes().get(traced.logits) if traced.logits else None
        if self.family == "python" and self.labels and outputs:
            labels.check_number(self.labels, outputs, self.source)
        return traced


def open_model(source: str, weights: str | None = None, name: str | None = None) -> Model:
    """Open a model.

    `weights` is DEFAULT (the weights that the source provides), the name of a torchvision enum member, a pretrained tag
    of timm, a file with a state dict, `FILE#ENTRY` (one of several in a checkpoint), `package:NAME` (a file inside an
    installed package) or `random:SEED`. A file that exists goes before an enum member or tag of its name, whatever its
    suffix (.ckpt, .pth.tar). `name` is made from the source if it is not given. `timm:hf-hub:ORG/NAME` is passed on to
    timm. Raises UsageError if the source, weights or name cannot be used.
    """
    family, _, rest = source.partition(":")
    if family not in _OPENERS or not rest:
        raise UsageError(f"model source {source!r}: expected torchvision:NAME, timm:NAME or python:MODULE:FACTORY")
    weights = weights or "DEFAULT"
    network, preprocess, names = _OPENERS[family](rest, weights)
    name = name or re.sub(r"[^a-z0-9._-]+", "-", rest.rpartition(":")[2].lower())
    if not SLUG.fullmatch(name):
        raise UsageError(f"model name {name!r}: only a-z, 0-9, dot, underscore and hyphen, beginning with a-z or 0-9")
    network.eval()
    network.requires_grad_(False)
    space = imagenet.IMAGENET if names == imagenet.imagenet_labels() else name
    return Model(name, source, weights, family, network, preprocess, names, space)


_Opened = tuple[nn.Module, Preprocess, tuple[str, ...] | None]


def _open_torchvision(name: str, chosen: str) -> _Opened:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown("torchvision model", name, known)
    enum = models.get_model_weights(name)
    wanted = enum.DEFAULT
    if _is_name(chosen):
        if chosen not in enum.__members__:
            raise unknown(f"weights of torchvision:{name}", chosen, enum.__members__)
        wanted = enum[chosen]
        network = _downloading(lambda: models.get_model(name, weights=wanted), f"torchvision:{name} {chosen}")
    else:
        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with _seeded(chosen):
            network = models.get_model(name, weights=None, **extra)
        _load_other(network, chosen)
    return network, preprocessing.from_torchvision(wanted.transforms()), tuple(wanted.meta["categories"])


def _open_timm(name: str, chosen: str) -> _Opened:
    try:
        import timm
        from timm.data import resolve_data_config
    except ImportError:
        raise UsageError(f"timm:{name} needs timm: pip install 'unitscope[timm]'") from None
    hub = name.startswith(_TIMM_SOURCES)
    if not hub and not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models())
    if _is_name(chosen):
        if chosen != "DEFAULT" and hub:
            raise UsageError(f"weights {chosen!r}: timm:{name} has no tags: give DEFAULT, a file or random:SEED")
        if chosen != "DEFAULT":
            name = f"{name}.{chosen}"  # the way timm spells a pretrained tag
        network = _downloading(lambda: timm.create_model(name, pretrained=True), f"timm:{name}")
    else:
        with _seeded(chosen):  # the hub's models have their configuration there
            network = _downloading(lambda: timm.create_model(name), f"timm:{name}") if hub else timm.create_model(name)
        _load_other(network, chosen)
    config = resolve_data_config({}, model=network)
    embedded = chosen.replace("-", "_") == f"package:{efficientnet_lite.PACKAGE}"
    return network, efficientnet_lite.PREPROCESS if embedded else preprocessing.from_timm(config), _timm_labels(network)


def _timm_labels(network: nn.Module) -> tuple[str, ...] | None:
    """Return the labels in a timm network's configuration, which some on the hub have, or ImageNet's for 1000."""
    outputs = getattr(network, "num_classes", 0)
    named = (getattr(network, "pretrained_cfg", None) or {}).get("label_names")
    if isinstance(named, list | tuple) and len(named) == outputs and all(isinstance(label, str) for label in named):
        return tuple(named)
    return imagenet.imagenet_labels() if outputs == 1000 else None


def _open_python(target: str, chosen: str) -> _Opened:
    where = f"python:{target}"
    with _seeded(chosen):
        network, settings = factory.call(target)
        names = labels.labels_from(settings.pop("labels", None), where)
        preprocess = preprocessing.from_mapping(settings, where)
        shape = (1, preprocess.channels, preprocess.height, preprocess.width)
        network = factory.prepared(network, shape, where)  # seeded too: lazy modules draw their values here
    if chosen != "DEFAULT":
        _load_other(network, chosen)
    return network, preprocess, names


_OPENERS = {"torchvision": _open_torchvision, "timm": _open_timm, "python": _open_python}


def _is_name(chosen: str) -> bool:
    """Whether weights are DEFAULT, an enum member or a pretrained tag. A file of that name goes before all but DEFAULT.

    What looks like the name of a file is one, even if there is no such file.
    """
    if chosen == "DEFAULT":
        return True
    return not (
        any(sign in chosen for sign in ":/#") or chosen.endswith(weights.FILE_SUFFIXES) or weights.is_file(chosen)
    )


def _load_other(network: nn.Module, chosen: str) -> None:
    if chosen.startswith("random:"):
        return  # the network was initialized with this seed
    if chosen.startswith("package:"):
        package = chosen.removeprefix("package:")
        state = weights.read_state(weights.package_file(package))
        if package.replace("-", "_") == efficientnet_lite.PACKAGE:
            state = efficientnet_lite.to_timm(state, network.state_dict())
        weights.load(network, state, chosen)
        return
    weights.load_file(network, chosen)


class _seeded:  # noqa: N801
    """A context that seeds torch's generator, with SEED of `random:SEED` or 0, and restores its state at the end."""

    def __init__(self, chosen: str) -> None:
        self.seed = 0
        if chosen.startswith("random:"):
            text = chosen.removeprefix("random:")
            if not (text.isascii() and text.isdigit() and int(text) < 1 << 64):
                raise UsageError(f"weights {chosen!r}: random: is followed by a seed, e.g. random:0")
            self.seed = int(text)

    def __enter__(self) -> None:
        self.state = torch.random.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.random.set_rng_state(self.state)


def _downloading(make: Any, model_text: str) -> nn.Module:
    try:
        return make()
    except Exception as error:  # urllib, the hub's client and torch each raise exceptions of their own
        reason = factory.first_line(error)
        raise UsageError(
            f"weights of {model_text} could not be fetched ({reason}): give a file, package:NAME or random:SEED"
        ) from error
