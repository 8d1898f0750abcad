"""Commands that look at a store without computing: status, verify."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("store")
@click.option("--timings", is_flag=True, help="Where the time went: seconds by stage and phase, from the logs.")
def status(store: str, timings: bool) -> None:
    """Runs of STORE, the shards each stage has done, those in flight or lost, what Slurm has queued for it, and the
    images that were rejected.

    \b
    Example:
      unitscope status stores/demo --timings
    """
    from store import verify
    from store.status import lines_of

    root = Path(store)
    verify.require_store(root)
    for line in lines_of(root, timings):
        click.echo(line)


@click.command()
@click.argument("store")
@click.pass_context
def verify(ctx: click.Context, store: str) -> None:
    """Read every file of STORE and compare it with what was committed.

    Exit status 0: all is well, with a count. 1: every problem, a line each. 2: STORE is no store.

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
        click.echo(str(problem))
    if report.problems:
        click.echo(f"{len(report.problems)} problems in {report.files} files: `unitscope repair {store}`", err=True)
        ctx.exit(1)
    click.echo(f"{report.files} files, {report.size:,} bytes: every one as it was committed")


COMMANDS = {"status": status, "verify": verify}
