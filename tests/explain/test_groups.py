"""Neuron groups: parts that were planted are found again, and what is said of them is so."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pipeline.explain import matched, neuron_groups
from store.errors import UsageError


def _planted(signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return three groups of units that do not overlap, float32 [3, 30], and 60 positions that have one group each."""
    chance = np.random.default_rng(0)
    groups = np.zeros((3, 30), np.float32)
    for i in range(3):
        groups[i, 10 * i : 10 * i + 6] = chance.uniform(0.5, 1, 6) * (
            np.where(np.arange(6) % 2, -1, 1) if signed else 1
        )
    groups /= np.linalg.norm(groups, axis=1, keepdims=True)
    which = np.arange(60) % 3
    return groups, (groups[which] * ((3 - which) * chance.uniform(0.5, 1, 60))[:, None]).astype(np.float32)


@pytest.mark.parametrize("signed", [False, True])
def test_planted_groups_are_found(signed: bool) -> None:
    groups, positions = _planted(signed)
    found = neuron_groups(positions, 3, signed)
    assert matched(found.loadings, groups) == pytest.approx([1, 1, 1], abs=1e-3)
    assert np.abs(found.loadings - groups).max() < 0.02  # the strongest first, signs included
    assert found.explained > 0.999
    whole = sum(found.part(group) for group in range(3))
    assert np.abs(whole - positions).max() < 0.02


def test_what_is_explained_is_at_most_what_is_possible() -> None:
    positions = np.maximum(np.random.default_rng(1).normal(size=(49, 40)), 0).astype(np.float32)
    before = 0.0
    for k in (1, 3, 6):
        found = neuron_groups(positions, k, signed=False)
        whole = sum(found.part(group) for group in range(k))
        assert found.explained == pytest.approx(1 - ((positions - whole) ** 2).sum() / (positions**2).sum(), abs=1e-5)
        assert before < found.explained <= found.possible + 1e-9
        before = found.explained
        assert (found.loadings >= 0).all()
        assert np.linalg.norm(found.loadings, axis=1) == pytest.approx(np.ones(k), abs=1e-5)
        again = neuron_groups(positions, k, signed=False)
        assert np.array_equal(found.loadings, again.loadings)
        assert np.array_equal(found.strength, again.strength)


@pytest.mark.parametrize(
    ("positions", "groups"),
    [(np.zeros((9, 5)), 0), (np.ones((9, 5)), 1), (np.zeros((0, 5)), 0), (-np.ones((4, 5)), 0), (np.eye(2, 5), 2)],
)
def test_no_more_groups_than_there_are(positions: np.ndarray, groups: int) -> None:
    found = neuron_groups(positions.astype(np.float32), 4, signed=False)
    assert found.loadings.shape == (groups, 5)
    assert found.strength.shape == (len(positions), groups)
    assert np.isfinite(found.loadings).all()


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(UsageError, match=r"pip install 'unitscope\[explain\]'"):
        neuron_groups(np.ones((4, 5), np.float32), 2, signed=False)
