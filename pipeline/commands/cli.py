"""The commands run, plan, pack, layers and repair. (`render`, `slurm` and `status` have modules of their own.)"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from store.errors import UsageError, printable
from store.stages import NAMES
from store.stages import STAGES as DECLARED

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.job import Job


_EPILOG = "\b\nStages, in order:\n" + "\n".join(f"  {stage.name:10} {stage.about}" for stage in DECLARED)


def _store_of(config: str, store: str | None) -> Path:
    return Path(store) if store else Path("stores") / Path(config).stem


def _job(config: str, store: str | None, workers: int | None = None, device: str = "") -> Job:
    settings = _settings(config, workers)  # before torch is imported, so that a misspelt key is reported at once
    from pipeline.job import Job

    return Job(settings, _store_of(config, store), device=device)


def _settings(config: str, workers: int | None = None) -> Config:
    from dataclasses import replace

    from pipeline.config import read_config

    settings = read_config(Path(config))
    return replace(settings, compute=replace(settings.compute, workers=workers)) if workers else settings


def _parse_shard(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", value)
    if not match or int(match[1]) >= int(match[2]):
        raise click.BadParameter(f"{value!r}: expected I/N with I from 0 to N - 1, e.g. 0/4")
    return int(match[1]), int(match[2])


@click.command(epilog=_EPILOG)
@click.argument("config")
@click.option("--store", metavar="DIR", help="Folder of the store.  [default: stores/<config stem>]")
@click.option(
    "--stage", "stages", multiple=True, type=click.Choice(NAMES), help="Run only this stage; may be repeated."
)
@click.option(
    "--shard", metavar="I/N", callback=_parse_shard, help="Process shards I, I+N, I+2N, ... of the one --stage given."
)
@click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="Run on this machine or on a Ray cluster.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Number of worker processes, one per GPU; with "
              "ray, of tasks at a time.  [default: from the config; with ray: as many as fit]")  # fmt: skip
@click.option("--address", metavar="HOST:PORT", help="Address of a running Ray cluster, or auto.  [default: "
              "$RAY_ADDRESS, else start Ray here]")  # fmt: skip
@click.option("--patience", type=click.FloatRange(1), default=900.0, show_default=True, metavar="SECONDS",
              help="Resubmit unfinished shards after SECONDS without progress.")  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Device that the run computes on. Say cuda "
              "on a machine without a GPU that indexes or folds a GPU's run.  [default: from the config]")  # fmt: skip
def run(
    config: str, store: str | None, stages: tuple[str, ...], shard: tuple[int, int] | None, executor: str,
    workers: int | None, address: str | None, patience: float, device: str | None,
) -> None:  # fmt: skip
    """Run the stages of CONFIG and write the results to a store.

    Run the command again after any interruption: shards that are done are not run twice.

    \b
    Examples:
      unitscope run configs/demo.toml
      unitscope run configs/demo.toml --stage scan --shard 3/16      (one of 16 shares of the scan)
      unitscope run configs/demo.toml --workers 4                    (four processes, one per GPU)
      unitscope run configs/demo.toml --executor ray --address auto  (tasks of a running Ray cluster)
    """
    if address and executor != "ray":
        raise UsageError("--address is the address of a Ray cluster: add --executor ray")
    if device and executor == "ray":
        raise UsageError("--device cannot be used with --executor ray: set [compute] device in the config")
    if shard and len(stages) != 1:
        raise UsageError("--shard I/N needs exactly one --stage, whose shards are divided")
    ordered = tuple(sorted(set(stages), key=NAMES.index))
    if executor == "ray":
        _run_on_ray(_settings(config), _store_of(config, store), ordered, shard, workers or 0, address, patience)
        return
    job = _job(config, store, workers, device or "")
    from pipeline import driver

    driver.run(job, ordered, driver.Slice(*shard) if shard else driver.WHOLE, patience=patience)


def _run_on_ray(
    settings: Config, root: Path, stages: tuple[str, ...], shard: tuple[int, int] | None, most: int,
    address: str | None, patience: float,
) -> None:  # fmt: skip
    from pipeline import driver
    from pipeline.executors import ray_tasks

    job = ray_tasks.connect(settings, root, address)
    part = driver.Slice(*shard) if shard else driver.WHOLE
    driver.run(job, stages, part, lambda: ray_tasks.RayTasks(job, most), patience)


@click.command()
@click.argument("config")
@click.option("--store", metavar="DIR", help="Folder of the store.  [default: stores/<config stem>]")
def plan(config: str, store: str | None) -> None:
    """Show what a run of CONFIG would do, and what is done.

    For each stage it shows the number of shards, how many are done, and the estimated time, from a short
    measurement on this machine. It also estimates the bytes of the store and the memory of visualizations.

    \b
    Example:
      unitscope plan configs/demo.toml
    """
    job = _job(config, store)
    from pipeline.commands.plan import make_plan

    click.echo(make_plan(job))


@click.command()
@click.argument("model")
@click.option("--all", "every", is_flag=True, help="List every node with a channel axis, not only the default layers.")
def layers(model: str, every: bool) -> None:
    """List the layers and units of MODEL: torchvision:NAME, timm:NAME or python:MODULE:FACTORY.

    Neither weights nor data are needed.

    \b
    Example:
      unitscope layers torchvision:resnet50
    """
    from pipeline.models import open_model

    opened = open_model(model, "random:0")
    chosen = opened.graph.layers("all" if every else "blocks")
    name = max(len(layer.name) for layer in chosen)
    click.echo(
        f"{'':>4} {'layer':{name}}  {'op':12} {'channels':>8} {'map':>9}  {'signed':6} {'clip':>4}  receptive field"
    )
    for layer in chosen:
        field = "whole input" if layer.rf_global else f"{layer.rf_size} px every {layer.rf_stride}"
        field = field if layer.spatial else "not spatial"
        clip = "" if layer.upper_bound is None else f"{layer.upper_bound:g}"
        size = f"{layer.height}x{layer.width}"
        click.echo(
            f"{layer.index:4} {layer.name:{name}}  {layer.op:12} {layer.channels:8} {size:>9}  "
            f"{'yes' if layer.signed else '':6} {clip:>4}  {field}{' (gated)' if layer.rf_gated else ''}"
        )
    click.echo(f"{len(chosen)} layers, {sum(layer.channels for layer in chosen):,} units")


@click.command()
@click.argument("store")
@click.option(
    "--allow-model-code", is_flag=True, help="Let a store whose model is python:... import it, which runs its code."
)
def repair(store: str, allow_model_code: bool) -> None:
    """Run again the shards of STORE whose files are damaged or missing, as found by `verify`.

    If the partials that they read are gone, the shards that wrote these are run again too.

    \b
    Example:
      unitscope repair stores/demo
    """
    from pipeline.commands.repair import repair_store

    click.echo(printable(repair_store(Path(store), allow_model_code)))


@click.command()
@click.argument("config")
@click.option(
    "--to",
    "folder",
    required=True,
    metavar="DIR",
    help="Folder for the shards; it must be new, empty, or of the same packing.",
)
@click.option(
    "--format", "kind", type=click.Choice(["jpeg", "raw"]), default="jpeg", show_default=True,
    help="Format of the pictures. raw: pixels that need no decoding but some eight times the bytes.",
)  # fmt: skip
@click.option(
    "--size", default=256, show_default=True, type=click.IntRange(16), help="Short side of the pictures, in pixels."
)
@click.option("--quality", default=95, show_default=True, type=click.IntRange(1, 100), help="Quality of JPEG.")
@click.option("--shard-size", default=1000, show_default=True, type=click.IntRange(1), help="Pictures per tar file.")
def pack(config: str, folder: str, kind: str, size: int, quality: int, shard_size: int) -> None:
    """Decode and resize the pictures of CONFIG once, into tar shards that many models can then scan faster.

    The shards keep classes and paths. Scan them with [dataset] source = "webdataset:DIR/*.tar". Run the command again
    after an interruption: finished shards are kept.

    \b
    Example:
      unitscope pack configs/imagenet-sample.toml --to packed --size 256
    """
    from pipeline.config import read_config

    settings = read_config(Path(config))
    from pipeline.commands.pack import Packing, pack

    packed = pack(settings, Path(folder), Packing(kind, size, quality, shard_size))
    for path, reason in packed.bad:
        click.echo(printable(f"left out {path}: {reason}"), err=True)
    click.echo(
        f"{folder}: {packed.pictures} pictures in {packed.shards} shard(s), {packed.bytes / 1e6:.1f} MB; "
        f'scan them with [dataset] source = "webdataset:{folder}/*.tar"'
    )


COMMANDS = {"run": run, "plan": plan, "pack": pack, "layers": layers, "repair": repair}
