"""Trace a network into a graph whose nodes have readable paths (`layer1.0.relu_1`, `inception4a.cat`)."""

import inspect
import math
import operator
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.compat import timm
from pipeline.compat.modules import attributes_kept, behaves_as_its_class
from pipeline.graph.nested import leaves
from pipeline.graph.ops import ELEMENTARY, has_known_forward
from store.errors import UsageError

_ELEMENTARY_TYPES = tuple(cls for classes, _ in ELEMENTARY for cls in classes)


@dataclass(frozen=True)
class Call:
    """The beginning or the end of a module's call in a trace. `path` is "" for the network itself.

    `values` are the tensors and numbers in its arguments or its result, and the nodes that compute them. `after` is the
    last node before this moment. `whole`: the module is a single node, so the trace has no calls inside it.
    """

    path: str
    begins: bool
    values: tuple[Any, ...]
    after: fx.Node
    whole: bool


@dataclass(frozen=True)
class Trace:
    """A traced network: the path of each node by its name, and the calls of modules in their order."""

    module: fx.GraphModule
    paths: dict[str, str]
    calls: tuple[Call, ...]

    @property
    def results(self) -> dict[str, str]:
        """The name of the node that is the result of a module's last call, by the module's path; of tensors alone."""
        ends = (call for call in self.calls if not call.begins and len(call.values) == 1 and call.path)
        return {call.path: call.values[0].name for call in ends if isinstance(call.values[0], fx.Node)}


class _Proxy(fx.Proxy):
    """A proxy whose `x += y` is recorded as it is, an operation in place; without that, fx records `x + y`."""

    def _in_place(self, operation: Callable[[Any, Any], Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)


_SIZES = frozenset({"shape", "ndim", "size", "dim", "ndimension", "numel", "nelement", "item", "dtype", "device"})
_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}  # names, as in the layers' paths


def _isinstance(value: Any, kinds: Any) -> bool:
    """`isinstance`, for which proxies are tensors unless they stand for sizes, as a network expects."""
    if type(value) in (fx.Proxy, _Proxy) and value.node not in value.tracer.sizes:
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        return Tensor in wanted or isinstance(value, kinds)
    return isinstance(value, kinds)


@contextmanager
def _proxies_are_tensors(network: nn.Module) -> Iterator[None]:
    """Replace `isinstance` by `_isinstance` in the Python files that define the forwards of a network's own classes."""
    scopes = {
        id(scope): scope
        for module in network.modules()
        if not has_known_forward(module) or "forward" in vars(module)
        for scope in [getattr(inspect.unwrap(module.forward), "__globals__", {})]
        if "isinstance" not in scope
    }
    try:
        for scope in scopes.values():
            scope["isinstance"] = _isinstance
        yield
    finally:
        for scope in scopes.values():
            scope.pop("isinstance", None)


