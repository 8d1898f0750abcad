"""Objectives as text, in Lucid's notation: `blocks.2.1.bn1:3 - 0.001 * total_variation()`.

`read` understands the store's column `objective` and most texts of objectives, but not those that were made with
`batch`, a vector or a picture. For `read`, vectors and pictures are the names of files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.decode import FORMATS
from pipeline.featurevis.objectives import batches, directions, penalties, units
from pipeline.featurevis.objectives.objective import Objective
from store import regular_file
from store.errors import UsageError, did_you_mean

_TOKEN = re.compile(
    r"\s*(?:(?P<unit>[\w.@]+\s*:\s*\d+)|(?P<number>\d+\.?\d*(?:[eE][-+]?\d+)?(?![\w.@/]))"
    r"|(?P<word>[\w.@/]+|'[^']*')|(?P<sign>[-+*(),=]))"
)


@dataclass(frozen=True)
class _Unit:
    layer: str
    channel: int


def _neuron(unit: _Unit, y: Any = None, x: Any = None) -> Objective:
    return units.neuron(unit.layer, unit.channel, _whole_number("y", y), _whole_number("x", x))


def _whole_number(name: str, value: Any) -> int | None:
    if value is None or value == "None":  # as the text of an objective without it says
        return None
    if isinstance(value, (int, float)) and float(value).is_integer():
        return int(value)
    raise UsageError(f"neuron: {name} = {value}: expected a whole number, or nothing for the middle")


def _vector(file: str) -> Any:
    try:
        return np.load(Path(file), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as a vector: expected a .npy file that exists") from error


def _picture(file: str) -> Any:
    try:
        return np.atleast_3d(np.asarray(Image.open(io.BytesIO(regular_file.read(file)), formats=FORMATS))) / 255
    except OSError as error:
        raise UsageError(f"{file} cannot be read as a picture: expected a picture file that exists") from error


# name: (function that makes the objective, description of its arguments for errors)
FUNCTIONS: dict[str, tuple[Callable[..., Objective], str]] = {
    "channel": (lambda u: units.channel(u.layer, u.channel), "LAYER:CHANNEL"),
    "neuron": (_neuron, "LAYER:CHANNEL, y=ROW, x=COLUMN"),
    "class_logit": (lambda layer, label: units.class_logit(layer, _label(label)), "LAYER, INDEX or 'LABEL'"),
    "deepdream": (units.deepdream, "LAYER"),
    "channel_interpolate": (
        lambda a, b: units.channel_interpolate(a.layer, a.channel, b.layer, b.channel), "LAYER:CHANNEL, LAYER:CHANNEL",
    ),
    "direction": (
        lambda layer, file, cossim_pow=0: directions.direction(layer, _vector(file), cossim_pow),
        "LAYER, FILE.npy, cossim_pow=P",
    ),
    "direction_neuron": (
        lambda layer, file, cossim_pow=0: directions.direction_neuron(layer, _vector(file), cossim_pow=cossim_pow),
        "LAYER, FILE.npy, cossim_pow=P",
    ),
    "direction_cossim": (
        lambda layer, file: directions.direction_cossim(layer, _vector(file)), "LAYER, FILE.npy",
    ),
    "tensor_direction": (
        lambda layer, file, cossim_pow=0: directions.tensor_direction(layer, _vector(file), cossim_pow),
        "LAYER, FILE.npy, cossim_pow=P",
    ),
    "dot_compare": (directions.dot_compare, "LAYER, cossim_pow=P"),
    "total_variation": (penalties.total_variation, "LAYER (input)"),
    "L1": (penalties.L1, "LAYER (input), constant=C"),
    "L2": (penalties.L2, "LAYER (input), constant=C"),
    "blur_input_each_step": (penalties.blur_input_each_step, ""),
    "blur_alpha_each_step": (penalties.blur_alpha_each_step, ""),
    "penalize_boundary_complexity": (
        lambda width=20, color=0.5: penalties.penalize_boundary_complexity(int(width), color=color), "WIDTH, color=C",
    ),
    "input_diff": (lambda file: penalties.input_diff(_picture(file)), "FILE.png"),
    "alignment": (batches.alignment, "LAYER"),
    "diversity": (lambda layer, group=None: batches.diversity(layer, None if group is None else int(group)), "LAYER"),
}  # fmt: skip


def read(text: str) -> Objective:
    """Return the objective that a text describes. Raises UsageError that quotes what it does not understand."""
    reader = _Reader(text)
    objective = reader.sum()
    if reader.peek() is not None:
        raise reader.wrong(f"{reader.peek()!r} is not expected here")
    if not isinstance(objective, Objective):
        raise reader.wrong("a number is no objective")
    return objective


def as_objective(objective: str | Objective) -> Objective:
    """Return an objective as it is, or the one that a text describes. "LAYER:CHANNEL" means that channel."""
    return objective if isinstance(objective, Objective) else read(objective)


def _label(label: float | str) -> int | str:
    return label if isinstance(label, str) else int(label)


class _Reader:
    """A recursive descent parser. It reads a sum of products of numbers, units, calls and sums in brackets."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.wrong(f"{text[position:].strip()[0]!r} is not expected")
            self.tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            position = match.end()

    def wrong(self, why: str) -> UsageError:
        return UsageError(
            f"objective {self.text!r}: {why}; expected LAYER:CHANNEL, e.g. blocks.2.1.add:5, or a sum such as "
            f"'a.b:3 - 0.1 * neuron(a.c:5)' of {', '.join(FUNCTIONS)}"
        )

    def peek(self) -> str | None:
        return self.tokens[self.place][1] if self.place < len(self.tokens) else None

    def take(self, wanted: str | None = None) -> tuple[str, str]:
        if self.place == len(self.tokens):
            raise self.wrong(f"it ends where {wanted!r} is expected" if wanted else "it ends too early")
        kind, token = self.tokens[self.place]
        if wanted is not None and token != wanted:
            raise self.wrong(f"{token!r} stands where {wanted!r} is expected")
        self.place += 1
        return kind, token

    def sum(self) -> Objective | float:
        total = self.product()
        while self.peek() in ("+", "-"):
            minus = self.take()[1] == "-"
            other = self.product()
            total = total - other if minus else total + other
        return total

    def product(self) -> Objective | float:
        product = self.factor()
        while self.peek() == "*":
            self.take()
            product = product * self.factor()
        return product

    def factor(self) -> Objective | float:
        kind, token = self.take()
        if token == "-":
            return -self.factor()
        if token == "(":
            total = self.sum()
            self.take(")")
            return total
        if kind == "number":
            return float(token)
        if kind == "unit":
            return units.channel(*units.parse(token))
        if kind == "word" and self.peek() == "(":
            return self.call(token)
        raise self.wrong(f"{token!r} is no unit" if kind == "word" else f"{token!r} is not expected here")

    def call(self, name: str) -> Objective:
        if name not in FUNCTIONS:
            hint = did_you_mean(name, FUNCTIONS) or f"the functions are {', '.join(FUNCTIONS)}"
            raise self.wrong(f"{name} is unknown: {hint}")
        make, described = FUNCTIONS[name]
        self.take("(")
        given: list[Any] = []
        named: dict[str, Any] = {}
        while self.peek() != ")":
            value = self.argument()
            if self.peek() == "=":
                self.take()
                named[str(value)] = self.argument()
            else:
                given.append(value)
            if self.peek() != ")":
                self.take(",")
        self.take(")")
        try:
            return make(*given, **named)
        except (TypeError, AttributeError) as error:
            raise self.wrong(f"{name}({described}) is how it is called") from error

    def argument(self) -> Any:
        kind, token = self.take()
        if token == "-":
            return -self.argument()
        if kind == "number":
            return float(token)
        if kind == "unit":
            return _Unit(*units.parse(token))
        if kind == "word":
            return token.strip("'")
        raise self.wrong(f"{token!r} is no argument")
