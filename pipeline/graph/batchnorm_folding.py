"""Fold batch norms into the convolutions before them, in float64."""

import copy
from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

from pipeline.compat.modules import CONVOLUTION_METHODS, is_hooked
from pipeline.compat.timm import is_same_padded
from pipeline.graph.ops import fused_activation
from pipeline.graph.surgery import attach, copied, replace_node


def fold_norms(module: fx.GraphModule, keep: Collection[str]) -> fx.GraphModule:
    """Return a network without the batch norms that follow a convolution. `keep` names convolutions to leave alone.

    The folded convolution takes the norm's node name, and the convolution's own name disappears. So a name means the
    same layer before and after. If the norm has an activation inside, the activation takes the norm's name.
    """
    fresh = copied(module)
    calls = Counter(id(_called(node, fresh)) for node in fresh.graph.nodes if node.op == "call_module")
    for node in list(fresh.graph.nodes):
        conv_node = _foldable(node, fresh, keep, calls)
        if conv_node is not None:
            _fold(fresh, conv_node, node)
    fresh.delete_all_unused_submodules()
    fresh.recompile()
    return fresh


def _called(node: fx.Node, module: fx.GraphModule) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_plain(conv: nn.Module) -> bool:
    """Whether a module is a convolution that computes exactly what its weight and settings say.

    It must have no hook and no forward of its own; weight standardisation has one, to change the weight at each call.
    timm's convolution with "same" padding is allowed. Padding, stride and dilation must not be single numbers.
    """
    if not isinstance(conv, nn.Conv2d) or is_hooked(conv) or vars(conv).keys() & CONVOLUTION_METHODS:
        return False
    if isinstance(conv.padding, int) or isinstance(conv.stride, int) or isinstance(conv.dilation, int):
        return False
    own = (getattr(type(conv), name) is not getattr(nn.Conv2d, name) for name in CONVOLUTION_METHODS)
    return not any(own) or is_same_padded(conv)


def _foldable(node: fx.Node, module: fx.GraphModule, keep: Collection[str], calls: Counter[int]) -> fx.Node | None:
    """Return the convolution that this norm can be folded into, or None.

    Both must be plain, the norm must be the convolution's only user, and the convolution must be called once.
    """
    norm = _called(node, module)
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.training or is_hooked(norm):
        return None
    # A norm with its own forward may not be affine. timm's BatchNormAct2d only adds an activation.
    plain = type(norm).forward is nn.BatchNorm2d.forward or type(norm).__name__ == "BatchNormAct2d"
    source = node.args[0] if node.args else None
    if not plain or not isinstance(source, fx.Node) or len(source.users) != 1 or source.name in keep:
        return None
    conv = _called(source, module)
    return source if conv is not None and calls[id(conv)] == 1 and is_plain(conv) else None


def _fold(module: fx.GraphModule, conv_node: fx.Node, norm_node: fx.Node) -> None:
    conv, norm = _called(conv_node, module), _called(norm_node, module)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    act = fused_activation(norm)
    name = attach(module, f"{norm_node.name}_folded", _folded(conv, norm))
    with module.graph.inserting_before(conv_node):  # its input may be changed in place before the norm
        folded = module.graph.call_module(name, conv_node.args, conv_node.kwargs)
        last = folded
        if act is not None:
            last = module.graph.call_module(attach(module, f"{name}_act", act), (folded,))
    replace_node(norm_node, last)
    module.graph.erase_node(conv_node)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    weight, bias = _folded_weights(conv, norm)
    if is_same_padded(conv) and any(_needs_padding_by_size(conv, axis) for axis in (0, 1)):
        # The padding must follow the picture's size, because visualizations use other sizes than scans.
        fused = copy.deepcopy(conv)
    else:
        reach = [(k - 1) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        padding = (reach[0] // 2, reach[1] // 2) if is_same_padded(conv) else conv.padding
        fused = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            (conv.stride[0], conv.stride[1]),
            padding if isinstance(padding, str) else (padding[0], padding[1]),
            (conv.dilation[0], conv.dilation[1]),
            conv.groups,
            padding_mode=conv.padding_mode,
            device="meta",
        )
    fused.weight = nn.Parameter(weight, requires_grad=False)
    fused.bias = nn.Parameter(bias, requires_grad=False)
    return fused.eval()


def _needs_padding_by_size(conv: nn.Conv2d, axis: int) -> bool:
    """Whether "same" padding is no fixed number: it is constant only at stride 1, and symmetric only if it is even."""
    return conv.stride[axis] != 1 or (conv.kernel_size[axis] - 1) * conv.dilation[axis] % 2 != 0


def _folded_weights(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        if conv.bias is not None:
            shift = shift + conv.bias.double() * scale
        weight = conv.weight.double() * scale[:, None, None, None]
        return weight.to(conv.weight.dtype).contiguous(), shift.to(conv.weight.dtype)
