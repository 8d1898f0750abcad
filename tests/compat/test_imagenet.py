"""ImageNet's names are the same, whether read from the packages' files or asked in the public way."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.compat import imagenet


def test_files_hold_what_the_public_names_give(monkeypatch: pytest.MonkeyPatch) -> None:
    read = imagenet.labels(), imagenet.synsets()
    monkeypatch.setattr(imagenet, "_file", lambda package, inside: None)
    assert read == (imagenet.labels(), imagenet.synsets())
    assert read[0][248:252] == ("Eskimo dog", "malamute", "Siberian husky", "dalmatian")
    assert read[1][251] == "n02110341"


@pytest.mark.parametrize("text", ["", "n0144\n" * 1000, "_IMAGENET_CATEGORIES = ['tench']"])
def test_a_file_that_holds_something_else_is_not_believed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = imagenet.labels(), imagenet.synsets()
    file = tmp_path / "file.py"
    file.write_text(text)
    monkeypatch.setattr(imagenet, "_file", lambda package, inside: file)
    if "n0144" in text:  # no Python: only timm's file looks like this
        monkeypatch.setattr(imagenet, "_LABELS", "")
        assert imagenet.synsets() == known[1]
    else:
        assert (imagenet.labels(), imagenet.synsets()) == known


def test_without_timm_it_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(imagenet, "_file", lambda package, inside: None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(ImportError):
        imagenet.synsets()
