"""What a batch of visualizations takes of memory, and the batch that the machine's memory allows."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from pipeline.featurevis.renderer import Renderer
from pipeline.featurevis.transforms import sizes

SHARE = 0.25  # of what is free: the backward pass, the allocator and other work want the rest
MOST = 64  # more pictures at once are no faster


def bytes_of_a_picture(renderer: Renderer) -> int:
    """Bytes that a forward pass of one picture keeps for its backward pass, at the largest size it is moved to."""
    p, settings = renderer.network.preprocess, renderer.settings
    size = max(sizes(settings.chain, settings.canvas)) if renderer.input == "canvas" else (p.height, p.width)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    weights = {p.untyped_storage().data_ptr() for p in renderer.network.plain.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        x = torch.full((1, renderer.network.channels, *size), 0.5, device=renderer.network.device, requires_grad=True)
        found = renderer.network(x)
    del found
    return sum(count for place, count in kept.items() if place not in weights)


def available(device: str) -> int:
    """Bytes free on the device."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def proposed_batch(one: int, free: int) -> int:
    """The largest power of two whose batch fits into a share of what is free: from 1 to 64."""
    batch = 1
    while batch < MOST and 2 * batch * one <= SHARE * free:
        batch *= 2
    return batch
