"""What an objective is, and how objectives are added, subtracted and multiplied.

After Lucid, https://github.com/tensorflow/lucid/blob/master/lucid/optvis/objectives.py; here a batch gives one number
per picture instead of one in all, so that pictures rendered together do not affect each other unless an objective
says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from store.errors import UsageError

INPUT = "input"  # the name of the pictures themselves, before the transforms


@dataclass(frozen=True)
class Activations:
    """What an objective reads: `T("layer")` is [n, C, H, W], `T("input")` the pictures in 0..1 before the transforms.

    `references`: the same for the reference pictures, which are only compared with. `labels`: the names of the model's
    classes, if it has any.
    """

    layers: Mapping[str, Tensor]
    references: Mapping[str, Tensor] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None

    def __call__(self, name: str) -> Tensor:
        return self.layers[name]

    def reference(self, name: str) -> Tensor:
        """Return the same for the reference pictures. Raises UsageError if there are none."""
        if name not in self.references:
            raise UsageError("this objective compares with reference pictures: give references=")
        return self.references[name]


Measure = Callable[[Activations], Tensor]
Text = str | tuple[str, ...]  # one for all pictures, or one per picture


@dataclass(frozen=True)
class Objective:
    """`measure` computes one number per picture, [n], from the activations of `layers`.

    `text`: what the objective is, for all pictures or for each. A picture's random start depends on its text.
    `mixes`: whether a picture's number also depends on the other pictures of its group.
    """

    layers: tuple[str, ...]
    text: Text
    measure: Measure
    mixes: bool = False

    def __call__(self, activations: Activations) -> Tensor:
        return self.measure(activations)

    @property
    def pictures(self) -> int | None:
        """The number of pictures that it is for; None for any number."""
        return None if isinstance(self.text, str) else len(self.text)

    def text_of(self, picture: int) -> str:
        return self.text if isinstance(self.text, str) else self.text[picture]

    def __str__(self) -> str:
        return self.text if isinstance(self.text, str) else ", ".join(self.text)

    def __add__(self, other: Objective | float) -> Objective:
        if isinstance(other, Objective):
            return _combined(self, other, "+", torch.add)
        return replace(self, text=_said(self.text, f"({{}} + {other:g})"), measure=lambda T: self.measure(T) + other)

    def __mul__(self, other: Objective | float | Sequence[float]) -> Objective:
        """Multiply by a number, by one number per picture, or by another objective."""
        if isinstance(other, Objective):
            return _combined(self, other, "*", torch.mul)
        if isinstance(other, (int, float)):
            return replace(self, text=_said(self.text, f"{other:g} * {{}}"), measure=lambda T: self.measure(T) * other)
        factors = tuple(float(f) for f in other)
        _one_number(len(factors), self.pictures, "factors")
        text = tuple(f"{factor:g} * {self.text_of(i)}" for i, factor in enumerate(factors))

        def measure(T: Activations) -> Tensor:
            values = self.measure(T)
            return values * torch.tensor(factors, dtype=values.dtype, device=values.device)

        return replace(self, text=text, measure=measure)

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective | float) -> Objective:
        return self + (-other)

    def __rsub__(self, other: float) -> Objective:
        return -self + other

    def __truediv__(self, number: float) -> Objective:
        return self * (1 / number)

    __radd__ = __add__
    __rmul__ = __mul__


def per_picture(T: Activations, values: Tensor, batch: int | None) -> Tensor:
    """Return `values`. If `batch` is the index of a picture, the values of all other pictures are zero."""
    if batch is None:
        return values
    if not 0 <= batch < len(values):
        raise UsageError(f"batch = {batch}: this batch has pictures 0 to {len(values) - 1}")
    return values * (torch.arange(len(values), device=values.device) == batch)


def called(name: str, *arguments: object, batch: int | None = None) -> str:
    """Return an objective's text in Lucid's notation, with "..." for vectors and pictures."""
    said = [str(a) if isinstance(a, (str, int, float)) else "..." for a in arguments]
    return f"{name}({', '.join(said if batch is None else [*said, f'batch={batch}'])})"


def _combined(a: Objective, b: Objective, sign: str, operation: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    _one_number(a.pictures, b.pictures, f"pictures of {a} and {b}")
    n = a.pictures if a.pictures is not None else b.pictures
    text: Text = f"({a.text} {sign} {b.text})"
    if n is not None:
        text = tuple(f"({a.text_of(i)} {sign} {b.text_of(i)})" for i in range(n))
    layers = tuple(dict.fromkeys((*a.layers, *b.layers)))
    return Objective(layers, text, lambda T: operation(a.measure(T), b.measure(T)), a.mixes or b.mixes)


def _one_number(first: int | None, second: int | None, name: str) -> None:
    if first is not None and second is not None and first != second:
        raise UsageError(f"{name}: {first} and {second} do not go together; give as many of one as of the other")


def _said(text: Text, pattern: str) -> Text:
    return pattern.format(text) if isinstance(text, str) else tuple(pattern.format(t) for t in text)
