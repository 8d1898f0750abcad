"""Configs: complete ones parse, and whatever is wrong in one is named with what to do."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from support import ROOT

from pipeline.config import fingerprinted, parse_config, read_config, to_toml
from store.errors import UsageError

GOOD = {"model": {"source": "torchvision:resnet50"}, "dataset": {"source": "folder:photos"}}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_shipped_configs_parse(path: Path) -> None:
    assert read_config(path).model.source


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scan": {"topkk": 5}}, r"\[scan\].*'topkk'.*did you mean topk"),
        ({"scna": {}}, r"'scna'.*did you mean scan"),
        ({"scan": {"topk": "many"}}, r"topk = 'many': expected int"),
        ({"scan": {"topk": 0}}, r"topk = 0: expected at least 1"),
        ({"scan": {"batch_size": True}}, r"batch_size = True: expected int"),
        ({"visualize": {"input": "screen"}}, r"input = 'screen': expected one of model, canvas"),
        ({"visualize": {"kinds": ["channel", "chanel"]}}, r"'chanel': expected one of"),
        ({"visualize": {"layers": []}}, r"layers = \[\]: expected a list of str"),
        ({"dataset": {"source": "folder:x", "max_bad_fraction": 2}}, r"share from 0 to 1"),
        ({"model": {"source": "timm:x", "name": "No Slug"}}, r"slug"),
        ({"model": {}}, r"\[model\] source is missing"),
        ({"visualize": {"learning_rate": float("nan")}}, r"finite"),
        ({"scan": {"topk": 40_000}}, r"at most 32767"),
        ({"compute": {"device": "tpu"}}, r"expected one of auto, cpu, cuda"),
        ({"model": "resnet"}, r"must be a section"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        parse_config(GOOD | change, "some.toml")
    assert str(error.value).startswith("some.toml: ")
    assert "\n" not in str(error.value)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_config(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("[model\nsource=")
    with pytest.raises(UsageError, match="no readable TOML"):
        read_config(tmp_path / "bad.toml")


@pytest.mark.parametrize("key", ["max_bad_fraction", "limit"])
@pytest.mark.parametrize("value", [2**31, 10**400])
def test_numbers_without_end_are_refused_and_not_cut(key: str, value: int) -> None:
    """One key takes a float and the other a whole number."""
    with pytest.raises(UsageError, match="expected at most 2147483647"):
        parse_config(GOOD | {"dataset": {"source": "folder:x", key: value}}, "x")


def test_the_stored_config_reads_back() -> None:
    config = parse_config(GOOD | {"model": {"source": "timm:x", "layers": ["a.*", 'b"q\\']}}, "x")
    keys = fingerprinted(config, "cpu")
    assert tomllib.loads(to_toml(keys)) == {
        section: {k: list(v) if isinstance(v, tuple) else v for k, v in entries.items()}
        for section, entries in keys.items()
    }
    assert "workers" not in keys["compute"]
    assert keys["compute"]["device"] == "cpu"


def test_quantiles_are_part_of_a_run_only_if_it_asks_for_them() -> None:
    """So a run of before the key goes on. An empty list is the default, written out."""
    without = [parse_config(GOOD | {"examples": body}, "x") for body in ({}, {"quantiles": []})]
    assert without[0] == without[1]
    assert "quantiles" not in fingerprinted(without[0], "cpu")["examples"]
    asked = parse_config(GOOD | {"examples": {"quantiles": [0.9, 1, 0.5]}}, "x")
    assert fingerprinted(asked, "cpu")["examples"]["quantiles"] == (0.9, 1.0, 0.5)
    with pytest.raises(UsageError, match="shares from 0 to 1"):
        parse_config(GOOD | {"examples": {"quantiles": [1.5]}}, "x")
