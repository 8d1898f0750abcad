"""A layer of a traced network: one node whose output has a channel axis, and how to lay that output out as NCHW."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a node's output maps to [N, C, H, W].

    `prefix` is the number of tokens before the patch grid. `only_prefix`: the layer is the first of these tokens alone.
    `spatial`: the positions are places of the picture. `digits`: if these are not in the order of rows and columns (in
    windows, say), the sizes into which they split, and which of these comes first, second, ... in that order.
    """

    channel_axis: int
    kind: str  # "nchw" | "nhwc" | "tokens" | "vector"
    prefix: int = 0
    only_prefix: bool = False
    spatial: bool = True
    digits: tuple[tuple[int, int], ...] = ()


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
        """Return the node's output as [N, C, H, W]. NODE@prefix is the first prefix token, [N, C, 1, 1].

        It is a view, or a copy if the network has the positions in another order.
        """
        layout = self.layout
        if layout.digits:
            return self._in_order(x)
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

    @property
    def spatial(self) -> bool:
        """Whether positions of the map are places of the picture."""
        return self.layout.spatial

    def _in_order(self, x: Tensor) -> Tensor:
        positions = x.movedim(self.layout.channel_axis, 1).flatten(2)
        if self.layout.only_prefix:
            return positions[:, :, :1, None]
        positions = positions[:, :, self.layout.prefix :]
        sizes = [size for size, _ in self.layout.digits]
        if positions.shape[2] != math.prod(sizes):  # the input size is not the traced one
            return positions.unflatten(2, self._grid(positions.shape[2]))
        order = [2 + at for _, at in self.layout.digits]
        return positions.unflatten(2, sizes).permute(0, 1, *order).reshape(*x.shape[:1], -1, self.height, self.width)

    def _grid(self, tokens: int) -> tuple[int, int]:
        if tokens == self.height * self.width:
            return self.height, self.width
        side = math.isqrt(tokens)  # the input size is not the traced one: assume a square picture
        return (side, side) if side * side == tokens else (1, tokens)
