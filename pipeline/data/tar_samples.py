"""Which `.cls` and `.json` files of a tar shard belong to which picture.

The stem of a file is its name without the last suffix. `22.05.cls` belongs to the picture with exactly its stem,
`22.05.png`. If there is none, it belongs to the picture whose name goes on after a dot, such as `22.05.left.png`. The
longest such stem counts, so that what is told about one picture never reaches another one with dots in its name. A
sample has one photograph: beside `0.jpg`, `0.seg.png` is a second picture of the sample and is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.data.source import Entry
from store.errors import UsageError, listed

_SECOND = "second picture(s) of a sample"


@dataclass
class Facts:
    """What the files beside a picture tell of it."""

    cls: int | None = None
    numbered: bool = False  # whether a .cls file told the class, or that there is none
    json: dict[str, object] = field(default_factory=dict)
    json_file: str = ""  # the place of the JSON, for errors; empty if there is none


def stem_of(name: str) -> str:
    """Return the name of a file without its last suffix."""
    return name.rpartition(".")[0]


def paired(
    file: str, pictures: Sequence[Entry], facts: dict[str, Facts], left_out: Counter[str]
) -> list[tuple[Entry, Facts]]:
    """Return the photographs of the shard `file`, each with its own facts. `facts` has those of each stem.

    Second pictures of samples, and facts that fit no picture, are counted in `left_out`. Raises UsageError if a sample
    has several pictures and none of them is plainly the photograph.
    """
    stems = {stem_of(p.path) for p in pictures}
    facts = _with_roles(stems, facts, left_out)
    samples: dict[str, list[Entry]] = {}
    found: list[tuple[Entry, Facts]] = []
    for picture in pictures:
        stem = stem_of(picture.path)
        sample = next((s for s in _beginnings(stem) if s in facts), None)
        if sample is not None:
            samples.setdefault(sample, []).append(picture)
        elif any(_is_role(stem, s) for s in _beginnings(stem) if s in stems):
            left_out[_SECOND] += 1
        else:
            found.append((picture, Facts()))
    for sample, members in samples.items():
        photograph = _photograph(file, sample, members)
        if len(members) > 1:
            left_out[_SECOND] += len(members) - 1
        found.append((photograph, facts[sample]))
    return found


def _beginnings(stem: str) -> Iterator[str]:
    """Yield a stem, and then what is left of it before each dot of its base name: `a/22.05.x`, `a/22.05`, `a/22`."""
    yield stem
    folder = stem.rfind("/") + 1
    while (dot := stem.rfind(".", folder)) > folder:
        stem = stem[:dot]
        yield stem


def _is_role(stem: str, sample: str) -> bool:
    """Return whether a stem adds a role to a sample's, as `0.seg` does to `0`. A number, as in `22.05`, is a name."""
    return stem.startswith(f"{sample}.") and not stem[len(sample) + 1 :][:1].isdigit()


def _with_roles(stems: set[str], facts: dict[str, Facts], left_out: Counter[str]) -> dict[str, Facts]:
    """Return the facts by stem, with those of `0.meta.json` given to the picture `0.jpg`.

    That holds if no picture fits `0.meta` itself and no file of the picture's own tells the same.
    """
    used = {beginning for stem in stems for beginning in _beginnings(stem)}
    keys = {list(_beginnings(stem))[-1] for stem in stems}
    found = {stem: told for stem, told in facts.items() if stem in used}
    for stem, told in facts.items():
        if stem in used:
            continue
        sample = next((s for s in _beginnings(stem) if s in stems and _is_role(stem, s)), None)
        if sample is not None:
            own = found.setdefault(sample, Facts())
            if told.numbered and not own.numbered:
                own.cls, own.numbered = told.cls, True
            if told.json_file and not own.json_file:
                own.json, own.json_file = told.json, told.json_file
        elif list(_beginnings(stem))[-1] in keys:
            left_out["label file(s) that fit no picture"] += 1
    return found


def _photograph(file: str, sample: str, members: Sequence[Entry]) -> Entry:
    if len(members) == 1:
        return members[0]
    exact = [p for p in members if stem_of(p.path) == sample]
    if len(exact) == 1:
        return exact[0]
    names = listed([p.path for p in exact or members])
    raise UsageError(
        f"{file}: sample {sample} holds {len(exact or members)} pictures ({names}) and one class: "
        f"name the photograph {sample} with a picture's suffix and the others otherwise, or leave them out of the shard"
    )