class PathTracer(fx.Tracer):
    """An fx tracer that names each node after the module it ran in, and remembers which module could not be traced."""

    def __init__(
        self,
        leaf_types: tuple[type, ...],
        functions: tuple[Callable[..., Any], ...],
        whole: Collection[str],
        in_place: bool,
    ) -> None:
        # A network that uses torchvision has imported it by now. For others, the import would cost more than a second.
        vision = sys.modules.get("torchvision.ops")
        modules: Any = (math,) if vision is None else (math, vision)  # torch's annotation allows only one module
        super().__init__(autowrap_modules=modules, autowrap_functions=functions)
        whole_types = () if vision is None else (vision.Permute, vision.StochasticDepth)
        self.leaf_types = (*leaf_types, *_ELEMENTARY_TYPES, *whole_types)
        self.whole, self.in_place = whole, in_place
        self.inside = ""
        self.paths: dict[fx.Node, str] = {}
        self.calls: list[Call] = []
        self.sizes: set[fx.Node] = set()  # nodes that compute numbers and sizes, not tensors
        self.failed: str | None = None
        self.taken: set[str] = set()
        self.module_paths: set[str] = set()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.module_paths = {file_name(path).casefold() for path, _ in root.named_modules()}
        return super().trace(root, concrete_args)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # The network is called, not the forward of its class: it can have a forward of its own, and hooks.
        # Only the picture is an input. Options such as timm's attn_mask keep their defaults, so that
        # `if attn_mask is not None` takes the same branch as in the network.
        return lambda root, x: root(x), [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self.root:
            return False
        if module_qualified_name in self.whole or isinstance(m, torch.jit.ScriptModule):
            return True
        if not behaves_as_its_class(m):  # whatever its class, tracing shows what it does
            return False
        elementary = isinstance(m, self.leaf_types) and has_known_forward(m)
        return elementary or timm.is_activation(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        outer, self.inside = self.inside, path
        whole = self.is_leaf_module(m, path)
        self._note(path, True, (args, kwargs), whole)
        try:
            result = self.create_proxy("call_module", path, args, kwargs) if whole else forward(*args, **kwargs)
        except Exception:
            self.failed = self.failed or path
            raise
        finally:
            self.inside = outer
        self._note(path, False, result, whole)
        return result

    def _note(self, path: str, begins: bool, values: Any, whole: bool) -> None:
        found = tuple(x.node if issubclass(type(x), fx.Proxy) else x for x in leaves(values))
        self.calls.append(Call(path, begins, found, next(iter(reversed(self.graph.nodes))), whole))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self) if self.in_place else super().proxy(node)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self.paths[proxy.node] = self._path(proxy.node)
        if _is_size(proxy.node, self.sizes):
            self.sizes.add(proxy.node)
        return proxy

    def _path(self, node: fx.Node) -> str:
        if node.op == "call_module":
            base = str(node.target)
        else:
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
            target = _IN_PLACE.get(target, target)
            name = target.rsplit(".", 1)[-1].rstrip("_") or node.name
            base = f"{self.inside}.{name}" if self.inside else name
        base = candidate = file_name(base)
        repeat = 0
        while self._is_taken(candidate, own=repeat == 0 and node.op == "call_module"):
            repeat += 1
            candidate = f"{base}_{repeat}"
        self.taken.add(candidate.casefold())
        return candidate

    def _is_taken(self, candidate: str, own: bool) -> bool:
        key = candidate.casefold()  # names become file names, and some file systems ignore case
        return key in self.taken or (not own and key in self.module_paths)


def _is_size(node: fx.Node, sizes: Collection[fx.Node]) -> bool:
    """Whether a node asks a tensor for its size, or computes with sizes alone."""
    if node.op == "call_method":
        return node.target in _SIZES
    if node.target is getattr:
        return node.args[1] in _SIZES
    plain = getattr(node.target, "__module__", None) in ("_operator", "math", "builtins")
    return plain and bool(node.all_input_nodes) and all(source in sizes for source in node.all_input_nodes)


def file_name(path: str) -> str:
    """Return a path of a module or node with an underscore for each sign that a layer's name must not have."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", path)


def _leaves_of(network: nn.Module, family: str) -> tuple[tuple[type, ...], tuple[Callable[..., Any], ...]]:
    """Return timm's own leaf modules and functions if the network is timm's or uses its parts, else none."""
    return timm.leaves() if family == "timm" or timm.has_parts(network) else ((), ())


def trace(
    network: nn.Module, family: str, whole: Collection[str] = (), in_place: bool = False
) -> tuple[Trace, set[str]]:
    """Trace a network whose submodules `whole` become single nodes.

    `in_place`: record `x += y` as an operation in place. It matters only if something else shares the memory of x.

    Returns the trace, and `whole` with the submodules that cannot be traced. Raises UsageError if the network's own
    forward cannot be traced.
    """
    leaf_types, functions = _leaves_of(network, family)
    taken_whole = set(whole)
    before = set(vars(network))
    while True:
        tracer = PathTracer(leaf_types, functions, taken_whole, in_place)
        try:
            with _proxies_are_tensors(network), attributes_kept(network):
                graph = tracer.trace(network)
                constants = {name: value for name, value in vars(network).items() if name not in before}
            break
        except Exception as error:
            if not tracer.failed or tracer.failed in taken_whole:
                raise UsageError(
                    f"{type(network).__name__}.forward cannot be traced ({type(error).__name__}: "
                    f"{(str(error).splitlines() or ['no message'])[0]}); move the control flow into a submodule, which "
                    "then becomes a single node"
                ) from error
            taken_whole.add(tracer.failed)
    with attributes_kept(network):
        vars(network).update(constants)  # the tracer leaves its constants on the network, and the graph takes them
        module = fx.GraphModule(network, graph, type(network).__name__)
    return Trace(module, {node.name: path for node, path in tracer.paths.items()}, tuple(tracer.calls)), taken_whole
