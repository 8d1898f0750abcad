"""The name that people type: the command `unitscope`, and `import unitscope` for notebooks.

`unitscope.open` opens a store; `open_model`, `layers`, `render` and `featurevis` work on a model. Commands and
functions are imported when they are first used, so that `import unitscope` and `--help` are quick.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import click

from store.errors import Notice, UsageError, printable, unknown

if TYPE_CHECKING:
    from pipeline import featurevis, layers, open_model
    from pipeline.featurevis import render
    from query import open

__all__ = ["featurevis", "layers", "main", "open", "open_model", "render"]

_API = {
    "open": ("query", "open"),
    "open_model": ("pipeline", "open_model"),
    "layers": ("pipeline", "layers"),
    "featurevis": ("pipeline", "featurevis"),
    "render": ("pipeline.featurevis", "render"),
}


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'unitscope' has no attribute {name!r}")
    module, attribute = _API[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})


# command -> (module, one line for the list of commands)
COMMANDS = {
    "run": ("pipeline.commands.cli", "Run a config's stages into a store, or resume them."),
    "slurm": ("pipeline.commands.slurm", "Submit a run as a chain of Slurm jobs."),
    "plan": ("pipeline.commands.cli", "Show what a run would do: stages, shards, bytes and hours."),
    "pack": ("pipeline.commands.cli", "Decode and resize pictures once, for many models to scan."),
    "layers": ("pipeline.commands.cli", "List the layers and units of a model, without weights or data."),
    "render": ("pipeline.commands.render", "Render a feature visualization of one unit."),
    "repair": ("pipeline.commands.cli", "Run again the shards whose files are damaged or missing."),
    "status": ("pipeline.commands.status", "Show the runs of a store, shards done and rejected images."),
    "verify": ("store.commands", "Check every file of a store against its digest."),
    "export": ("store.commands", "Write a smaller store with one run or some of its layers."),
    "sql": ("query.commands.cli", "Query a store in SQL."),
    "views": ("store.commands", "Print SQL that makes a store's views, for DuckDB alone."),
    "top-units": ("query.commands.cli", "Which units fire most on this image?"),
    "top-images": ("query.commands.cli", "Which images fire this unit most?"),
    "similar": ("query.commands.cli", "Units like a unit, or images like an image."),
    "ask": ("query.commands.ask", "The other named questions: both, separating-units, compare, ..."),
    "explain": ("query.commands.explain", "Why the network says this about a picture, and not that."),
    "unit": ("query.commands.cli", "Everything known about one unit, with a contact sheet."),
    "explore": ("query.commands.explore", "From a model's name and a folder of pictures to the page."),
    "serve": ("query.commands.serve", "Look through a store in a browser."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).COMMANDS[name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise unknown("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="unitscope")
def cli() -> None:
    """Show what every unit of a vision network looks for, and which of your images excite it.

    \b
    A first look, at photographs that come with the demo packages:
      unitscope run configs/demo.toml
      unitscope top-units stores/demo 0
      unitscope unit stores/demo blocks.5.0.bn1:12 --save unit.png
    """


_show_other = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print a notice as one line, and any other warning as Python does."""
    if issubclass(category, Notice):
        click.echo(f"note: {printable(str(message))}", err=True)
    else:
        _show_other(message, category, *where, **more)


def main() -> None:
    """Run the command line. Bad usage or input gives one line on standard error and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except UsageError as error:
        _fail(" ".join(str(error).split("\n")))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        _fail(f"{error.format_message()}{hint}")
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; run the same command again to resume", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `unitscope sql ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))


def _fail(text: str) -> None:
    click.echo(f"unitscope: {printable(text)}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
