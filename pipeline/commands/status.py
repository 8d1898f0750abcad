"""The command `status`, which joins what a store says of its runs with what Slurm's queue says of its jobs."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from store.errors import UsageError, printable


@click.command()
@click.argument("store")
@click.option("--timings", is_flag=True, help="Show where the time went: seconds by stage and phase, from the logs.")
def status(store: str, timings: bool) -> None:
    """Show the runs of STORE.

    For each stage it shows the shards that are done and those in flight or lost. It also shows the jobs that Slurm has
    queued for the store, and the images that were rejected.

    \b
    Example:
      unitscope status stores/demo --timings
    """
    from pipeline.slurm import queue
    from store import verify
    from store.status import lines_of

    @functools.cache
    def ask() -> tuple[list[queue.Queued] | None, str]:
        try:
            return queue.queued(), ""
        except UsageError as error:
            return None, str(error)

    def states() -> dict[str, str] | None:
        queued = ask()[0]
        return None if queued is None else {job.name: job.state for job in queued}

    root = Path(store)
    verify.require_store(root)
    for line in lines_of(root, timings, states):
        click.echo(printable(line))
    for line in queue.lines_of(root, *ask()) if queue.submitted(root) else ():
        click.echo(printable(line))


COMMANDS = {"status": status}
