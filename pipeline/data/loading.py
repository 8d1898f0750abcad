"""Loading: from pictures to batches of uint8 pixels, in order. Threads decode ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import BadImageError, open_image
from pipeline.runtime.timing import propagate_timing, timed

AHEAD = 3  # batches that are decoded at a time, ahead of the network


@dataclass(frozen=True)
class Batch:
    """One batch of pictures.

    `pixels` is uint8 [batch, channels, H, W]. Its first len(ids) rows are pictures; the others are zeros, which pad
    short batches. It is empty if no picture of the batch could be decoded.
    """

    ids: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    bad: tuple[tuple[int, str], ...]  # pictures that could not be decoded: image_id, reason


def batches(
    ids: Sequence[int],
    read: Callable[[int], bytes],
    pixels: Callable[..., NDArray[np.uint8]],
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[Batch]:
    """Yield batches of `batch_size` files in order, decoded in a pool. A file that cannot be decoded is left out.

    Batches are cut by position in `ids`, so that a bad file does not move other pictures into another batch.
    """

    @propagate_timing
    @timed("decode")
    def one(image_id: int) -> NDArray[np.uint8] | str:
        try:
            return pixels(open_image(read(image_id)))
        except BadImageError as error:
            return str(error)

    cuts = [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)]
    waiting: deque[tuple[Sequence[int], list[Future[NDArray[np.uint8] | str]]]] = deque()
    todo = iter(cuts)
    try:
        while True:
            while len(waiting) < AHEAD and (cut := next(todo, None)) is not None:
                waiting.append((cut, [pool.submit(one, i) for i in cut]))
            if not waiting:
                return
            cut, futures = waiting.popleft()
            yield _batch(cut, [f.result() for f in futures], batch_size)
    finally:
        for _, futures in waiting:
            for future in futures:
                future.cancel()


def _batch(ids: Sequence[int], decoded: list[NDArray[np.uint8] | str], batch_size: int) -> Batch:
    good = [(i, f) for i, f in zip(ids, decoded, strict=True) if not isinstance(f, str)]
    bad = tuple((int(i), f) for i, f in zip(ids, decoded, strict=True) if isinstance(f, str))
    if not good:
        return Batch(np.zeros(0, np.int64), np.zeros((0, 0, 0, 0), np.uint8), bad)
    pixels = pad_batch([array for _, array in good], batch_size)
    return Batch(np.array([i for i, _ in good], np.int64), pixels, bad)


def pad_batch(pictures: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
    """Stack pictures [channels, H, W] to a batch of `size`, filled up with zeros: uint8 [size, channels, H, W].

    Every batch of a run has one size, since the last bits of results depend on it.
    """
    batch = np.zeros((size, *pictures[0].shape), np.uint8)
    for row, picture in enumerate(pictures):
        batch[row] = picture
    return batch
