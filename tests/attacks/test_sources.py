"""Tars and Parquet files that break something else than pictures end in one line, or are read for what they are."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data import sources
from store.errors import UsageError

DEEP = ("[" * 100_000 + "]" * 100_000).encode()


def _png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(out, "PNG")
    return out.getvalue()


PNG = _png()


def _refused(source: str) -> str:
    with pytest.raises(UsageError) as caught:
        _ = sources.open_source(source, "").entries
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 2000
    return text


def _tar(path: Path, *members: tuple[str, bytes], pax: dict[str, str] | None = None) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = pax or {}
            tar.addfile(info, io.BytesIO(data))
    return f"webdataset:{path}"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.json", DEEP, "a.json is no JSON"),
        ("a.json", b'{"label": "\\ud800"}', "a.json is no JSON"),
        ("a.cls", b"1" * 5000, "expected a whole number"),
        ("a.cls", b"99999999999", "expected a whole number"),
        ("a.cls", b"\xff", "expected a whole number"),
        ("b\udcff.png", PNG, "is not UTF-8"),
    ],
)
def test_what_lies_beside_a_picture_in_a_tar(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    assert says in _refused(_tar(tmp_path / "x.tar", ("a.png", PNG), (name, data)))


def _header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_thousands_of_long_names_in_a_row(tmp_path: Path) -> None:
    chain = (_header("././@LongLink", 4, b"L") + b"x001".ljust(512, b"\0")) * 2000
    whole = chain + _header("a.png", len(PNG), b"0") + PNG.ljust(-len(PNG) % 512 + len(PNG), b"\0") + bytes(1024)
    (tmp_path / "x.tar").write_bytes(whole)
    assert "no whole tar file" in _refused(f"webdataset:{tmp_path / 'x.tar'}")


@pytest.mark.parametrize("size", ["-5", "9" * 5000, "x"])
def test_sizes_that_no_member_has(size: str, tmp_path: Path) -> None:
    assert "no whole tar file" in _refused(_tar(tmp_path / "x.tar", ("a.png", PNG), pax={"size": size}))


def test_a_sparse_member_without_its_map(tmp_path: Path) -> None:
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.png", "GNU.sparse.realsize": "x"}
    _refused(_tar(tmp_path / "x.tar", ("a.png", b"9" * 5000), pax=sparse))


PICTURES = pa.array([{"bytes": PNG, "path": "a.png"}] * 2)


def _parquet(folder: Path, table: pa.Table) -> str:
    pq.write_table(table, folder / "a.parquet")
    return f"parquet:{folder / '*.parquet'}"


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([True, False]),
        pa.array([[1], [2]]),
        pa.array([{"a": 1}] * 2),
        pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())),
        pa.array([1 << 40, 2]),
        pa.array([1.5, 2.0]),
        pa.array([float("nan"), 2.0]),
        pa.array([b"\xff", b"b"]),
        pa.array([1, 2], pa.date32()),
        pa.array([2**63 + 5, 2], pa.uint64()),
    ],
    ids=lambda labels: str(labels.type),
)
def test_labels_that_are_no_classes(labels: pa.Array, tmp_path: Path) -> None:
    assert "expected" in _refused(_parquet(tmp_path, pa.table({"image": PICTURES, "label": labels})))


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    for names in (["image", "label", "label"], ["image", "image", "label"]):
        columns = [PICTURES if name == "image" else pa.array([1, 2]) for name in names]
        assert "two columns are named" in _refused(_parquet(tmp_path, pa.Table.from_arrays(columns, names)))


@pytest.mark.parametrize("column", [[{"bytes": [PNG]}] * 2, [{"bytes": "x"}] * 2, [[PNG]] * 2])
def test_columns_that_hold_no_bytes(column: list[Any], tmp_path: Path) -> None:
    assert "no column of picture bytes" in _refused(_parquet(tmp_path, pa.table({"image": pa.array(column)})))


@pytest.mark.parametrize("told", [DEEP, b"[", json.dumps({"info": {"features": {"label": 5}}}).encode()])
def test_metadata_that_makes_no_sense_is_not_believed(told: bytes, tmp_path: Path) -> None:
    table = pa.table({"image": PICTURES, "label": pa.array([0, 1])}).replace_schema_metadata({b"huggingface": told})
    entries = sources.open_source(_parquet(tmp_path, table), "").entries
    assert [entry.label and entry.label.index for entry in entries] == [0, 1]
