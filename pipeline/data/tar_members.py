"""The files in a tar shard, with the places of their bytes. A tar that is cut, damaged or continued is refused."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from store.errors import UsageError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NO_FILES = {
    tarfile.SYMTYPE: "symbolic link(s)",
    tarfile.CHRTYPE: "device(s)",
    tarfile.BLKTYPE: "device(s)",
    tarfile.FIFOTYPE: "named pipe(s)",
}
_END_MARK = 2 * tarfile.BLOCKSIZE  # bytes: a tar ends with two blocks of zeros
_CHUNK = 1 << 20  # bytes that are read at a time
# What tarfile raises, for thousands of long names in a row too.
_UNREADABLE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar: its name without `./` before it, and the offset and size of its data in bytes."""

    name: str
    offset: int
    size: int


def tar_members(path: Path, left_out: Counter[str]) -> list[TarMember]:
    """Return the files in a plain tar in order. A hard link has the place of the file that it repeats.

    Members that are neither files nor folders are counted in `left_out`. tarfile ends at the first header that it
    cannot read as if the tar ended there. UsageError is therefore raised, with the place, unless the end mark of a tar
    and nothing else follows the last member.
    """
    members: list[TarMember] = []
    with path.open("rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        _refuse_compressed(path, raw.read(6))
        raw.seek(0)
        try:
            tar = tarfile.open(fileobj=raw, mode="r:")  # noqa: SIM115  (`with` follows; its place is in the error)
        except _UNREADABLE as error:
            raise _damaged(path, str(error)) from error
        with tar:
            try:
                for member in _files(tar, left_out):
                    members.append(member)
            except _UNREADABLE as error:
                if tar.offset > size:
                    last = members[-1].name if members else "its first member"
                    raise _damaged(path, f"it ends at byte {size}, inside or after {last}") from error
                raise _damaged(path, f"{error}, in the member at byte {tar.offset}") from error
        _refuse_other_end(path, raw, tar.offset, size)
    return members


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is no whole tar file: {why}: copy or write this shard anew")


def _refuse_compressed(path: Path, head: bytes) -> None:
    for magic, compression in _COMPRESSED.items():
        if head.startswith(magic):
            raise UsageError(
                f"{path} is compressed ({compression}), but pictures are read at their offsets, which only a plain "
                "tar has: write the shards as plain tar (pictures hardly compress)"
            )


def _files(tar: tarfile.TarFile, left_out: Counter[str]) -> Iterator[TarMember]:
    files: dict[str, TarMember] = {}
    for member in tar:
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name} has a negative size")
        name = member.name.removeprefix("./")
        if member.isreg() and not member.issparse():
            file = TarMember(name, member.offset_data, member.size)
        elif member.isreg():
            left_out["sparse file(s)"] += 1
            continue
        elif member.islnk():
            target = files.get(posixpath.normpath(member.linkname))
            if target is None:
                left_out["hard link(s) to a file that is not before them"] += 1
                continue
            file = TarMember(name, target.offset, target.size)
        else:
            if not member.isdir():
                left_out[_NO_FILES.get(member.type, f"member(s) of type {member.type!r}")] += 1
            continue
        files[posixpath.normpath(member.name)] = file
        yield file


def _refuse_other_end(path: Path, raw: BinaryIO, end: int, size: int) -> None:
    """Raise UsageError unless two blocks of zeros or more, and nothing else, follow the members, which end at `end`."""
    raw.seek(end)
    position = end
    while chunk := raw.read(_CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            position += len(chunk) - len(rest)
            break
        position += len(chunk)
    else:
        if size - end < _END_MARK:
            raise _damaged(path, f"it ends at byte {size} without the two blocks of zeros that end a tar: it was cut")
        return
    if position < end + tarfile.BLOCKSIZE:
        raise _damaged(path, f"the header at byte {end} is damaged, which hides every member from there on")
    raise UsageError(
        f"{path} goes on at byte {position} after its end mark at byte {end}, as tars do that `cat` put together: "
        "name its parts themselves, or join them with `tar -A`"
    )
