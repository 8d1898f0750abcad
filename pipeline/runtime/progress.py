"""Lines for a person beside the progress bars."""

from __future__ import annotations

import sys

from tqdm import tqdm

from store.errors import printable


def say(text: str) -> None:
    """Print a line on standard error without disturbing the progress bars."""
    tqdm.write(printable(text), file=sys.stderr)
