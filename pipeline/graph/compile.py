"""`[compute] compile = true`: compile the network with its taps by torch.compile, in one graph.

Taps become a custom operator, which the compiler does not look into, so the graph has no breaks. The operator declares
a mutable argument, so dead-code elimination keeps it. Measured on a CPU, this gains little over the folded eager
network.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx

from pipeline import graph
from pipeline.compat import inductor
from pipeline.graph import Layer
from pipeline.runtime.processor import processor_kind
from store.errors import UsageError

Tap = Callable[[Layer, Tensor], None]


class _TapSet:
    """The layers of one compiled network and their tap, which the operator in the graph looks up by number.

    The network's taps hold a reference to it, so it lives as long as they do.
    """

    def __init__(self, layers: Sequence[Layer], tap: Tap) -> None:
        self.layers, self.tap = tuple(layers), tap
        self.number = next(_numbers)
        _sets[self.number] = self


_numbers = itertools.count()
_sets: weakref.WeakValueDictionary[int, _TapSet] = weakref.WeakValueDictionary()


@torch.library.custom_op("unitscope::tap", mutates_args=("state",))
def _tap(x: Tensor, state: Tensor, number: int, layer: int) -> None:
    """Pass x to the tap of a layer. `state` is only declared as written, so that no compiler removes the call."""
    taps = _sets[number]
    taps.tap(taps.layers[layer], x)


@_tap.register_fake
def _(x: Tensor, state: Tensor, number: int, layer: int) -> None:
    return None


def compiled(network: fx.GraphModule, layers: Sequence[Layer], tap: Tap) -> Callable[[Tensor], object]:
    """Return the network with taps as a function, which is compiled at its first call (about a minute).

    The function raises UsageError if torch.compile fails.
    """
    _separate_cache()
    taps = _TapSet(layers, tap)
    indices = {layer.name: index for index, layer in enumerate(layers)}
    state = torch.zeros(1, device=next(iter(network.parameters())).device)
    tapped = graph.with_taps(
        network, layers, lambda layer, x: torch.ops.unitscope.tap(x, state, taps.number, indices[layer.name])
    )
    faster = inductor.compiled_whole(tapped)

    def run(x: Tensor) -> object:
        try:
            return faster(x)
        except inductor.compile_error() as error:
            first = str(error).strip().splitlines()[0]
            raise UsageError(
                f"[compute] compile = true: torch.compile failed ({first}); set compile = false"
            ) from error

    return run


def _separate_cache() -> None:
    """Keep what the compiler caches apart by kind of processor, unless the environment says where it goes.

    Its default folder is one for all kinds. Headers that it had compiled for one instruction set were used for another
    (seen with ATEN_CPU_CAPABILITY), and gave values that were not finite.
    """
    kind = re.sub(r"[^a-z0-9]+", "-", processor_kind().lower()).strip("-")
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"torchinductor_{user}_{kind}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
