"""Commands that read a store and compute nothing new: verify, export, views."""

from __future__ import annotations

from pathlib import Path

import click

from store.errors import printable


@click.command()
@click.argument("store")
@click.pass_context
def verify(ctx: click.Context, store: str) -> None:
    """Read every file of STORE and compare it with what was committed.

    Exit status 0: every file is intact; their number is printed. 1: there are problems; each is printed on a line of
    its own. 2: STORE is not a store.

    \b
    Example:
      unitscope verify stores/demo
    """
    from tqdm import tqdm

    from store import verify as checking

    root = Path(store)
    checking.require_store(root)
    with tqdm(desc="verify", unit="B", unit_scale=True, mininterval=0.5, leave=False) as bar:

        def advance(size: int) -> None:
            bar.update(size)

        report = checking.verify(root, advance)
    for problem in report.problems:
        click.echo(printable(str(problem)))
    if report.problems:
        click.echo(f"{len(report.problems)} problems in {report.files} files: `unitscope repair {store}`", err=True)
        ctx.exit(1)
    click.echo(f"{report.files} files, {report.size:,} bytes: every one as it was committed")


@click.command()
@click.argument("store")
@click.option("--run", required=True, metavar="MODEL@DATASET", help="The run to export.")
@click.option("--to", required=True, metavar="DIR", help="A new or empty folder for the new store.")
@click.option("--layers", multiple=True, metavar="GLOB", help="Layers to export; may be repeated. Default: all layers.")
def export(store: str, run: str, to: str, layers: tuple[str, ...]) -> None:
    """Write a smaller store that holds one run of STORE, or some of its layers.

    It holds everything about those layers: tables, the dense record, top examples with their pictures, and feature
    visualizations. It lists all images and classes of the dataset. `unitscope verify` and all questions work on it.

    \b
    Examples:
      unitscope export stores/demo --run tf_efficientnet_lite0@demo --to copy
      unitscope export stores/demo --run tf_efficientnet_lite0@demo --to small --layers 'blocks.5.*'
    """
    from tqdm import tqdm

    from store import export as exporting

    with tqdm(desc="export", unit="file", mininterval=0.5, leave=False) as bar:

        def advance(path: str) -> None:
            bar.update()

        exporting.export(Path(store), run, Path(to), layers, advance)
    size = sum(path.stat().st_size for path in Path(to).rglob("*") if path.is_file())
    click.echo(f"{to}: {run}, {size:,} bytes; `unitscope verify {to}` checks it")


@click.command()
@click.argument("store")
def views(store: str) -> None:
    """Print SQL that makes STORE's views, for DuckDB without unitscope.

    It reads the files where they lie now, and has no macros. Use this rather than a script that came with a store: that
    could hold any SQL, and DuckDB by itself may read and write all your files.

    \b
    Example:
      unitscope views stores/demo > views.sql && duckdb -init views.sql
    """
    from store import commits, publish
    from store import views as sql

    root = Path(store)
    publish.check_version(root)
    publish.check_path(root)
    tables = sql.tables(file.path for _, file in commits.files_of(commits.all_records(root)))
    here = {name: [str(root.resolve() / path) for path in paths] for name, paths in tables.items()}
    for statement in sql.statements(here):
        click.echo(f"{statement};")


COMMANDS = {"verify": verify, "export": export, "views": views}
