"""The axes of a tensor, each as an ordered product of parts of the batch, the channels, and the map's rows and columns.

A reshape splits and joins axes: a network cuts its map into windows, moves these into the batch, flattens them to
tokens, and undoes all this later. Each part remembers which digits of an index it holds, so that the whole is known
again when its parts come together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

PLACES = "hw"


@dataclass(frozen=True)
class Part:
    """Some digits of an index along n (batch), c (channels), h or w (rows or columns of the picture's map).

    The index is the sum over its parts of digit * stride, where 0 <= digit < size, and runs below `total`. `shift`: by
    how much the index has been rolled.
    """

    letter: str
    size: int
    stride: int
    total: int
    shift: int = 0

    def coarser(self, factor: int) -> "Part":
        if self.stride == 1:
            return replace(self, size=self.size // factor, total=self.total // factor)
        return replace(self, stride=self.stride // factor, total=self.total // factor)

    @property
    def whole(self) -> bool:
        return self.size == self.total


@dataclass(frozen=True)
class Axis:
    """The parts of an axis, the most significant first; none if unknown. `prefix`: the tokens that come before them."""

    parts: tuple[Part, ...] = ()
    prefix: int = 0

    @property
    def letters(self) -> str:
        return "".join(sorted({part.letter for part in self.parts}))

    @property
    def of_places(self) -> bool:
        return bool(self.parts) and all(part.letter in PLACES for part in self.parts)

    def coarser(self, letter: str, factor: int) -> "Axis":
        """Return the axis after the lowest digit of a letter's index has become smaller by a factor."""
        return replace(
            self, parts=tuple(part.coarser(factor) if part.letter == letter else part for part in self.parts)
        )

    @property
    def size(self) -> int:
        return self.prefix + prod(part.size for part in self.parts)


UNKNOWN = Axis()


def whole(letter: str, size: int) -> Axis:
    return Axis((Part(letter, size, 1, size),))


def rolled(axis: Axis, shift: int) -> Axis:
    if len(axis.parts) != 1 or not axis.parts[0].whole or axis.prefix:
        return UNKNOWN
    part = axis.parts[0]
    return Axis((replace(part, shift=(part.shift + shift) % part.total),))


def grid(axes: Iterable[Axis]) -> tuple[int, int] | None:
    """Return the height and width of the map whose positions these axes hold together, in whatever order.

    None if digits of a row or a column are missing or there twice. The lowest may be missing, which makes a coarser
    map. Digits that were joined to the channels do not count.
    """
    parts = [part for axis in axes if "c" not in axis.letters for part in axis.parts]
    sizes = [_length(sorted((p for p in parts if p.letter == letter), key=lambda p: -p.stride)) for letter in PLACES]
    return (sizes[0], sizes[1]) if sizes[0] and sizes[1] else None


def _length(parts: Sequence[Part]) -> int:
    """Return how many indices the parts of one letter tell apart, or 0 if a digit above the lowest is missing."""
    left = parts[0].total if parts else 0
    for part in parts:
        if part.shift or part.stride * part.size != left:
            return 0
        left = part.stride
    return parts[0].total // left if parts else 0


@dataclass(frozen=True)
class Axes:
    """The axes of a tensor."""

    axes: tuple[Axis, ...]

    @cached_property
    def roles(self) -> str:
        """One letter per axis."""
        return "".join(self._role(axis) for axis in self.axes)

    @cached_property
    def places(self) -> tuple[int, int] | None:
        """The height and width of the map whose positions the axes hold, in whatever order; None if not all."""
        return grid(self.axes)

    @property
    def prefix(self) -> int:
        return max((axis.prefix for axis in self.axes), default=0)

    @property
    def known(self) -> int:
        return len(self.roles) - self.roles.count("?")

    def put(self, at: int, axis: Axis) -> "Axes":
        """Return these axes with another one at a place. The letters n and c stand for one axis at most."""
        letters = axis.letters if axis.letters in ("n", "c") else ""
        others = [UNKNOWN if letters and other.letters == letters else other for other in self.axes]
        others[at] = axis
        return Axes(tuple(others))

    def fitted(self, shape: Sequence[int]) -> "Axes":
        """Return these axes after an operation that changes sizes at most, such as a pooling or a padding."""
        result = self
        for at, size in enumerate(shape):
            axis = result.axes[at]
            if axis.parts and axis.size != size:
                result = result._resized(at, size)
        return result

    def _resized(self, at: int, size: int) -> "Axes":
        axis = self.axes[at]
        part = axis.parts[0]
        if len(axis.parts) > 1 or axis.prefix or part.shift or part.letter == "n":
            return self.put(at, UNKNOWN)
        if part.whole:
            return self.put(at, whole(part.letter, size))
        if part.letter not in PLACES or part.stride > 1 or part.size % size:
            return self.put(at, UNKNOWN)
        # pooled inside a window: the whole map is coarser by as much
        return Axes(tuple(other.coarser(part.letter, part.size // size) for other in self.axes))

    def _role(self, axis: Axis) -> str:
        if axis.prefix or (axis.of_places and len(axis.parts) > 1):
            return "t"
        if len(axis.parts) != 1:
            return "?"
        part = axis.parts[0]
        if part.letter in "nc":
            return part.letter if part.whole and [a.letters for a in self.axes].count(part.letter) == 1 else "?"
        alone = sum(part.letter in other.letters and other.of_places for other in self.axes) == 1
        return part.letter if alone and not part.shift and part.stride * part.size == part.total else "t"


def unknown(rank: int) -> Axes:
    return Axes((UNKNOWN,) * rank)


def batch_only(node_axes: Axes, rank: int) -> Axes:
    return Axes((*node_axes.axes[: min(rank, 1)], *(UNKNOWN,) * (rank - 1)))


def regrouped(axes: Sequence[Axis], before: Sequence[int], after: Sequence[int]) -> list[Axis]:
    """Return the axes after a reshape from the sizes `before` to the sizes `after`."""
    items: list[tuple[int, Axis]] = []  # what cannot be split further without knowing its parts: (size, axis)
    for axis, size in zip(axes, before, strict=True):
        if axis.parts and not axis.prefix:
            items += [(part.size, Axis((part,))) for part in axis.parts]
        else:
            items.append((size, axis))
    result: list[Axis] = []
    queue = items[::-1]
    for at, size in enumerate(after):
        taken, queue_left = _take(queue, size)
        if taken is None:  # sizes that do not divide: what follows is unknown
            return result + [UNKNOWN] * (len(after) - at)
        queue = queue_left
        result.append(_joined(taken))
    return result


def _take(queue: list[tuple[int, Axis]], size: int) -> tuple[list[tuple[int, Axis]] | None, list[tuple[int, Axis]]]:
    """Take items of this product from the end of a queue, splitting the last one. Returns None if that cannot be."""
    queue, taken, need = list(queue), [], size
    if size == 1:
        return ([queue.pop()] if queue and queue[-1][0] == 1 else []), queue
    while need > 1:
        if not queue:
            return None, queue
        have, axis = queue.pop()
        if have == 1:
            continue
        if need % have == 0:
            taken.append((have, axis))
            need //= have
        elif have % need == 0:
            high, low = _split(axis, need, have // need)
            taken.append((need, high))
            queue.append((have // need, low))
            need = 1
        else:
            return None, queue
    return taken, queue


def _split(axis: Axis, high: int, low: int) -> tuple[Axis, Axis]:
    if len(axis.parts) != 1 or axis.prefix:
        return UNKNOWN, UNKNOWN
    part = axis.parts[0]
    return Axis((replace(part, size=high, stride=part.stride * low),)), Axis((replace(part, size=low),))


def _joined(items: Sequence[tuple[int, Axis]]) -> Axis:
    if len(items) == 1:
        return items[0][1]
    parts: list[Part] = []
    for _, axis in items:
        if len(axis.parts) != 1 or axis.prefix:
            return UNKNOWN
        part = axis.parts[0]
        if parts and _continues(parts[-1], part):
            last = parts[-1]
            parts[-1] = replace(part, size=last.size * part.size)
        else:
            parts.append(part)
    return Axis(tuple(parts))


def _continues(part: Part, lower: Part) -> bool:
    """Whether a part holds the digits right above those of another part of the same index."""
    same = (part.letter, part.total, part.shift) == (lower.letter, lower.total, lower.shift)
    return same and part.stride == lower.stride * lower.size
