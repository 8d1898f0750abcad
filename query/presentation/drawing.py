"""Drawing for contact sheets: text that fits, pictures with their activation and box, a histogram."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from query.record.stored_pictures import Example

Color = tuple[int, int, int]
PAPER: Color = (255, 255, 255)
INK: Color = (28, 30, 34)
FAINT: Color = (112, 117, 125)
LINE: Color = (222, 225, 229)
EMPTY: Color = (241, 243, 245)
BAR: Color = (84, 122, 176)
HEAT: Color = (255, 122, 0)
Box = tuple[int, int, int, int]  # y0, x0, y1, x1 in pixels of the network's input


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@dataclass(frozen=True)
class Canvas:
    """A page to draw on. Coordinates are pixels from the top left."""

    image: Image.Image
    draw: ImageDraw.ImageDraw

    @staticmethod
    def blank(width: int, height: int) -> Canvas:
        image = Image.new("RGB", (width, height), PAPER)
        return Canvas(image, ImageDraw.Draw(image))

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 15,
        color: Color = INK,
        width: float = math.inf,
        anchor: str = "la",
    ) -> None:
        """Draw one line, cut with an ellipsis if it is wider than `width`. `anchor` is one of Pillow's."""
        self.draw.text((x, y), fitted(words, size, width), color, font(size), anchor)

    def rule(self, x: float, y: float, width: float) -> None:
        self.draw.line((x, y, x + width, y), LINE)


def fitted(words: str, size: int, width: float) -> str:
    """Return the words, cut with an ellipsis if they are wider than `width` pixels."""
    if font(size).getlength(words) <= width:
        return words
    while words and font(size).getlength(words + "...") > width:
        words = words[:-1]
    return words.rstrip() + "..."


def wrapped(words: Sequence[str], size: int, width: float, separator: str = "   ") -> list[str]:
    """Set phrases in lines that are at most `width` pixels wide. A phrase is never broken, but cut if it is wider."""
    lines: list[str] = []
    for phrase in words:
        longer = lines[-1] + separator + phrase if lines else phrase
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fitted(phrase, size, width))
    return lines


def example_tile(example: Example | None, side: int, box: Box | None, input_size: tuple[int, int]) -> Image.Image:
    """Draw an example as a square: the picture, the activation as heat, the receptive field of the maximum as a box.

    `box` is in pixels of the network's input, whose height and width are `input_size`.
    """
    tile = Image.new("RGB", (side, side), EMPTY)
    if example is None:
        ImageDraw.Draw(tile).text((side / 2, side / 2), "not kept", FAINT, font(13), "mm")
        return tile
    picture = Image.fromarray(example.pixels)
    scale = side / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    if example.heat is not None and example.heat.size > 1:
        picture = _heated(picture, example.heat)
    if box is not None:
        _mark(picture, box, input_size)
    tile.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    return tile


def _heated(picture: Image.Image, heat: NDArray[np.uint8]) -> Image.Image:
    strength = Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)
    alpha = (np.asarray(strength, np.float32) / 255) ** 1.5 * 0.55 * 255
    mask = Image.fromarray(alpha.astype(np.uint8))
    return Image.composite(Image.new("RGB", picture.size, HEAT), picture, mask)


def _mark(picture: Image.Image, box: Box, input_size: tuple[int, int]) -> None:
    """Draw a white frame with dark edges, which shows on any picture. Draw none if the box is the whole picture."""
    y0, x0, y1, x1 = box
    if y0 <= 0 and x0 <= 0 and y1 >= input_size[0] and x1 >= input_size[1]:
        return
    down, across = picture.height / input_size[0], picture.width / input_size[1]
    left, top = max(round(x0 * across), 1), max(round(y0 * down), 1)
    right = min(max(round(x1 * across) - 1, left + 3), picture.width - 2)
    bottom = min(max(round(y1 * down) - 1, top + 3), picture.height - 2)
    draw = ImageDraw.Draw(picture)
    for grown, color in ((1, INK), (-2, INK), (0, PAPER), (-1, PAPER)):
        if right - left + 2 * grown > 0 and bottom - top + 2 * grown > 0:
            draw.rectangle((left - grown, top - grown, right + grown, bottom + grown), outline=color)


def histogram(
    canvas: Canvas,
    at: tuple[int, int, int, int],
    values: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    """Draw counts of values in equal bins, on a log scale so that a rare tail shows.

    `at` is the area's x, y, width and height.
    """
    x, y, width, height = at
    bars = 48
    plot = height - 24
    low, high = float(values.min()), float(values.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    heights, _ = np.histogram(values, bars, (low, high), weights=counts)
    scale = plot / math.log1p(max(float(heights.max()), 1))
    for i, count in enumerate(heights):
        if count > 0:
            left, right = x + width * i / bars, x + width * (i + 1) / bars
            top = y + plot - max(scale * math.log1p(float(count)), 2)
            canvas.draw.rectangle((round(left), round(top), round(right) - 2, y + plot), BAR)
    canvas.rule(x, y + plot, width)
    for tick in ticks(low, high):
        at_x = x + width * (tick - low) / (high - low)
        canvas.draw.line((at_x, y + plot, at_x, y + plot + 4), FAINT)
        anchor = "la" if at_x < x + 12 else "ra" if at_x > x + width - 12 else "ma"
        canvas.text(at_x, y + plot + 7, f"{tick:g}", 13, FAINT, anchor=anchor)


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers between low and high, at most nine."""
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
