"""`unitscope explore`: from a model's name and a folder of pictures to the page, without a config."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from query.commands.serve import serve_store
from store import commits, layout, stages
from store.errors import UsageError


@click.command()
@click.argument("model")
@click.argument("images", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--weights", default="DEFAULT", show_default=True, help="As `weights` in a config; random:0 needs no file."
)
@click.option("--store", type=click.Path(path_type=Path), help="Where to keep it. Default: stores/MODEL-FOLDER.")
@click.option(
    "--open", "browser", is_flag=True, help="Open the page in a browser as soon as there is something to see."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any free port.")
def explore(model: str, images: Path, weights: str, store: Path | None, browser: bool, port: int) -> None:
    """Scan the pictures in the folder IMAGES with MODEL, and look at every unit in a browser.

    The page opens as soon as the pictures are scanned, and fills with feature visualizations while they are rendered.
    What is made is an ordinary store. The config lies in it as explore.toml and can be changed and run again with
    `unitscope run`. Ctrl-C ends the page and the rendering; the same command goes on where it stopped.

    \b
    Examples:
      unitscope explore torchvision:resnet18 ~/Pictures --open
      unitscope explore timm:convnext_tiny.fb_in1k photos --store stores/convnext
    """
    if not images.is_dir():
        raise UsageError(f"{images}: give a folder of pictures")
    name = re.sub(r"[^a-z0-9._-]+", "-", f"{model.rpartition(':')[2]}-{images.resolve().name}".lower()).strip("-._")
    root = store or Path("stores") / (name or "explore")
    config = _config(root, model, weights, images)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the rendering ends with the page
    making = subprocess.Popen([sys.executable, "-m", "unitscope", "run", str(config), "--store", str(root)])
    try:
        if not _wait_for_fold(root, making):
            sys.exit(making.returncode or 1)
        serve_store(root, "127.0.0.1", port, browser, model.startswith("python:"))
    finally:
        if making.poll() is None:
            making.terminate()
            making.wait()
            click.echo(f"stopped; go on with: unitscope run {config} --store {root}", err=True)


def _config(root: Path, model: str, weights: str, images: Path) -> Path:
    """Write the config into the store, unless one for the same model and pictures is there already."""
    import tomli_w

    from store import publish

    body = {"model": {"source": model, "weights": weights}, "dataset": {"source": f"folder:{images.resolve()}"}}
    text = (
        "# Made by `unitscope explore`. Change it as you like (configs/ has examples), then:\n"
        f"# unitscope run {root / layout.EXPLORED} --store {root}\n\n" + tomli_w.dumps(body)
    )
    path = root / layout.EXPLORED
    if path.exists():
        made_for = path.read_text(encoding="utf-8")
        if tomli_w.dumps({"model": body["model"]}).strip() not in made_for:
            raise UsageError(f"{path} is of another model or other weights: give another --store")
        return path
    publish.ensure_store(root)
    path.write_text(text, encoding="utf-8")
    return path


def _wait_for_fold(root: Path, making: subprocess.Popen[bytes]) -> bool:
    """Wait until a run of the store has folded. Returns False if the process ends before that."""
    last = stages.spec_of("fold").last
    while not any(last in commits.committed(root, run, "fold") for run in commits.run_names(root)):
        if making.poll() is not None:
            return making.returncode == 0
        time.sleep(0.2)
    return True


COMMANDS: dict[str, click.Command] = {"explore": explore}
