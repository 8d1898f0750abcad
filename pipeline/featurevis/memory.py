"""The memory that a batch of visualizations takes, and the largest batch that the machine's memory allows."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from pipeline.featurevis.renderer import Renderer
from pipeline.featurevis.transforms import sizes

SHARE = 0.25  # of free memory: the backward pass, the allocator and other work need the rest
MOST = 64  # larger batches are no faster


def bytes_of_a_picture(renderer: Renderer) -> int:
    """Measure the bytes, without weights, that a forward pass of one picture keeps for its backward pass.

    The picture has the largest size that the transforms can give it.
    """
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
        activations = renderer.network(x)
    del activations
    return sum(count for pointer, count in kept.items() if pointer not in weights)


def available(device: str) -> int:
    """Return the bytes of memory that are free on the device."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def proposed_batch(picture_bytes: int, free: int) -> int:
    """Return the largest power of two, at most 64, whose batch fits into a quarter of the `free` bytes; at least 1."""
    batch = 1
    while batch < MOST and 2 * batch * picture_bytes <= SHARE * free:
        batch *= 2
    return batch
