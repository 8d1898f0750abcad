"""No failed write of an HDF5 file is lost, whichever it is, and none reaches HDF5, which could crash on it."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from store import commits, hdf5, publish, verify
from store.checked_file import CheckedFile
from store.errors import UsageError
from store.hdf5 import Array

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "plain/x": Array(RANDOM.normal(size=(300, 40)).astype(np.float32), (64, 40)),
    "packed": Array(RANDOM.integers(0, 9, (50, 700)).astype(np.uint8), (1, 256), "huffman"),
    "maps": Array(RANDOM.integers(0, 5, (30, 7, 7)).astype(np.uint8), None, "gzip"),
    "empty": Array(np.zeros(0, np.int64)),
}


def _write(path: Path) -> None:
    hdf5.write(path, ARRAYS, {"model": "toy"})


def _failing(monkeypatch: pytest.MonkeyPatch, name: str, at: int, code: int) -> list[int]:
    """Let only the call number `at` of a system call fail. Return a list that grows by one for each call."""
    calls: list[int] = []
    real: Callable[..., Any] = getattr(os, name)

    def call(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, name, call)
    return calls


def test_what_is_written_can_be_read_by_h5py(tmp_path: Path) -> None:
    _write(tmp_path / "a.h5")
    _write(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["model"] == "toy"
        for name, array in ARRAYS.items():
            assert np.array_equal(file[name][()], array.data)
            assert file[name].fletcher32 or not array.data.size


def test_it_is_a_file(tmp_path: Path) -> None:
    """All that HDF5's driver may ask of a file, whether or not it does today."""
    file = CheckedFile(tmp_path / "x")
    assert file.write(b"0123456789") == 10
    assert (file.tell(), file.seek(-4, io.SEEK_END), file.read(2), file.tell()) == (10, 6, b"67", 8)
    assert (file.seek(-3, io.SEEK_CUR), file.seek(1)) == (5, 1)
    target = bytearray(3)
    assert (file.readinto(target), bytes(target)) == (3, b"123")
    assert (file.truncate(6), file.truncate()) == (6, 4)
    file.flush()
    file.close()
    assert (tmp_path / "x").read_bytes() == b"0123"


def test_a_write_that_writes_nothing_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CheckedFile(tmp_path / "x")
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    assert file.write(b"0123") == 4
    monkeypatch.undo()
    assert (file.write(b"4"), file.truncate(2)) == (1, 2), "nothing is done any more"
    with pytest.raises(OSError, match="Input/output error"):
        file.close()
    assert (tmp_path / "x").read_bytes() == b""


def test_a_truncation_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CheckedFile(tmp_path / "x")
    _failing(monkeypatch, "ftruncate", 1, errno.EIO)
    assert file.truncate(3) == 3
    with pytest.raises(OSError, match="Input/output error"):
        file.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_each_write_that_fails_once_is_reported(code: int, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = _failing(patch, "pwrite", 0, code)
        _write(tmp_path / "whole.h5")
        count = len(calls)
    assert count > 10
    for at in range(1, count + 1):
        with pytest.MonkeyPatch.context() as patch:
            _failing(patch, "pwrite", at, code)
            with pytest.raises(OSError, match=os.strerror(code)) as error:
                _write(tmp_path / "part.h5")
        assert error.value.errno == code
        assert error.value.filename == str(tmp_path / "part.h5")


def test_a_write_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "whole.h5")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[: max(len(data) // 2, 1)], at))
    _write(tmp_path / "pieces.h5")
    assert (tmp_path / "pieces.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_full_device_is_one_error() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        _write(Path("/dev/full"))


def test_a_shard_that_cannot_be_written_is_not_committed_and_runs_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    publish.ensure_store(root)

    def shard() -> commits.Record:
        with publish.Publication(root, "toy@shapes", "examples", "all", "f") as out:
            _write(out.path("runs/toy@shapes/arrays/x.h5"))
            return out.commit()

    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, "pwrite", 5, errno.ENOSPC)
        with pytest.raises(UsageError, match=r"x\.h5 cannot be written \(No space left on device\), after \d+ bytes"):
            shard()
    assert sorted(p.name for p in root.rglob("*") if p.is_file()) == ["manifest.json"]
    shard()
    publish.write_manifest(root)
    assert not verify.verify(root).problems
