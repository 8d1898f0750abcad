"""What is removed from a store: partials that were read for the last time, and what killed processes left behind.

Nothing here touches a file that a living process still writes, as far as this host can know: of its own processes it
asks the system, and of those of other hosts the age of the file, by the clock of the file system. Whoever loses a file
nevertheless sees that it is gone, and the shard is computed again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from store import commits, containment, intents, layout

STALE_SECONDS = 24 * 3600  # age at which a temporary of another host is taken for one that a killed process left
PUBLISHED_SECONDS = 3600  # the same if what it was to become has been published since


def remove_partials(root: Path, run: str, stages: Iterable[str]) -> None:
    """Remove the partials of these stages. Call it once the shard that consumes them is committed.

    Several processes can do so at the same time. Another that still reads them sees that its shard is done.
    """
    place = f"runs/{run}/{layout.PARTIALS}"
    containment.refuse_links(root, [place])
    for _ in range(2):  # a file system can fail once
        for stage in stages:
            shutil.rmtree(root / place / stage, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is gone already, or another stage's partials are still in it
            (root / place).rmdir()


def remove_orphans(root: Path, run: str) -> None:
    """Remove what was left behind under a run and the datasets. Call it when this process publishes nothing any more.

    These are temporaries, also those that this process could not remove, and announcements of records that are there.
    """
    folders = (root / layout.COMMITS / run, root / "runs" / run, root / "datasets")
    found = [path for folder in folders for path in list(folder.rglob(f"{intents.TEMPORARY}*"))]
    if not found:
        return
    published = {root / file.path for record in commits.records(root, run) for file in record.files}
    published |= {root / place for place in commits.places(root, run)}
    now = _now(root)
    for path in found:
        if path.name.startswith(intents.PREFIX):
            # Whoever announced the same as the record that is there will only find the record.
            gone = path.with_name(path.name.removeprefix(intents.PREFIX)) in published or intents.is_abandoned(path)
        else:
            owner = intents.owner_of(path)
            known = path.with_name(path.name.rpartition("~")[2]) in published
            gone = (owner == intents.own() and known) or _is_stale(
                path, owner, now, PUBLISHED_SECONDS if known else STALE_SECONDS
            )
        if gone:
            path.unlink(missing_ok=True)


def remove_stale_temporaries(root: Path) -> None:
    """Remove the temporaries of killed processes: at once for dead processes of this host, after a day for others."""
    now = _now(root)
    for path in list(root.rglob(f"{intents.TEMPORARY}*")):
        announced = path.name.startswith(intents.PREFIX)
        if intents.is_abandoned(path) or _is_stale(path, "" if announced else intents.owner_of(path), now):
            path.unlink(missing_ok=True)


def _is_stale(path: Path, owner: str, now: float, seconds: float = STALE_SECONDS) -> bool:
    """Whether a temporary's process has died, or cannot be asked and has not written for so many seconds."""
    try:
        idle = now - path.stat().st_mtime
    except FileNotFoundError:
        return False
    return not intents.is_living(owner) if intents.is_here(owner) else idle > seconds


def _now(root: Path) -> float:
    """Return the time by the clock that gives files their times. That of this host may have jumped, or differ."""
    made = intents.temporary(root / "clock")
    try:
        made.touch()
        return made.stat().st_mtime
    finally:
        made.unlink(missing_ok=True)
