"""`verify` finds flipped bits, missing or unlisted files, and HDF5 files that name others; `repair` restores files."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from support import faults

from store import commits, publish, verify
from store.errors import UsageError
from unitscope import cli


@pytest.fixture
def copy(demo_store: Path, tmp_path: Path) -> Path:
    """A copy of the demo store without its logs, which `verify` does not check."""
    shutil.copytree(demo_store, tmp_path / "store", ignore=shutil.ignore_patterns("logs"))
    return tmp_path / "store"


def _kinds(store: Path) -> list[Path]:
    """Return one file for every combination of folder and suffix."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        found.setdefault((str(path.parent), path.suffix), path)
    return list(found.values())


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << (place % 8)
    path.write_bytes(data)


def test_an_untouched_store_is_well(demo_store: Path) -> None:
    report = verify.verify(demo_store)
    assert report.problems == ()
    assert report.files > 100


def test_one_flipped_bit_in_any_kind_of_file_is_named(copy: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = _kinds(copy)
    assert len(kinds) >= 12
    assert {p.suffix for p in kinds} == {".json", ".toml", ".parquet", ".h5"}
    # A damaged record or manifest says nothing of other files, so these come one by one; the others all at once.
    together = [path for path in kinds if path.suffix != ".json"]
    for paths in (*([path] for path in kinds if path.suffix == ".json"), together):
        whole = {path: path.read_bytes() for path in paths}
        for path, content in whole.items():
            _flip(path, int(rng.integers(len(content))))
        named = {p.path for p in _problems(copy)}
        assert {path.relative_to(copy).as_posix() for path in paths} <= named
        for path, content in whole.items():
            path.write_bytes(content)
    assert not _problems(copy)


def _problems(store: Path) -> tuple[verify.Problem, ...]:
    return verify.verify(store).problems


def test_missing_and_strange_files(copy: Path) -> None:
    next(copy.rglob("units.parquet")).unlink()
    (copy / "runs" / "extra.h5").write_bytes(b"x")
    said = [str(p) for p in verify.verify(copy).problems]
    assert any("units.parquet: is missing" in s for s in said)
    assert any(s.startswith("runs/extra.h5: no commit record") for s in said)


def test_a_file_that_names_another_is_refused(copy: Path) -> None:
    target = next(copy.rglob("sketches.h5"))
    with h5py.File(target, "a") as file:
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "x")
    record = next(r for r in commits.records(copy) if any(f.path.endswith("sketches.h5") for f in r.files))
    files = tuple(
        commits.File(f.path, target.stat().st_size, publish.sha256(target)) if f.path.endswith("sketches.h5") else f
        for f in record.files
    )
    forged = commits.Record(record.run, record.stage, record.shard, record.fingerprint, files, record.facts)
    (copy / "commits" / record.run / record.stage / f"{record.shard}.json").write_text(forged.text())
    publish.write_manifest(copy)
    assert ["elsewhere is a link" in str(p) for p in verify.verify(copy).problems] == [True]


def test_exit_codes(copy: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(cli, ["verify", str(copy)]).exit_code == 0
    victim = next(copy.rglob("codes.h5"))
    _flip(victim, 1000)
    found = run(cli, ["verify", str(copy)])
    assert found.exit_code == 1
    assert str(victim.relative_to(copy)) in found.output
    for nothing in (tmp_path / "no", tmp_path):
        with pytest.raises(UsageError):
            run(cli, ["verify", str(nothing)], catch_exceptions=False)


def test_repair_runs_exactly_what_was_damaged(copy: Path, demo_store: Path) -> None:
    damaged = [next(copy.rglob("visualizations/classifier.h5")), next(copy.rglob("codes_by_image/00000.h5"))]
    for path in damaged:
        _flip(path, 12_345)
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.h5")}
    assert "repaired" in faults.complete("repair", copy)
    assert not verify.verify(copy).problems
    for path in copy.rglob("*"):
        if path.is_file() and path.relative_to(copy).parts[0] != "logs":
            assert path.read_bytes() == (demo_store / path.relative_to(copy)).read_bytes(), path
    untouched = next(p for p in before if p.name == "blocks.2.1.bn1.h5" and "codes_by_unit" in str(p))
    assert untouched.stat().st_mtime_ns == before[untouched], "a whole layer was not folded again"


@pytest.mark.parametrize("text", ["{", '{"format": 7, "records": []}', None])
def test_a_damaged_manifest_is_named_and_mended(copy: Path, demo_store: Path, text: str | None) -> None:
    manifest = copy / "manifest.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    found = CliRunner().invoke(cli, ["verify", str(copy)])
    assert found.exit_code == 1
    assert found.stdout.startswith("manifest.json: ")
    assert CliRunner().invoke(cli, ["repair", str(copy)], catch_exceptions=False).exit_code == 0
    assert manifest.read_bytes() == (demo_store / "manifest.json").read_bytes()


def test_repair_runs_no_code_that_a_store_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("from torch import nn\n\ndef net():\n    return nn.Conv2d(3, 4, 3)\n")
    (tmp_path / "evil.toml").write_text(
        '[model]\nsource = "python:evil:net"\n[dataset]\nsource = "package:demo"\nlimit = 2\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    stages = ["--stage", "index", "--stage", "calibrate", "--stage", "scan", "--stage", "fold"]
    assert CliRunner().invoke(cli, ["run", "evil.toml", "--store", "store", *stages]).exit_code == 0
    next(Path("store").rglob("units.parquet")).unlink()
    (tmp_path / "evil.py").write_text("raise SystemExit('the store ran code')")
    with pytest.raises(UsageError, match="--allow-model-code"):
        CliRunner().invoke(cli, ["repair", "store"], catch_exceptions=False)
