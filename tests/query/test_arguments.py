"""Whatever is given as an argument, the answer is a table or a UsageError of one line: never another exception."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import synthetic_store

import query
from query.scope import Scope
from query.sql.database import Limits
from store.errors import UsageError
from unitscope import cli

HUGE = "1" * 5000  # more digits than Python converts
ODD = [
    None, True, False, 0, 1, -1, 2.5, math.nan, math.inf, 10**30, 10**5000, "", "3", HUGE, "\x00", "\udcff", "[" * 300,
    "a" * 5000, b"x", Path("x"), [], [None], [["a"]], ["*"], {}, {"a": 1}, object(), np.int64(1), np.zeros(2),
]  # fmt: skip
odd = st.sampled_from(ODD) | st.text(max_size=8) | st.integers() | st.floats() | st.lists(st.integers(), max_size=2)


@pytest.fixture(scope="module")
def scope(tmp_path_factory: pytest.TempPathFactory) -> Scope:
    return query.open(synthetic_store.build(tmp_path_factory.mktemp("store") / "store").root)


def _unit(scope: Scope) -> str:
    layer, channel = scope.sql("SELECT layer, channel FROM units ORDER BY ALL LIMIT 1").fetchall()[0]
    return f"{layer}:{channel}"


ASKED: dict[str, Callable[[Scope, str, Any], Any]] = {
    "top_units image": lambda s, u, x: s.top_units(x, 2),
    "top_units k": lambda s, u, x: s.top_units(1, x),
    "top_units layer": lambda s, u, x: s.top_units(1, 2, x),
    "top_units by": lambda s, u, x: s.top_units(1, 2, by=x),
    "top_units model": lambda s, u, x: s.top_units(1, 2, model=x),
    "top_units dataset": lambda s, u, x: s.top_units(1, 2, dataset=x),
    "top_images unit": lambda s, u, x: s.top_images(x, 2),
    "top_images k": lambda s, u, x: s.top_images(u, x),
    "top_images label": lambda s, u, x: s.top_images(u, 2, label=x),
    "similar_units k": lambda s, u, x: s.similar_units(u, x),
    "similar_units layer": lambda s, u, x: s.similar_units(u, 2, x),
    "inputs": lambda s, u, x: s.inputs(x, 2),
    "outputs k": lambda s, u, x: s.outputs(u, x),
    "similar_images layer": lambda s, u, x: s.similar_images(1, x, 2),
    "activations_of layer": lambda s, u, x: s.activations_of(1, x),
    "both": lambda s, u, x: s.both(u, x, k=2),
    "both k": lambda s, u, x: s.both(u, u, k=x),
    "units_for_class": lambda s, u, x: s.units_for_class(x, 2),
    "units_for_class k": lambda s, u, x: s.units_for_class(0, x),
    "class_selectivity k": lambda s, u, x: s.class_selectivity(x),
    "separating_units": lambda s, u, x: s.separating_units(x, [1], 2),
    "separating_units k": lambda s, u, x: s.separating_units([0], [1], x),
    "polysemantic_units k": lambda s, u, x: s.polysemantic_units(x),
    "unit_states layer": lambda s, u, x: s.unit_states(x),
    "compare": lambda s, u, x: s.compare(x, x),
    "unit": lambda s, u, x: s.unit(x),
    "visualization repeat": lambda s, u, x: s.visualization(u, repeat=x),
    "sql": lambda s, u, x: s.sql(x),
    "sql parameter": lambda s, u, x: s.sql("SELECT ?", [x]),
}


def _one_line(ask: Callable[[], Any]) -> str:
    try:
        ask()
    except UsageError as error:
        text = str(error)
        assert "\n" not in text
        assert 0 < len(text) < 3000
        return text
    return ""


@pytest.mark.parametrize("name", ASKED)
def test_odd_values(scope: Scope, name: str) -> None:
    unit = _unit(scope)
    for value in ODD:
        _one_line(lambda value=value: ASKED[name](scope, unit, value))  # type: ignore[misc]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(ASKED)), value=odd)
def test_any_value(scope: Scope, name: str, value: Any) -> None:
    unit = _unit(scope)
    _one_line(lambda: ASKED[name](scope, unit, value))


def test_what_is_wrong_is_named(scope: Scope) -> None:
    unit = _unit(scope)
    layer = unit.partition(":")[0]
    for ask, words in [
        (lambda: scope.top_units(1, None), "k=None: ask for 1 or more"),  # type: ignore[arg-type]
        (lambda: scope.top_units(1, True), "k=True: ask for 1 or more"),
        (lambda: scope.top_units(1, 2, []), "name one layer or more"),
        (lambda: scope.top_units(1, 2, 5), "layer 5: expected text"),  # type: ignore[arg-type]
        (lambda: scope.top_units(HUGE), "image_ids 0 to"),
        (lambda: scope.top_images(f"{layer}:{HUGE}"), "has channels 0 to"),
        (lambda: scope.top_units("a" * 5000), "no file on disk"),
        (lambda: query.open(None), "a store is a folder"),  # type: ignore[arg-type]
    ]:
        assert words in _one_line(ask)
    assert len(scope.top_units(1, np.int64(2))) == 2  # type: ignore[arg-type]
    assert len(scope.top_units(1, 2, layer=(layer,))) == 2


@pytest.mark.parametrize(
    "limit",
    [{"seconds": math.nan}, {"seconds": 0}, {"seconds": math.inf}, {"seconds": "x"}, {"memory": 0}, {"memory": 2.5},
     {"threads": 0}, {"threads": 10**30}, {"answer": -1}, {"seconds": True}],
    ids=str,
)  # fmt: skip
def test_limits_that_are_none(limit: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(limit))):
        Limits(**limit)


@pytest.mark.parametrize(
    "words",
    [["sql", "STORE", "SELECT 1", "--seconds", "nan"], ["sql", "STORE", "SELECT 1", "--seconds", "1e300"],
     ["export", "STORE", "--run", "/abs", "--to", "TO"], ["export", "STORE", "--run", "../x", "--to", "TO"],
     ["export", "STORE", "--run", "*", "--to", "TO"], ["top-units", "STORE", HUGE], ["unit", "STORE", "a" * 5000],
     ["top-images", "STORE", f"x:{HUGE}"]],
    ids=lambda words: " ".join(words)[:40],
)  # fmt: skip
def test_commands(words: list[str], scope: Scope, tmp_path: Path) -> None:
    given_words = [{"STORE": str(scope.path), "TO": str(tmp_path / "to")}.get(word, word) for word in words]
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(cli, given_words, catch_exceptions=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "to").exists()


def test_numpy_and_pandas_values_are_taken(scope: Scope) -> None:
    layer = _unit(scope).partition(":")[0]
    assert len(scope.unit_states(pd.Series([layer]))) == len(scope.unit_states(layer))  # type: ignore[arg-type]
