"""Trace a network, and compare the trace with the untouched network, call by call, on random pictures.

Tracing misses what Python decides on the way: whether a value is a tensor or has an attribute, whether `int(x)` raises,
a surrounding `torch.autocast`. So the untouched network runs on random pictures, and every argument and result of every
module's call is compared with what the traced network computes there; they must be the same bits. The module in which
they part first becomes a single node, which is called as it is. Then the network with its norms folded and its
convolutions arranged for a CPU is compared too; it may differ by rounding.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.compat.modules import attributes_kept, calls_through, patching
from pipeline.compat.tensors import writes
from pipeline.graph.analysis.shapes import not_running
from pipeline.graph.batchnorm_folding import fold_norms
from pipeline.graph.cpu.fusion import fused
from pipeline.graph.nested import leaves
from pipeline.graph.surgery import in_memory_format
from pipeline.graph.trace import Call, Trace, trace
from store.errors import Notice, UsageError

SMALL = 96  # a picture of another size has no fewer pixels along an edge, if the network's own size allows
CLOSE = 1e-4  # of the largest value of a tensor: more than rounding, less than any known fault
_ROUNDING = 100  # times the untouched network's own rounding


@dataclass(frozen=True)
class _Event:
    """The beginning or the end of a module's call: `marks` stand for the tensors and numbers it got or gave."""

    path: str
    begins: bool
    marks: tuple[Any, ...]
    whole: bool = False


@dataclass(frozen=True)
class _Run:
    """A batch of pictures, and the events of the untouched network on it: all, or only those of the network itself."""

    x: Tensor
    events: list[_Event]
    all_calls: bool


@dataclass(frozen=True)
class Findings:
    """How a network must be traced so that the trace computes what the network does.

    `whole`: paths of the submodules that are single nodes, because tracing fails or misses something there. `in_place`:
    `x += y` is recorded as it is, because something else shares the memory of x. `memory_format`: that of the folded
    and arranged network. `mixing`: path of the first node where a picture's values depend on the others of its batch.
    """

    whole: tuple[str, ...] = ()
    in_place: bool = False
    memory_format: torch.memory_format = torch.channels_last
    mixing: str = ""


def faithful_trace(network: nn.Module, family: str, input_shape: Sequence[int]) -> tuple[Trace, Findings]:
    """Trace a network so that the trace computes what the network does.

    Raises UsageError if the network cannot be traced, if the trace misses something in the network's own forward, or if
    the network gives other values each time.
    """
    with torch.no_grad(), _kept_random_state(), patching(), _unchanged(network), attributes_kept(network):
        runs = _untouched_runs(network, family, input_shape)
        _refuse_memory(network, runs[0].x)
        whole: set[str] = set()
        in_place = False
        while True:
            traced, whole = trace(network, family, whole, in_place)
            guilty = _first_unlike(network, traced, runs)
            if guilty is not None and not in_place:
                other, _ = trace(network, family, whole, in_place=True)
                in_place = _first_unlike(network, other, runs) != guilty
                if in_place:
                    continue
            memory_format = torch.channels_last
            if guilty is None:
                memory_format, guilty = _arranged(traced, runs[0].x)
            if guilty is None:
                outermost = tuple(path for path in sorted(whole) if not _within(path, whole))
                return traced, Findings(outermost, in_place, memory_format, _mixing(traced, runs[0].x))
            while guilty in whole:
                guilty = guilty.rpartition(".")[0]
            if not guilty:
                raise UsageError(
                    f"{type(network).__name__}.forward does something that tracing does not see (it may ask what type "
                    "or attributes a value has, or run under autocast), so its layers would have wrong values: move "
                    "that into a submodule, which then becomes a single node"
                )
            whole.add(guilty)


