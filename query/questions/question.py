"""How a question is declared: its parameters, columns, help and macros. Imports nothing heavy, for `--help`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

REQUIRED: Final = object()  # the default of a parameter that must be given

Kind = Literal[
    "unit", "image", "images", "class", "layer", "layers", "model", "dataset", "count", "number", "choice", "flag"
]
Growth = Literal["", "images", "units"]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a question.

    `name` is the parameter of the method of Scope. `kind` says what its values are, and so how a command reads one from
    text: "images" is a class or several images, "layer" a layer's name, "layers" one or several globs. `choices` are
    the values of a "choice". `metavar` is how a command's help calls an argument, if not by the name.
    """

    name: str
    kind: Kind
    default: object = REQUIRED
    help: str = ""
    choices: tuple[str, ...] = ()
    metavar: str = ""

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True)
class Macro:
    """A macro of SQL that asks a question.

    `parameters` maps the macro's parameters, in order, to their SQL type and to the parameter of Scope's method.
    `fixed` are values of other parameters of the method. `optional` may be left out in SQL, and are then NULL.
    """

    name: str
    parameters: Mapping[str, tuple[str, str]]
    fixed: Mapping[str, object] = field(default_factory=dict)
    optional: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """The parameters as CREATE MACRO takes them."""
        return ", ".join(f"{quoted(p)} := NULL" if p in self.optional else quoted(p) for p in self.parameters)


@dataclass(frozen=True)
class Question:
    """A question that a store answers with a table.

    `name` is the method of Scope. `columns` maps the columns of the answer, in order, to their SQL types. `about` is
    one sentence for help, `detail` what else help says, and `examples` are command lines that it shows. `command` is
    where the command line has the question: "ask" for `unitscope ask`, or a command of its own. `rows` is what the
    number of rows of one answer grows with, if it is not bounded by a parameter.
    """

    name: str
    parameters: tuple[Parameter, ...]
    columns: Mapping[str, str]
    about: str
    detail: str
    examples: tuple[str, ...]
    macros: tuple[Macro, ...]
    command: str = "ask"
    rows: Growth = ""

    @property
    def command_name(self) -> str:
        """The name of its command, or of its subcommand of `ask`."""
        return self.name.replace("_", "-") if self.command == "ask" else self.command


def quoted(parameter: str) -> str:
    """Return a macro's parameter as SQL takes it: `class` is a word of SQL itself."""
    return '"class"' if parameter == "class" else parameter
