"""A source loses nothing silently: what cannot be told apart is refused, and what is left out is counted and said."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import driver
from pipeline.config import parse_config
from pipeline.data.indexing import left_out_text
from pipeline.data.source import Source
from pipeline.data.sources import open_source
from pipeline.job import Job
from store.errors import UsageError

Classes = dict[str, tuple[int, str] | None]


def _picture(seed: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def _link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _numbers(source: Source) -> dict[str, int | None]:
    return {e.path: e.label.index if e.label else None for e in source.entries}


def _tar_numbers(folder: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> dict[str, int | None]:
    return _numbers(open_source(f"webdataset:{_tar(folder / 'x.tar', *members)}"))


def _refusal(source: str) -> str:
    with pytest.raises(UsageError) as caught:
        _ = open_source(source).entries
    text = str(caught.value)
    assert "\n" not in text
    return text


# The end of a tar


def _six(path: Path, form: int = tarfile.PAX_FORMAT) -> list[tarfile.TarInfo]:
    members = [(f"{i:03d}.{s}", _picture(i) if s == "png" else b"%d" % i) for i in range(6) for s in ("png", "cls")]
    with tarfile.open(_tar(path, *members, form=form)) as tar:
        return tar.getmembers()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("member", range(1, 12))
def test_a_damaged_header_is_refused_with_its_place(member: int, form: int, tmp_path: Path) -> None:
    members = _six(tmp_path / "a.tar", form)
    damaged = bytearray((tmp_path / "a.tar").read_bytes())
    damaged[members[member].offset + 148] ^= 1  # the checksum
    (tmp_path / "a.tar").write_bytes(damaged)
    text = _refusal(f"webdataset:{tmp_path}/a.tar")
    assert f"a.tar is no whole tar file: the header at byte {members[member].offset} is damaged" in text


def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    last = _six(tmp_path / "a.tar")[-1]
    whole = (tmp_path / "a.tar").read_bytes()
    end = last.offset_data + 512
    for size in (*range(600, end + 1024, 271), end - 512, end, end + 512, end + 1023):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        text = _refusal(f"webdataset:{tmp_path}/a.tar")
        assert "a.tar is no whole tar file" in text
        assert f"byte {size}" in text or "header at byte" in text
    (tmp_path / "a.tar").write_bytes(whole[: end + 1024])
    assert len(open_source(f"webdataset:{tmp_path}/a.tar").entries) == 6, "two blocks of zeros are enough"


@pytest.mark.parametrize("after", ["a tar", "a block of zeros and a tar", "one byte"])
def test_what_follows_the_end_mark_is_refused(after: str, tmp_path: Path) -> None:
    _six(tmp_path / "a.tar")
    whole = (tmp_path / "a.tar").read_bytes()
    other = _tar(tmp_path / "b.tar", ("b.png", _picture(9))).read_bytes()
    more = {"a tar": other, "a block of zeros and a tar": bytes(512) + other, "one byte": b"x"}[after]
    (tmp_path / "a.tar").write_bytes(whole + more)
    place = len(whole) + (512 if after.startswith("a block") else 0)
    assert f"a.tar goes on at byte {place} after its end mark" in _refusal(f"webdataset:{tmp_path}/a.tar")


def test_zeros_behind_the_end_and_members_of_every_format_are_read(tmp_path: Path) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        long = "/".join(["folder" * 10] * 4) + "/a.png"
        path = _tar(tmp_path / f"{form}.tar", ("x/b.png", b""), (long, _picture()), form=form)
        path.write_bytes(path.read_bytes() + bytes(3_000_000))
        source = open_source(f"webdataset:{path}")
        assert {e.path for e in source.entries} == {long, "x/b.png"}


# Members that are no regular files


def test_hard_links_are_read_and_other_members_counted(tmp_path: Path) -> None:
    data = _picture()
    members = [
        ("./cat/a.png", data), ("./cat/a.cls", b"4"),
        _link("./dog/b.png", "./cat/a.png"), _link("./dog/b.cls", "cat/a.cls"), _link("dog/c.png", "dog/b.png"),
        _link("dog/gone.png", "dog/never.png"), _link("dog/d.png", "a.png", tarfile.SYMTYPE),
        _link("pipe.png", "", tarfile.FIFOTYPE), _link("folder", "", tarfile.DIRTYPE),
    ]  # fmt: skip
    source = open_source(f"webdataset:{_tar(tmp_path / 'x.tar', *members)}")
    assert {p: n for p, n in _numbers(source).items() if p != "dog/c.png"} == {"cat/a.png": 4, "dog/b.png": 4}
    assert all(source.read(e) == data for e in source.entries)
    assert len(source.entries) == 3
    assert source.left_out == {
        "symbolic link(s)": 1, "named pipe(s)": 1, "hard link(s) to a file that is not before them": 1,
    }  # fmt: skip


# Which facts belong to which picture


def test_facts_never_reach_another_picture_with_dots_in_its_name(tmp_path: Path) -> None:
    members = [(f"22.0{i}.png", _picture(i)) for i in (5, 6, 7, 8)] + [
        (f"22.0{i}.cls", b"%d" % i) for i in (5, 6, 7, 9)
    ]
    source = open_source(f"webdataset:{_tar(tmp_path / 'x.tar', *members)}")
    assert _numbers(source) == {"22.05.png": 5, "22.06.png": 6, "22.07.png": 7, "22.08.png": None}
    assert source.left_out == {"label file(s) that fit no picture": 1}


def test_facts_in_json_of_names_with_dots(tmp_path: Path) -> None:
    members = [
        (f"v1.{i}.{s}", _picture(i) if s == "png" else json.dumps({"class_index": i}).encode())
        for i in (1, 2)
        for s in ("json", "png")
    ]
    assert _tar_numbers(tmp_path, *members) == {"v1.1.png": 1, "v1.2.png": 2}


def test_the_longest_name_that_fits_counts(tmp_path: Path) -> None:
    members = [("a.b.png", _picture(0)), ("a.png", _picture(1)), ("a.b.cls", b"2"), ("a.cls", b"1")]
    assert _tar_numbers(tmp_path, *members) == {"a.png": 1, "a.b.png": 2}


@pytest.mark.parametrize(
    "facts", [("0.cls", b"3"), ("0.json", b'{"class_index": 3}'), ("0.meta.json", b'{"label": 3}')]
)
def test_the_second_picture_of_a_sample_is_no_photograph_of_its_class(facts: tuple[str, bytes], tmp_path: Path) -> None:
    members = [("0.seg.png", _picture(1)), ("0.jpg", _picture(0, "JPEG")), facts]
    source = open_source(f"webdataset:{_tar(tmp_path / 'x.tar', *members)}")
    assert _numbers(source) == {"0.jpg": 3}
    assert source.left_out == {"second picture(s) of a sample": 1}


def test_a_second_picture_whose_class_is_its_folder(tmp_path: Path) -> None:
    members = [("cat/0.seg.png", _picture(1)), ("cat/0.jpg", _picture(0, "JPEG")), ("dog/0.png", _picture(2))]
    source = open_source(f"webdataset:{_tar(tmp_path / 'x.tar', *members)}")
    assert _numbers(source) == {"cat/0.jpg": 0, "dog/0.png": 1}
    assert source.left_out == {"second picture(s) of a sample": 1}


@pytest.mark.parametrize("names", [("0.left.png", "0.right.png"), ("0.png", "0.jpg")])
def test_samples_with_several_photographs_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    _tar(tmp_path / "x.tar", *((n, _picture()) for n in names), ("0.cls", b"3"))
    text = _refusal(f"webdataset:{tmp_path}/x.tar")
    assert "x.tar: sample 0 holds 2 pictures" in text
    assert all(name in text for name in names)


def test_names_with_dots_and_no_facts_are_pictures_of_their_own(tmp_path: Path) -> None:
    names = ["cat/a.1.png", "cat/a.2.png", "cat/a.png", "cat/b.left.png", "cat/b.right.png"]
    assert list(_tar_numbers(tmp_path, *((n, _picture()) for n in names))) == names


def test_one_picture_under_a_name_of_its_own_keeps_its_class(tmp_path: Path) -> None:
    members = [("0.photo.jpg", _picture(0, "JPEG")), ("0.cls", b"3"), ("1.png", _picture(1)), ("1.label.cls", b"4")]
    assert _tar_numbers(tmp_path, *members) == {"0.photo.jpg": 3, "1.png": 4}


def test_pictures_in_other_formats_are_counted_in_tars(tmp_path: Path) -> None:
    source = open_source(
        f"webdataset:{_tar(tmp_path / 'x.tar', ('a.jfif', _picture(0, 'JPEG')), ('b.avif', b''), ('b.txt', b''))}"
    )
    assert list(_numbers(source)) == ["a.jfif"]
    assert source.left_out == {".avif": 1}


# Class numbers


@pytest.mark.parametrize("text", ["\u00b2", "99999999999", "1.5", "True", "\u0663", "0x3", ""])
def test_odd_numbers_in_cls_files_are_refused(text: str, tmp_path: Path) -> None:
    _tar(tmp_path / "x.tar", ("0.png", _picture()), ("0.cls", text.encode()))
    assert "x.tar: 0.cls: class" in _refusal(f"webdataset:{tmp_path}/x.tar")


def test_whole_floats_count_in_every_source(tmp_path: Path) -> None:
    members = [("0.png", _picture()), ("0.cls", b"3.0"), ("1.png", _picture()), ("1.json", b'{"cls": 4.0}')]
    assert _tar_numbers(tmp_path, *members, ("2.png", _picture()), ("2.json", b'{"cls": "5"}')) == {
        "0.png": 3, "1.png": 4, "2.png": 5,
    }  # fmt: skip
    pq.write_table(pa.table({"image": [_picture()] * 3, "label": [1.0, None, -1.0]}), tmp_path / "x.parquet")
    assert list(_numbers(open_source(f"parquet:{tmp_path}/x.parquet")).values()) == [1, None, None]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"class_index": True}, "class True of type bool"),
        ({"label": [1, 2]}, r"class \[1, 2\] of type list"),
        ({"cls": {"a": 1}}, "of type dict"),
        ({"class_index": "7"}, "class '7': expected a whole number"),
        ({"class_index": 1.5}, "class 1.5"),
        ({"label": 2**31}, "class 2147483648"),
        ({"label": list(range(999))}, r"class \[0, 1.{20,60}\.\.\. of type list"),
    ],
)
def test_odd_classes_in_json_are_refused_with_their_type(facts: object, message: str, tmp_path: Path) -> None:
    _tar(tmp_path / "x.tar", ("cat/0.png", _picture()), ("cat/0.json", json.dumps(facts).encode()))
    with pytest.raises(UsageError, match=rf"cat/0\.(json|png).*{message}"):
        _ = open_source(f"webdataset:{tmp_path}/x.tar").entries


# Parquet


def _parquet(path: Path, labels: object, names: list[str] | None = None, first: int = 0) -> None:
    count = len(labels)  # type: ignore[arg-type]
    images = [{"bytes": _picture(first + i), "path": f"{first + i}.png"} for i in range(count)]
    table = pa.table({"image": images, "label": labels})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _classes(source: str) -> Classes:
    return {e.path: (e.label.index, e.label.label) if e.label else None for e in open_source(source).entries}


def test_files_that_number_their_classes_otherwise_are_mapped_by_name(tmp_path: Path) -> None:
    _parquet(tmp_path / "a-0.parquet", [0, 1, -1], ["cat", "dog"])
    _parquet(tmp_path / "a-1.parquet", [0, 1, 2], ["dog", "emu", "cat"], first=3)
    _parquet(tmp_path / "a-2.parquet", [0], ["cow"], first=6)
    cat, dog, emu, cow = (0, "cat"), (1, "dog"), (2, "emu"), (3, "cow")
    assert _classes(f"parquet:{tmp_path}/a-*.parquet") == {
        "0.png": cat, "1.png": dog, "2.png": None, "3.png": dog, "4.png": emu, "5.png": cat, "6.png": cow,
    }  # fmt: skip


def test_a_name_that_occurs_twice_is_two_classes(tmp_path: Path) -> None:
    _parquet(tmp_path / "a-0.parquet", [0, 1, 2], ["crane", "cat", "crane"])
    _parquet(tmp_path / "a-1.parquet", [0, 1, 2], ["cat", "crane", "crane"], first=3)
    assert [c and c[0] for _, c in sorted(_classes(f"parquet:{tmp_path}/a-*.parquet").items())] == [0, 1, 2, 1, 0, 2]


def test_numbers_with_and_without_names_do_not_mix(tmp_path: Path) -> None:
    _parquet(tmp_path / "a-0.parquet", [0, 1], ["cat", "dog"])
    _parquet(tmp_path / "a-1.parquet", [0, 1], first=2)
    text = _refusal(f"parquet:{tmp_path}/a-*.parquet")
    assert "a-1.parquet numbers its classes without naming them, but a-0.parquet names them" in text
    _parquet(tmp_path / "a-1.parquet", [None, -1.0], first=2)
    assert _classes(f"parquet:{tmp_path}/a-*.parquet")["3.png"] is None, "a file without classes needs no names"


def test_a_number_beyond_the_names_of_its_own_file_is_refused(tmp_path: Path) -> None:
    _parquet(tmp_path / "a-0.parquet", [0], ["cat", "dog", "emu"])
    _parquet(tmp_path / "a-1.parquet", [2], ["cat", "dog"], first=1)
    assert "a-1.parquet: label 2 is beyond the 2 classes" in _refusal(f"parquet:{tmp_path}/a-*.parquet")


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([[0], [1], [0, 1]], "list<"),
        ([{"a": 1}, {"a": 2}, {"a": 3}], "struct<a: int64>"),
        ([True, False, True], "bool"),
        ([b"cat", b"dog", b"emu"], "binary"),
    ],
)
def test_labels_of_other_types_are_refused(labels: list[object], kind: str, tmp_path: Path) -> None:
    _parquet(tmp_path / "x.parquet", labels)
    assert f"x.parquet: the labels in column 'label' are of type {kind}" in _refusal(f"parquet:{tmp_path}/x.parquet")


@pytest.mark.parametrize("key", ["label", "class"])
def test_hive_folders_are_classes(key: str, tmp_path: Path) -> None:
    for number, name in enumerate(("great%20auk", "emu", "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / f"{key}={name}"
        folder.mkdir()
        pq.write_table(pa.table({"image": [_picture(number)], "path": [f"{number}.png"]}), folder / "part-0.parquet")
    assert _classes(f"parquet:{tmp_path}/*/part-*.parquet") == {
        "0.png": (1, "great auk"), "1.png": (0, "emu"), "2.png": None,
    }  # fmt: skip


def test_hive_folders_with_numbers_are_class_numbers_and_a_column_comes_first(tmp_path: Path) -> None:
    for number in (2, 10):
        (tmp_path / f"label={number}").mkdir()
        table = pa.table({"image": [_picture(number)], "path": [f"{number}.png"]})
        pq.write_table(table, tmp_path / f"label={number}" / "part-0.parquet")
    assert _classes(f"parquet:{tmp_path}/*/*.parquet") == {"2.png": (2, "2"), "10.png": (10, "10")}
    _parquet(tmp_path / "label=2" / "part-0.parquet", [5])
    assert _classes(f"parquet:{tmp_path}/*/*.parquet") == {"0.png": (5, "5"), "10.png": (10, "10")}


# Folders


def test_other_suffixes_of_jpeg_are_read_and_other_files_counted(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name in (
        "a.jpg",
        "b.jfif",
        "c.JPE",
        "d.jif",
        "e.jfi",
        "f.avif",
        "g.AVIF",
        "h.jp2",
        "notes",
        ".hidden.jpg",
        ".x",
    ):
        (tmp_path / "cat" / name).write_bytes(_picture(1, "JPEG"))
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    source = open_source(f"folder:{tmp_path}")
    assert [e.path for e in source.entries] == ["cat/a.jpg", "cat/b.jfif", "cat/c.JPE", "cat/d.jif", "cat/e.jfi"]
    assert left_out_text(source) == (
        "left out: 2 .avif, 1 .jp2, 1 device(s), socket(s) or named pipe(s), 1 file(s) without a suffix, "
        "1 hidden picture(s)"
    )


def test_a_link_to_a_shared_folder_is_followed_for_each_class_and_a_loop_is_not(tmp_path: Path) -> None:
    shared, root = tmp_path / "shared", tmp_path / "photos"
    (shared / "inner").mkdir(parents=True)
    (shared / "inner" / "a.png").write_bytes(_picture())
    (shared / "up").symlink_to(shared)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "more").symlink_to(shared)
        (root / name / "above").symlink_to(root)
    (root / "emu").symlink_to(root / "cat")
    (root / "far").symlink_to(tmp_path)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "itself").symlink_to(root / "itself")
    (root / "lost.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(f"folder:{root}")
    assert [e.path for e in source.entries] == [f"{c}/more/inner/a.png" for c in ("cat", "dog", "emu")] + ["lost.png"]
    assert source.left_out == {"link(s) to a folder above themselves": 7, "broken link(s)": 2}


def test_the_index_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.avif", "c.avif"):
        (tmp_path / "photos" / name).write_bytes(_picture())
    sections = {
        "model": {"source": "torchvision:alexnet", "weights": "random:0"},
        "dataset": {"source": f"folder:{tmp_path}/photos", "name": "photos"},
    }
    driver.run(Job(parse_config(sections, "test"), tmp_path / "store", progress=False), ("index",))
    assert "dataset photos: left out: 2 .avif" in capsys.readouterr().err.splitlines()
    assert not [p for p in (tmp_path / "store").rglob("*.json") if "avif" in p.read_text()]
