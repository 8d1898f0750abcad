"""The name of a unit, MODEL/LAYER:CHANNEL. Every part of the program parses and prints it here."""

from __future__ import annotations

from dataclasses import dataclass

from store.errors import UsageError, shortened

EXAMPLE = "layer1.0.relu_1:17"


@dataclass(frozen=True)
class UnitName:
    """The name of a unit in parts. `model` is empty if the name leaves it out."""

    layer: str
    channel: int
    model: str = ""

    def __str__(self) -> str:
        return f"{self.model}/{self.layer}:{self.channel}" if self.model else f"{self.layer}:{self.channel}"


def is_unit_name(text: str) -> bool:
    """Return whether the text has the form LAYER:CHANNEL or MODEL/LAYER:CHANNEL."""
    layer, _, channel = text.rpartition(":")
    return bool(layer.strip()) and channel.strip().isascii() and channel.strip().isdecimal()


def parse_unit_name(text: str, example: str = EXAMPLE) -> UnitName:
    """Parse LAYER:CHANNEL or MODEL/LAYER:CHANNEL. Raises UsageError, whose text shows `example`, for any other text."""
    if not is_unit_name(text):
        raise UsageError(f"unit {shortened(text)!r}: expected LAYER:CHANNEL or MODEL/LAYER:CHANNEL, e.g. {example}")
    name, _, channel = text.rpartition(":")
    model, slash, layer = name.strip().partition("/")
    number = whole_number(channel.strip())
    return UnitName(layer, number, model) if slash else UnitName(model, number)


def whole_number(digits: str) -> int:
    """Return the number that digits write. One of more than 18 digits is 10**18, which is outside every range.

    Python refuses to convert more than 4,300 digits.
    """
    figures = digits.lstrip("0")
    return int(figures or "0") if len(figures) <= 18 else 10**18


def check_channel(layer: str, channel: int, channels: int) -> None:
    """Raise UsageError unless the layer has this channel."""
    if not 0 <= channel < channels:
        raise UsageError(f"unit {layer}:{channel}: layer {layer} has channels 0 to {channels - 1}")
