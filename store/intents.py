"""Announce what is about to be published, so that no committed file is ever replaced.

Before a process renames its files into place, it links a small file that says what it will publish. If another process
has announced the same contents, both go on: they write the same bytes. If it has announced other contents, this one
gives up before it has touched anything. An announcement is removed once the record is there; one whose process has died
is removed by whoever comes next.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"
PREFIX = f"{TEMPORARY}intent~"


class OtherIntentError(Exception):
    """Another process that may be alive has announced other contents."""


@contextmanager
def announced(folder: Path, name: str, text: str) -> Iterator[None]:
    """Announce `text` in a folder under a name while the body runs. Raises OtherIntentError if another text is there.

    If the body raises, the announcement is removed too.
    """
    path = folder / f"{PREFIX}{name}"
    while not _link(path, text):
        owner, other = _read(path)
        if other == text:
            break
        if owner and not is_living(owner):
            path.unlink(missing_ok=True)
        elif owner:
            raise OtherIntentError(owner)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether a file is an announcement that this process has left behind, or one of a process that has died."""
    if not path.name.startswith(PREFIX):
        return False
    owner = _read(path)[0]
    return bool(owner) and (owner == own() or not is_living(owner))


def temporary(final: Path) -> Path:
    """Return a new name beside a file, which tells the host and the process that write it."""
    return final.with_name(f"{TEMPORARY}{own()}~{secrets.token_hex(4)}~{final.name}")


def owner_of(path: Path) -> str:
    """Return the HOST~PID that a temporary's name tells."""
    host_name, _, rest = path.name.removeprefix(TEMPORARY).partition("~")
    return f"{host_name}~{rest.partition('~')[0]}"


def host() -> str:
    return socket.gethostname().replace("~", "-")


def is_here(owner: str) -> bool:
    """Whether HOST~PID names a process of this host, so that the system can be asked about it."""
    of_host, _, process = owner.partition("~")
    return of_host == host() and process.isdigit() and len(process) <= 9


def is_living(owner: str) -> bool:
    """Whether the process HOST~PID may be alive. On other hosts it always may."""
    if not is_here(owner):
        return True
    try:
        os.kill(int(owner.partition("~")[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def own() -> str:
    """Return HOST~PID of this process."""
    return f"{host()}~{os.getpid()}"


def _link(path: Path, text: str) -> bool:
    written = temporary(path)
    try:
        written.write_text(json.dumps({"owner": own(), "text": text}))
        os.link(written, path)
    except FileExistsError:
        return False
    finally:
        written.unlink(missing_ok=True)
    return True


def _read(path: Path) -> tuple[str, str]:
    """Return the owner and the text of an announcement; ("", "") if it has just been removed."""
    try:
        body = json.loads(path.read_text())
        return str(body["owner"]), str(body["text"])
    except FileNotFoundError:
        return "", ""
    except (OSError, ValueError, KeyError, TypeError):
        return f"{host()}~unreadable", ""
