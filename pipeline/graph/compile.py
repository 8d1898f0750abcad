"""`[compute] compile = true`: the tapped network through torch.compile, in one graph.

Taps become an operator of our own, opaque to the compiler: its mutable argument survives dead-code elimination, so the
graph has no breaks. Measured on a CPU it gains little over the folded eager pass.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from pipeline import graph
from pipeline.compat import inductor
from pipeline.graph import Layer
from store.errors import UsageError

Tap = Callable[[Layer, Tensor], None]


class _TapSet:
    """The layers of one compiled network and what takes their outputs; found again by number inside the graph.

    The network's own taps hold it, so it lives as long as they.
    """

    def __init__(self, layers: Sequence[Layer], tap: Tap) -> None:
        self.layers, self.tap = tuple(layers), tap
        self.number = next(_numbers)
        _sets[self.number] = self


_numbers = itertools.count()
_sets: weakref.WeakValueDictionary[int, _TapSet] = weakref.WeakValueDictionary()


@torch.library.custom_op("unitscope::tap", mutates_args=("state",))
def _tap(x: Tensor, state: Tensor, number: int, layer: int) -> None:
    """`state` is written in name alone, so that no compiler takes the call for dead."""
    taps = _sets[number]
    taps.tap(taps.layers[layer], x)


@_tap.register_fake
def _(x: Tensor, state: Tensor, number: int, layer: int) -> None:
    return None


def compiled(network: fx.GraphModule, layers: Sequence[Layer], tap: Tap) -> Callable[[Tensor], object]:
    """The network with taps, compiled at its first call (a minute or so)."""
    taps = _TapSet(layers, tap)
    places = {layer.name: place for place, layer in enumerate(layers)}
    state = torch.zeros(1, device=next(iter(network.parameters())).device)
    tapped = graph.with_taps(
        network, layers, lambda layer, x: torch.ops.unitscope.tap(x, state, taps.number, places[layer.name])
    )
    faster = inductor.compiled_whole(tapped)

    def run(x: Tensor) -> object:
        try:
            return faster(x)
        except inductor.compile_error() as error:
            first = str(error).strip().splitlines()[0]
            raise UsageError(f"[compute] compile = true: torch.compile failed ({first}): set it to false") from error

    return run