def _within(path: str, others: Collection[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def warn(network: nn.Module, findings: Findings) -> None:
    """Say what a person should know: which submodules have no layers inside, and where pictures of a batch mix."""
    whole = findings.whole
    if whole:
        inside = {id(p): p.numel() for path in whole for p in network.get_submodule(path).parameters()}
        share = 100 * sum(inside.values()) / max(sum(p.numel() for p in network.parameters()), 1)
        warnings.warn(
            "submodules that cannot be traced, or compute something else when traced, become single nodes, with no "
            f"layers inside: {', '.join(whole)} ({share:.0f} % of the parameters)",
            Notice,
            stacklevel=2,
        )
    if findings.mixing:
        warnings.warn(
            f"a picture's values depend on the other pictures of its batch, beginning at {findings.mixing}: they hold "
            "for this batch size and order of pictures alone",
            Notice,
            stacklevel=2,
        )


def _untouched_runs(network: nn.Module, family: str, input_shape: Sequence[int]) -> list[_Run]:
    """Run the untouched network on two pictures of another size, where it takes that, and on one of its own size.

    All calls are compared on the former, and the results on the latter. If it takes no other size, both are of its own.
    What a network caches does not reach from one run to the next. At the end it runs twice without that: what it draws
    at random, or changes from call to call, shows then.
    """
    runs: list[_Run] = []
    for size in _other_sizes(input_shape[2], input_shape[3]):
        pair = _pictures(network, 2, (input_shape[1], *size))
        try:
            runs.append(_Run(pair, _recorded(network, pair, 0), all_calls=True))
            break
        except Exception:  # a table of positions, windows or a linear layer fix the size
            continue
    own = _pictures(network, 1 if runs else 2, input_shape[1:])
    try:
        runs.append(_Run(own, _recorded(network, own, 1, all_calls=not runs), all_calls=not runs))
    except Exception as error:
        raise not_running(tuple(input_shape[1:]), error) from error
    x = runs[0].x
    with attributes_kept(network):
        first = _recorded_on(network, x, 2, all_calls=False)
        if _parting(first, _recorded_on(network, x, 3, all_calls=False)) is not None:
            parted = _parting(_recorded_on(network, x, 4), _recorded_on(network, x, 5))
            raise UsageError(_not_repeating(network, family, x, parted or ""))
    return runs


def _first_unlike(network: nn.Module, traced: Trace, runs: Sequence[_Run]) -> str | None:
    return next((path for run in runs if (path := _unlike(network, traced, run)) is not None), None)


def _unlike(network: nn.Module, traced: Trace, run: _Run) -> str | None:
    """Return the path of the module in which the trace parts from the untouched network, or None."""
    parted = _parting(run.events, _replayed(traced, run.x, run.all_calls))
    if parted is not None and not run.all_calls:
        parted = _parting(_recorded(network, run.x, 0), _replayed(traced, run.x))
    return parted


def _other_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return sizes to try: a quarter to a half of a large picture, or more than a small one; in steps of 32 pixels."""
    if min(height, width) <= SMALL:
        return [(height + 32, width + 32)]
    factors = (SMALL / min(height, width), 0.5)
    return [(_multiple(height * factor), _multiple(width * factor)) for factor in factors]


def _multiple(size: float) -> int:
    return max(round(size / 32), 1) * 32


def _pictures(network: nn.Module, count: int, shape: Sequence[int]) -> Tensor:
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(count)
    return torch.randn((count, *shape), generator=generator).to(device=like.device, dtype=like.dtype)


def _not_repeating(network: nn.Module, family: str, x: Tensor, parted: str) -> str:
    """Return the error for a network that gives other values each time; it names the node where they begin."""
    where = parted or f"{type(network).__name__}.forward"
    try:
        traced, _ = trace(network, family)
        values: list[dict[str, Any]] = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            values.append(_node_marks(traced.module, x))
        where = next(traced.paths.get(name, name) for name, mark in values[0].items() if values[1][name] != mark)
    except (UsageError, StopIteration):
        pass
    return (
        f"{type(network).__name__} gives other values for the same picture each time, beginning at {where}: turn off "
        "dropout, noise and what is kept between calls in the factory"
    )


# --- what the untouched network does -------------------------------------------------------------------------------


def _recorded(network: nn.Module, x: Tensor, seed: int, all_calls: bool = True) -> list[_Event]:
    """Return the events of the untouched network, or only its own. What it caches on itself is forgotten."""
    with attributes_kept(network):
        return _recorded_on(network, x, seed, all_calls)


def _recorded_on(network: nn.Module, x: Tensor, seed: int, all_calls: bool = True) -> list[_Event]:
    torch.manual_seed(seed)
    paths = {id(module): path for path, module in network.named_modules() if all_calls or not path}
    events: list[_Event] = []
    marks = _Marks()

    def around(module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = paths.get(id(module))
        if path is not None:
            events.append(_Event(path, True, marks.of(leaves((args, kwargs)))))
        result = call(module, *args, **kwargs)
        if path is not None:
            events.append(_Event(path, False, marks.of(leaves(result))))
        return result

    with calls_through(around):
        network(x.clone())
    return events


class _Marks:
    """The marks of values. Those of a tensor are kept while it lives unchanged: modules pass on what others gave."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[weakref.ref[Tensor], int, Any]] = {}

    def of(self, values: Iterator[Any]) -> tuple[Any, ...]:
        return tuple(self._of_tensor(value) if isinstance(value, Tensor) else _mark(value) for value in values)

    def _of_tensor(self, x: Tensor) -> Any:
        known = self.kept.get(id(x))
        if known is None or known[0]() is not x or known[1] != writes(x):
            known = self.kept[id(x)] = weakref.ref(x), writes(x), _mark(x)
        return known[2]


def _mark(value: Any) -> Any:
    """Return what is equal only for equal numbers, or tensors of the same shape, type and bits."""
    if not isinstance(value, Tensor):
        return repr(value)
    if value.layout != torch.strided or value.is_quantized:
        return repr(value)
    flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    digest = hashlib.sha1(flat.view(torch.uint8).numpy().data, usedforsecurity=False).digest()
    return tuple(value.shape), value.dtype, digest


# --- what the traced network does -----------------------------------------------------------------------------------


class _Replay(fx.Interpreter):
    """Run a graph, call `see(node, value)` after each node, and free values that nothing needs any more.

    `needed`: for some nodes, a later node until which their values are kept, whether it uses them or not.
    """

    def __init__(self, module: fx.GraphModule, see: Callable[[fx.Node, Any], None], needed: dict[fx.Node, fx.Node]):
        super().__init__(module, garbage_collect_values=False)
        self.see = see
        order = {node: i for i, node in enumerate(module.graph.nodes)}
        self.spent: dict[fx.Node, list[fx.Node]] = {}
        for node in module.graph.nodes:
            last = max([node, *node.users, needed.get(node, node)], key=order.__getitem__)
            self.spent.setdefault(last, []).append(node)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.env[n] = value
        self.see(n, value)
        for node in self.spent.get(n, ()):
            if node is not n:
                del self.env[node]
        return value


def _replayed(traced: Trace, x: Tensor, all_calls: bool = True) -> list[_Event]:
    """Return the events of the traced network, or only those of the network itself, in the order of the trace.

    If it fails where the untouched network did not, the events end there.
    """
    moments: dict[fx.Node, list[Call]] = {}
    needed: dict[fx.Node, fx.Node] = {}
    for call in (call for call in traced.calls if all_calls or not call.path):
        moments.setdefault(call.after, []).append(call)
        needed |= {value: call.after for value in call.values if isinstance(value, fx.Node)}
    events: list[_Event] = []
    marks = _Marks()

    def see(node: fx.Node, _: Any) -> None:
        for call in moments.get(node, ()):
            values = (replay.env[value] if isinstance(value, fx.Node) else value for value in call.values)
            found = marks.of(leaf for value in values for leaf in leaves(value))
            events.append(_Event(call.path, call.begins, found, call.whole))

    replay = _Replay(traced.module, see, needed)
    with contextlib.suppress(Exception):  # the events end in the call that fails, where the runs part
        replay.run(x.clone())
    return events


def _node_marks(module: fx.GraphModule, x: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {}
    marks = _Marks()
    _Replay(module, lambda node, value: found.__setitem__(node.name, marks.of(leaves(value))), {}).run(x.clone())
    return found


def _parting(untouched: Sequence[_Event], other: Sequence[_Event]) -> str | None:
    """Return the path of the module in which two runs part first, or None if they are the same throughout.

    In it, the runs call different modules, or call them with different values, or it gives another result though all
    calls inside it gave the same. What the untouched network calls inside a module that is `whole` is left out; if that
    gives another result for the same values, the runs part in the module around it.
    """
    inside: list[str] = [""]
    place = 0
    for theirs in other:
        ours = untouched[place] if place < len(untouched) else None
        place += 1
        same_place = ours is not None and (ours.path, ours.begins) == (theirs.path, theirs.begins)
        if ours is None or not same_place or ours.marks != theirs.marks:
            return inside[-2] if theirs.whole and not theirs.begins else inside[-1]
        if not theirs.begins:
            inside.pop()
            continue
        inside.append(theirs.path)
        if theirs.whole:
            place = _end_of_call(untouched, place)
    return None if place == len(untouched) else inside[-1]


def _end_of_call(events: Sequence[_Event], place: int) -> int:
    """Return the place of the event that ends the call which has begun just before `place`."""
    depth = 1
    while place < len(events):
        depth += 1 if events[place].begins else -1
        if not depth:
            break
        place += 1
    return place


# --- what the arranged network does ---------------------------------------------------------------------------------


def _arranged(traced: Trace, x: Tensor) -> tuple[torch.memory_format, str | None]:
    """Return the memory format in which the arranged network computes what it should: channels last if possible.

    If there is none, also the path of the module that holds the first node that is wrong.
    """
    guilty = None
    for memory_format in (torch.channels_last, torch.contiguous_format):
        try:
            guilty = _misarranged(traced, x, memory_format)
        except RuntimeError:  # something inside a module asks for another format
            continue
        if guilty is None:
            return memory_format, None
    return torch.contiguous_format, guilty or ""


def _misarranged(traced: Trace, x: Tensor, memory_format: torch.memory_format) -> str | None:
    """Return the path of the module that holds the first node that folding or arranging changed, or None.

    The results may differ by rounding: by CLOSE, or by _ROUNDING times what the untouched network's float32 is away
    from float64.
    """
    module = traced.module
    own = in_memory_format(copy.deepcopy(fold_norms(module, ())), memory_format)
    fast = fused(own, (), clips=True, memory_format=memory_format)
    old = {node.name: node for node in module.graph.nodes}
    last = next(iter(reversed(module.graph.nodes)))
    changed = {
        n.name for n in fast.graph.nodes if n.name in old and n.op == "call_module" and n.target != old[n.name].target
    }
    changed |= {node.name for node in last.all_input_nodes}
    wanted = _values(module, x, changed)
    with torch.inference_mode():
        found = _values(fast, x.contiguous(memory_format=memory_format), changed)
    far = [name for name in wanted if _distance(found[name], wanted[name]) > CLOSE * _largest(wanted[name])]
    if not far:
        return None
    try:
        exact = _values(copy.deepcopy(module).double(), x.double(), changed)
    except RuntimeError:  # constants of the network are float32
        exact = wanted
    for name in far:
        rounding = _ROUNDING * _distance(wanted[name], exact[name]) + CLOSE * _largest(exact[name])
        if _distance(found[name], exact[name]) > rounding:
            return traced.paths.get(name, "").rpartition(".")[0]
    return None


def _mixing(traced: Trace, x: Tensor) -> str:
    """Return the path of the first node where a picture's values change if it runs alone, or ""."""
    if len(x) < 2:
        return ""
    last = next(iter(reversed(traced.module.graph.nodes)))
    names = {node.name for node in last.all_input_nodes}
    if _first_mixing(traced, x, names):
        first = _first_mixing(traced, x, {node.name for node in traced.module.graph.nodes})
        return traced.paths.get(first, first)
    return ""


def _first_mixing(traced: Trace, x: Tensor, names: set[str]) -> str:
    together = _values(traced.module, x, names)
    alone = [_values(traced.module, part, names) for part in x.split(1)]
    for name, value in together.items():
        parts = [other[name] for other in alone]
        by_picture = value.ndim > 0 and all(part.shape == (1, *value.shape[1:]) for part in parts)
        if by_picture and _distance(torch.cat(parts), value) > CLOSE * _largest(value):
            return name
    return ""


def _values(module: fx.GraphModule, x: Tensor, names: set[str]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}

    def see(node: fx.Node, value: Any) -> None:
        if node.name in names and isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            kept[node.name] = value.detach().clone()

    _Replay(module, see, {}).run(x.clone())
    return kept


def _distance(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of two tensors; infinite if their shapes differ, 0 where `wanted` is not finite."""
    if found.shape != wanted.shape:
        return math.inf
    return _largest(found - wanted, where=wanted)


def _largest(x: Tensor, where: Tensor | None = None) -> float:
    """Return the largest absolute value where a tensor, or another, is finite; 0 if that is nowhere."""
    if not x.numel():
        return 0.0
    largest = float(x.abs().amax())
    if math.isfinite(largest):
        return largest
    finite = x[(x if where is None else where).isfinite()]
    return float(finite.abs().nan_to_num(math.inf).amax()) if finite.numel() else 0.0


@contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Raise UsageError if the network changes its own parameters or buffers in place while it runs."""
    before = {name: writes(x) for name, x in _tensors(network).items()}
    yield
    for name, x in _tensors(network).items():
        if writes(x) != before.get(name, writes(x)):
            raise _remembering(network, name)


def _refuse_memory(network: nn.Module, x: Tensor) -> None:
    """Raise UsageError if parameters or buffers that the network replaces when it runs depend on the picture.

    A table that depends on the picture's size alone (ConViT's) may be made at the first run.
    """
    before, made = _tensors(network), []
    for picture in (x, x.flip(-1)):
        with attributes_kept(network):
            network(picture.clone())
            made.append({name: y.clone() for name, y in _tensors(network).items() if y is not before.get(name)})
    for name, first in made[0].items():
        second = made[1].get(name)
        if second is None or first.shape != second.shape or not torch.equal(first, second):
            raise _remembering(network, name)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict((*network.named_parameters(), *network.named_buffers()))


def _remembering(network: nn.Module, name: str) -> UsageError:
    return UsageError(
        f"{type(network).__name__} changes {name} when it runs, so its values depend on the pictures before: "
        "run it once in the factory if that is how it is initialized, or turn that off"
    )


@contextmanager
def _kept_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield
