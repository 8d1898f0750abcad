"""Trace a network into a graph whose nodes have readable paths (`layer1.0.relu_1`, `inception4a.cat`)."""

import math
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from pipeline.compat import timm
from pipeline.graph.ops import ELEMENTARY
from store.errors import UsageError

_ELEMENTARY_TYPES = tuple(cls for classes, _ in ELEMENTARY for cls in classes)


class PathTracer(fx.Tracer):
    """An fx tracer that names each node after the module it ran in, and remembers which module could not be traced."""

    def __init__(self, leaf_types: tuple[type, ...], functions: tuple[Callable[..., Any], ...], whole: set[str]):
        # A network that uses torchvision has imported it by now. For others, the import would cost more than a second.
        vision = sys.modules.get("torchvision.ops")
        modules: Any = (math,) if vision is None else (math, vision)  # torch's annotation allows only one module
        super().__init__(autowrap_modules=modules, autowrap_functions=functions)
        whole_types = () if vision is None else (vision.Permute, vision.StochasticDepth)
        self.leaf_types = (*leaf_types, *_ELEMENTARY_TYPES, *whole_types)
        self.whole = whole
        self.inside = ""
        self.paths: dict[fx.Node, str] = {}
        self.failed: str | None = None
        self.taken: set[str] = set()
        self.module_paths: set[str] = set()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.module_paths = {_file_name(path).casefold() for path, _ in root.named_modules()}
        return super().trace(root, concrete_args)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # Only the picture is an input. Options such as timm's attn_mask keep their defaults, so that
        # `if attn_mask is not None` takes the same branch as in the network.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self.whole
            or isinstance(m, self.leaf_types)
            or timm.is_activation(m)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        outer, self.inside = self.inside, path
        try:
            if self.is_leaf_module(m, path):
                return self.create_proxy("call_module", path, args, kwargs)
            return forward(*args, **kwargs)
        except Exception:
            self.failed = self.failed or path
            raise
        finally:
            self.inside = outer

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self.paths[proxy.node] = self._path(proxy.node)
        return proxy

    def _path(self, node: fx.Node) -> str:
        if node.op == "call_module":
            base = str(node.target)
        else:
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
            name = target.rsplit(".", 1)[-1].rstrip("_") or node.name
            base = f"{self.inside}.{name}" if self.inside else name
        base = candidate = _file_name(base)
        repeat = 0
        while self._is_taken(candidate, own=repeat == 0 and node.op == "call_module"):
            repeat += 1
            candidate = f"{base}_{repeat}"
        self.taken.add(candidate.casefold())
        return candidate

    def _is_taken(self, candidate: str, own: bool) -> bool:
        key = candidate.casefold()  # names become file names, and some file systems ignore case
        return key in self.taken or (not own and key in self.module_paths)


def _file_name(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", path)


def _leaves_of(network: nn.Module, family: str) -> tuple[tuple[type, ...], tuple[Callable[..., Any], ...]]:
    """Return timm's own leaf modules and functions if the network is timm's or uses its parts, else none."""
    return timm.leaves() if family == "timm" or timm.has_parts(network) else ((), ())


def trace(network: nn.Module, family: str) -> tuple[fx.GraphModule, dict[str, str]]:
    """Return the traced network, and the path of each node by its name.

    Submodules that cannot be traced become single nodes, with a warning. Raises UsageError if the network's own forward
    cannot be traced.
    """
    leaf_types, functions = _leaves_of(network, family)
    whole: set[str] = set()
    before = set(vars(network))
    while True:
        tracer = PathTracer(leaf_types, functions, whole)
        try:
            graph = tracer.trace(network)
            break
        except Exception as error:
            if not tracer.failed or tracer.failed in whole:
                class_name = type(network).__name__
                raise UsageError(
                    f"{class_name}.forward cannot be traced ({type(error).__name__}: {str(error).splitlines()[0]}); "
                    "move the control flow into a submodule, which then becomes a single node"
                ) from error
            whole.add(tracer.failed)
    if whole:
        warnings.warn(
            f"these submodules cannot be traced and become single nodes: {', '.join(sorted(whole))}", stacklevel=2
        )
    module = fx.GraphModule(network, graph, type(network).__name__)
    for name in set(vars(network)) - before:  # the tracer leaves its constants on the network
        if isinstance(getattr(network, name), Tensor):
            delattr(network, name)
    return module, {node.name: path for node, path in tracer.paths.items()}
