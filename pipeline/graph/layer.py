"""A layer of a traced network: one node whose output has a channel axis, and how to lay that output out as NCHW."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a node's output maps to [N, C, H, W].

    `prefix` is the number of tokens before the patch grid. `only_prefix`: the layer is the first of these tokens alone.
    """

    channel_axis: int
    kind: str  # "nchw" | "nhwc" | "tokens" | "vector"
    prefix: int = 0
    only_prefix: bool = False


@dataclass(frozen=True)
class Layer:
    """One layer, with its receptive field in input pixels.

    Along each axis, position p of the map sees rf_size pixels, the first at rf_offset + p * rf_stride. These three are
    None if a position can see the whole picture, or if the field is unknown (`rf_global`). `signed`: values can be
    negative. `upper_bound` is None if no bound is proved.
    """

    index: int
    name: str
    node: str
    op: str
    channels: int
    height: int
    width: int
    signed: bool
    upper_bound: float | None
    rf_size: int | None
    rf_stride: int | None
    rf_offset: int | None
    rf_global: bool
    rf_gated: bool
    layout: Layout

    def to_nchw(self, x: Tensor) -> Tensor:
        """Return a view [N, C, H, W] of the node's output. NODE@prefix is the first prefix token, [N, C, 1, 1]."""
        layout = self.layout
        if layout.kind == "nchw":
            return x
        if layout.kind == "nhwc":
            return x.permute(0, 3, 1, 2)
        if layout.kind == "vector":
            return x[:, :, None, None]
        by_channel = x if layout.channel_axis == 1 else x.transpose(1, 2)
        if layout.only_prefix:
            return by_channel[:, :, :1, None]
        grid = by_channel[:, :, layout.prefix :]
        return grid.unflatten(2, self._grid(grid.shape[2]))

    def _grid(self, tokens: int) -> tuple[int, int]:
        if tokens == self.height * self.width:
            return self.height, self.width
        side = math.isqrt(tokens)  # the input size is not the traced one: assume a square picture
        return (side, side) if side * side == tokens else (1, tokens)
