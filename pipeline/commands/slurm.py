"""The command `slurm`: a config's run as a chain of array jobs."""

from __future__ import annotations

import click

from pipeline.commands.cli import _settings, _store_of
from store import stages

# What a hidden check job looks at: a stage that others wait for, or the end of the run.
CHECKS = [*(spec.name for spec in stages.STAGES if spec.many and stages.is_gate(spec)), "finish"]


@click.command()
@click.argument("config")
@click.option("--store", metavar="DIR", help="On a file system that all nodes see.  [default: stores/<config stem>]")
@click.option("--partition", default="", help="As sbatch takes it.")
@click.option("--gres", default="", help="Of jobs that run the network, e.g. gpu:1.")
@click.option("--time", "limit", default="", help="Of each job, as sbatch takes it, e.g. 04:00:00.")
@click.option("--cpus", default=0, type=click.IntRange(0), help="Cores of each task.  [default: the cluster's]")
@click.option("--array", default=8, show_default=True, type=click.IntRange(1), metavar="N",
              help="Tasks of a stage's array, at most; each takes its share of the shards.")  # fmt: skip
@click.option("--sbatch", "more", multiple=True, metavar="OPTION", help="For sbatch as it is, e.g. --sbatch=--qos=low.")
@click.option("--dry-run", is_flag=True, help="Print the batch scripts; submit nothing.")
@click.option("--check", type=click.Choice(CHECKS), hidden=True)
@click.option("--chain", "number", default=0, hidden=True)
def slurm(
    config: str, store: str | None, partition: str, gres: str, limit: str, cpus: int, array: int,
    more: tuple[str, ...], dry_run: bool, check: str | None, number: int,
) -> None:  # fmt: skip
    """Submit what is missing of a run as a chain of Slurm jobs.

    There is one job per stage and one to finish; a stage of many shards is an array. Behind an array a check looks at
    the store, and resubmits what was killed, lost or preempted. Give the command again if the chain has ended early:
    it submits only what is missing.

    \b
    Examples:
      unitscope slurm configs/resnet50.toml --gres gpu:1 --cpus 12 --array 64 --time 02:00:00
      unitscope slurm configs/demo.toml --dry-run
      unitscope status stores/demo --timings       (shards, and what Slurm says of their jobs)
    """
    settings = _settings(config, workers=1 if check else None)
    from pipeline.job import Job
    from pipeline.slurm import submitting

    wanted = settings.compute.device
    on_gpu = wanted == "cuda" or (wanted == "auto" and "gpu" in gres)  # here there may be none
    root = _store_of(config, store)
    job = Job(settings, root, device="cuda" if on_gpu else "cpu")
    options = submitting.Options(config, str(root), array, partition, gres, limit, cpus, more)
    if check:
        click.echo(submitting.check(job, options, check, number))
    else:
        click.echo(submitting.submit(job, options, dry_run))


COMMANDS = {"slurm": slurm}
