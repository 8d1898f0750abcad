"""Read whole files, and refuse what is no regular file (a pipe that never ends, a device) or is too large."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 1 << 30  # of a picture: more than the largest that is decoded, uncompressed and with 16 bits a channel


def read(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most `most` bytes. Raises OSError, whose strerror says what is wrong with another."""
    # Opening a pipe without O_NONBLOCK would wait for somebody to write to it. Windows has neither.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes are more than the {most} allowed", str(path))
        with open(file, "rb", closefd=False) as opened:
            return opened.read(most)
    finally:
        os.close(file)
