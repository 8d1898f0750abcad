"""The command `slurm`, which runs a config as a chain of Slurm jobs."""

from __future__ import annotations

import click

from pipeline.commands.cli import _settings, _store_of
from store import stages

# What the hidden option --check takes: a stage that others wait for, or "finish" for the end of the run.
CHECKS = [*(spec.name for spec in stages.STAGES if spec.many and stages.is_gate(spec)), "finish"]


@click.command()
@click.argument("config")
@click.option("--store", metavar="DIR", help="Folder of the store, on a file system that all nodes see.  "
              "[default: stores/<config stem>]")  # fmt: skip
@click.option("--partition", default="", help="Partition, as for sbatch.")
@click.option("--gres", default="", help="Generic resources of the jobs that run the network, e.g. gpu:1.")
@click.option("--time", "limit", default="", help="Time limit of each job, as for sbatch, e.g. 04:00:00.")
@click.option("--cpus", default=0, type=click.IntRange(0), help="Cores of each task.  [default: set by the cluster]")
@click.option("--array", default=8, show_default=True, type=click.IntRange(1), metavar="N",
              help="Most tasks in the array of a stage; each takes its share of the shards.")  # fmt: skip
@click.option("--sbatch", "more", multiple=True, metavar="OPTION", help="Option passed to sbatch as it is, e.g. "
              "--sbatch=--qos=low; may be repeated.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the batch scripts and submit nothing.")
@click.option("--check", type=click.Choice(CHECKS), hidden=True)
@click.option("--chain", "number", default=0, hidden=True)
def slurm(
    config: str, store: str | None, partition: str, gres: str, limit: str, cpus: int, array: int,
    more: tuple[str, ...], dry_run: bool, check: str | None, number: int,
) -> None:  # fmt: skip
    """Submit what is missing of a run of CONFIG as a chain of Slurm jobs.

    There is one job per stage and one at the end; a stage of many shards is an array. Checks between them resubmit
    killed, lost and preempted tasks automatically. If the chain ends early, run the command again: it submits only
    what is missing.

    \b
    Examples:
      unitscope slurm configs/resnet50.toml --gres gpu:1 --cpus 12 --array 64 --time 02:00:00
      unitscope slurm configs/demo.toml --dry-run
      unitscope status stores/demo --timings       (shards done, and the state of their jobs)
    """
    settings = _settings(config, workers=1 if check else None)
    from pipeline.job import Job
    from pipeline.slurm import submitting

    wanted = settings.compute.device
    on_gpu = wanted == "cuda" or (wanted == "auto" and "gpu" in gres)  # this machine may have no GPU
    root = _store_of(config, store)
    job = Job(settings, root, device="cuda" if on_gpu else "cpu")
    options = submitting.Options(config, str(root), array, partition, gres, limit, cpus, more)
    if check:
        click.echo(submitting.check(job, options, check, number))
    else:
        click.echo(submitting.submit(job, options, dry_run))


COMMANDS = {"slurm": slurm}
