"""Compare codes, sketches, moments, orders, tails, AUC and correlations with brute force and scikit-learn."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from pipeline.statistics import coding, correlation, moments, ranking
from pipeline.statistics.moments import Pair
from store import codes, hdf5, sketch

VALUES = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 6.0]) | st.floats(0, 100, width=32)
SIGNED = st.sampled_from([-1.0, 0.0, 0.25, 1.0]) | st.floats(-50, 50, width=32)


def _columns(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return st.integers(1, 300).flatmap(lambda n: arrays(np.float32, (n, 2), elements=elements))


@settings(max_examples=60, deadline=None)
@given(_columns(VALUES))
def test_few_values_have_a_code_each(values: np.ndarray) -> None:
    edge = codes.edges(values, signed=False)
    coded = codes.encode(values, edge)
    assert (edge[:, 1:] >= edge[:, :-1]).all()
    for c in range(values.shape[1]):
        rank = {v: i for i, v in enumerate(sorted({0.0, *values[:, c].tolist()}))}
        if len(rank) <= 256:
            assert coded[:, c].tolist() == [rank[v] for v in values[:, c].tolist()]


def _boundaries(column: np.ndarray, signed: bool, resolution: codes.Resolution) -> list[float]:
    """Return where codes begin, by the definition, value by value; for a unit with more than 255 distinct values."""
    n, kept = len(column), sorted(v for v in column.tolist() if signed or v > 0)
    falling = sorted(column.tolist(), reverse=True)
    found, counts = set(), set()
    for k in range(1, 1000):
        count = max(math.floor(n * 2 ** (-k / resolution.octave) + 1e-9), 1)
        if k >= resolution.octave:
            counts.add(count)
            cut = falling[count - 1]
            larger = [v for v in kept if v > cut]
            found |= {cut} if cut in kept else {kept[0]}
            found |= {min(larger)} if falling[count] == cut and larger else set()
        if count == 1:
            break
    found |= {kept[2**i] for i in range(20) if 2**i <= max(len(kept) / 16, 1)}
    most = 255 - 32 - len(found | {kept[0]})
    alone = next(k for k in range(1, n) if k not in counts) - 1
    low, high = kept[int(len(kept) / 1024)], kept[len(kept) - 1 - alone]
    step = max(resolution.step_of(n) * column.std(dtype=np.float64), (high - low) / most)
    for i in range(1, min(round((high - low) / step), most) + 1):
        edge = np.float32(low + step * i)
        found |= {min(v for v in kept if v >= edge)} if edge <= kept[-1] else set()
    share = math.ceil(len(kept) / 32)
    for first in sorted(found | {kept[0]}):  # codes of many images are divided
        start = kept.index(first)
        end = min((kept.index(v) for v in found if v > first), default=len(kept))
        found |= {kept[i] for i in range(start + share, end, share)}
    found |= {kept[0]}
    if (high - low) / most > resolution.step_of(n) * column.std(dtype=np.float64):
        for _ in range(3):  # the widest codes are halved while codes are left
            codes_now = [[v for v in kept if first <= v and not any(first < e <= v for e in found)] for first in found]
            codes_now = sorted(codes_now, key=lambda code: (-np.float32(code[-1] - code[0]), code[0]))
            for code in codes_now[: max(255 - len(found), 0)]:
                middle = np.float32(code[0]) + (np.float32(code[-1]) - np.float32(code[0])) / np.float32(2)
                found |= {min(v for v in code if v > middle)} if code[-1] > code[0] else set()
    return sorted(found)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("resolution", [codes.MAX, codes.MEAN])
@pytest.mark.parametrize("seed", range(3))
def test_codes_of_many_values_are_the_definition(signed: bool, resolution: codes.Resolution, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal(900)
    column = [np.sinh(x), np.round(np.exp(x), 2), np.where(x < 1, x, 1)][seed].astype(np.float32)  # tails, ties, a clip
    column = column if signed else np.maximum(column, 0)
    coded = codes.encode(column[:, None], codes.edges(column[:, None], signed, resolution))[:, 0]
    starts = _boundaries(column, signed, resolution)
    below = [sum(edge <= v for edge in starts) - signed for v in column.tolist()]
    assert coded.tolist() == below


@settings(max_examples=30, deadline=None)
@given(st.integers(300, 3000), st.integers(0, 2**32 - 1), st.booleans())
def test_a_code_is_a_narrow_share_of_the_images(n: int, seed: int, signed: bool) -> None:
    """In the upper half, no code spans more than a sixth of an octave of the tail probability, except for ties."""
    column = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    column = column if signed else np.abs(column)
    coded = codes.encode(column[:, None], codes.edges(column[:, None], signed))[:, 0]
    falling = np.argsort(-column, kind="stable")[: n // 2]
    for code in np.unique(coded[falling]):
        ranks = np.flatnonzero(coded[falling] == code) + 1
        assert ranks[-1] <= ranks[0] * 2 ** (1 / codes.MAX.octave) + 1


@settings(max_examples=60, deadline=None)
@given(_columns(SIGNED), st.booleans())
def test_codes_rise_with_values_and_count_exactly(values: np.ndarray, signed: bool) -> None:
    edge = codes.edges(values, signed)
    coded = codes.encode(values, edge)
    counts, means = codes.counts_and_means(values, coded)
    reaching = codes.reaching(counts)
    for c in range(values.shape[1]):
        column = values[:, c]
        order = np.argsort(column, kind="stable")
        assert (np.diff(coded[order, c].astype(int)) >= 0).all()
        for code in np.unique(coded[:, c]):
            assert reaching[c, code] == (column >= edge[c, code]).sum() == (coded[:, c] >= code).sum()
            exact = np.float32(column[coded[:, c] == code].mean(dtype=np.float64))
            np.testing.assert_allclose(means[c, code], exact, rtol=1e-6, atol=1e-44)  # float32 has no smaller numbers


def test_a_zero_shares_its_code_with_nothing() -> None:
    """In a layer that is never negative, a code decodes to zero only if the value was zero."""
    random = np.random.default_rng(0)
    values = np.maximum(random.standard_normal((5000, 1)), 0).astype(np.float32)
    coded = codes.encode(values, codes.edges(values, signed=False))
    assert ((coded == 0) == (values == 0)).all()
    assert len(np.unique(coded)) > 100


def _exactly_reaching(values: np.ndarray, new: np.ndarray) -> np.ndarray:
    return (values[None] >= new[:, None]).sum(axis=1)


def test_a_new_picture_counts_itself() -> None:
    values = np.arange(1, 101, dtype=np.float32)[:, None]
    edge = codes.edges(values, signed=False)
    counts, means = codes.counts_and_means(values, codes.encode(values, edge))
    new = np.array([1000.0, 100.0, 99.5, 1.0, 0.5, 0.0], np.float32)
    found = [codes.tail_probability(v[None], edge, counts, means)[0] for v in new]
    assert found == [1 / 101, 2 / 101, 2 / 101, 101 / 101, 101 / 101, 101 / 101]


def test_a_weak_value_of_a_unit_that_few_images_fire_is_rare() -> None:
    values = np.zeros((500, 1), np.float32)
    values[:5, 0] = [3, 4, 5, 6, 7]
    edge = codes.edges(values, signed=False)
    counts, means = codes.counts_and_means(values, codes.encode(values, edge))
    found = [codes.images_reaching(np.array([v], np.float32), edge, counts, means)[0] for v in (0, 0.1, 3, 3.5, 7, 8)]
    assert found == [500, 5, 5, 4, 1, 0]


COLUMNS = {
    "normal": lambda r, n: r.standard_normal(n),
    "rectified": lambda r, n: np.maximum(r.standard_normal(n), 0),
    "exponential": lambda r, n: r.exponential(1, n),
    "long tail": lambda r, n: np.sinh(2 * r.standard_normal(n)),
    "saturating": lambda r, n: np.clip(r.standard_normal(n) * 2 + 3, 0, 6),
    "two humps": lambda r, n: r.standard_normal(n) + 6 * (r.random(n) < 0.3),
}


@pytest.mark.parametrize("n", [200, 300, 500, 1000, 5000, 70_000])
@pytest.mark.parametrize("shape", COLUMNS)
def test_the_stated_bounds_hold_for_any_number_of_images(shape: str, n: int) -> None:
    """The width of a code, correlations and the counts for new pictures are compared with the exact values."""
    random = np.random.default_rng(n)
    column = COLUMNS[shape](random, n).astype(np.float32)
    other = (column + random.standard_normal(n)).astype(np.float32)
    signed = bool(column.min() < 0)
    values = np.stack([column, other], 1)
    edge = np.concatenate([codes.edges(values[:, :1], signed), codes.edges(values[:, 1:], True)])
    coded = codes.encode(values, edge)
    counts, means = codes.counts_and_means(values, coded)
    decoded = means[np.arange(2), coded]
    spread = values.std(axis=0, dtype=np.float64)
    # A code is no wider than the step that 255 codes allow for the range of the values that share codes.
    inner = np.sort(column)[: n - 9]
    widest = max(codes.MAX.step, float(inner[-1] - inner[0]) / spread[0] / 120)
    bulk = np.sort(column[column > 0] if not signed else column)[int(n / 1024) :][0]  # below are codes by rank alone
    within = [np.ptp(column[coded[:, 0] == code]) for code in np.unique(coded[column >= bulk, 0])[1:]]
    assert max(within) / spread[0] <= widest
    wanted, found = (np.corrcoef(x.T.astype(np.float64))[0, 1] for x in (values, decoded))
    assert abs(wanted - found) <= 1e-3
    new = COLUMNS[shape](random, 400).astype(np.float32)
    exact = _exactly_reaching(column, new)
    estimated = np.array([codes.images_reaching(v[None], edge[:1], counts[:1], means[:1])[0] for v in new])
    code = codes.encode(new[:, None], edge[:1])[:, 0]
    assert (np.abs(estimated - exact) <= np.maximum(counts[0, code] - 2, 0)).all()
    assert np.abs(estimated - exact).max() / n <= 0.01


@pytest.mark.parametrize("shape", [(3, 70_001), (33, 1000), (7, 11), (1, 1)])
def test_huffman_chunks_read_back_and_damage_is_noticed(tmp_path: Path, shape: tuple[int, int]) -> None:
    """HDF5's own filters can read the chunks that we compress and checksum ourselves."""
    random = np.random.default_rng(0)
    data = np.minimum(random.geometric(0.1, shape) - 1, 255).astype(np.uint8) * (random.random(shape) < 0.4)
    path = tmp_path / "codes.h5"
    hdf5.write(path, {"a/max": hdf5.Array(data, (16, 65_536), "huffman")})
    with h5py.File(path) as file:
        assert (file["a/max"][()] == data).all()
        chunk = file["a/max"].id.get_chunk_info(0)
    body = bytearray(path.read_bytes())
    body[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(bytes(body))
    with h5py.File(path) as file, pytest.raises(OSError, match="read"):
        file["a/max"][()]


@settings(max_examples=60, deadline=None)
@given(_columns(SIGNED), st.integers(0, 300))
def test_sketches_merge_exactly(values: np.ndarray, cut: int) -> None:
    whole = sketch.build(values, signed=True)
    merged = sketch.merge(sketch.build(values[:cut], True), sketch.build(values[cut:], True))
    for name in ("offsets", "bins", "counts"):
        assert (getattr(whole, name) == getattr(merged, name)).all()
    assert whole.counts.sum() == values.size


@given(arrays(np.float32, 50, elements=st.floats(-1000, 1000, width=32)))
def test_sketch_keys_rise(values: np.ndarray) -> None:
    rising = np.sort(values)
    keys = sketch.keys(rising, signed=True).astype(int)
    assert (np.diff(keys) >= 0).all()
    back = sketch.lower_bounds(keys.astype(np.uint16), signed=True)
    assert (np.abs(back - rising) <= np.maximum(np.abs(rising) / 64, 1e-4)).all()


def _sums(rows: np.ndarray) -> Pair:
    sums = moments.zero(rows.shape[1])
    moments.add_rows_into(sums, rows)
    return sums


def test_moments_do_not_depend_on_the_cut() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 5)) * 10.0 ** rng.integers(-8, 8, (64, 5))
    whole = _sums(rows)
    for cut in (1, 13, 40):
        a, b = _sums(rows[:cut]), _sums(rows[cut:])
        joined = moments.add(a, b)
        assert (joined.high == whole.high).all()
    exact = [float(sum((Fraction(float(v)) for v in rows[:, c]), Fraction(0))) for c in range(5)]
    assert whole.high.tolist() == exact


def test_variance_without_cancellation() -> None:
    rng = np.random.default_rng(1)
    values = 1e6 + rng.standard_normal((1000, 3))
    total, square = _sums(values), _sums(values**2)
    mean, variance = moments.mean_and_variance(total, square, 1000)
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(variance, values.var(0), rtol=1e-3)  # the squares were rounded before they were added
    constant = np.full((10, 3), 0.1)
    total, square = Pair(constant.sum(0), np.zeros(3)), Pair((constant**2).sum(0), np.zeros(3))
    assert (moments.mean_and_variance(total, square, 10)[1] < 1e-16).all()


@settings(max_examples=80, deadline=None)
@given(_columns(VALUES), st.integers(1, 40), st.booleans())
def test_orders_are_sorts(values: np.ndarray, k: int, above_zero: bool) -> None:
    column, n = values[:, 0], len(values)
    means, ids = values[:, 1], np.random.default_rng(n).permutation(n * 3)[:n].astype(np.int64)
    rows = [r for r in range(n) if column[r] > 0 or not above_zero]
    expected = sorted(rows, key=lambda r: (-column[r], -means[r], ids[r]))[:k]
    assert ranking.highest(column, means, ids, k, above_zero).tolist() == expected
    assert ranking.lowest(column, ids, k).tolist() == sorted(range(n), key=lambda r: (column[r], ids[r]))[:k]
    tail = ranking.tail_probabilities(column, np.sort(column))
    assert tail.tolist() == [(column >= v).sum() / n for v in column]


@settings(max_examples=40, deadline=None)
@given(_columns(VALUES))
def test_quantiles_are_values_that_enough_images_do_not_exceed(values: np.ndarray) -> None:
    ordered = np.sort(values, axis=0)
    for name, found in ranking.quantiles(ordered).items():
        p = ranking.QUANTILES[name]
        for c in range(values.shape[1]):
            assert (values[:, c] <= found[c]).sum() >= p * len(values) - 1e-6
            assert (values[:, c] < found[c]).sum() < p * len(values)


def test_auc_equals_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    classes = rng.integers(0, 4, 200)
    classes[classes == 3] = rng.choice([0, 1, 2, 3], (classes == 3).sum(), p=[0.3, 0.3, 0.3, 0.1])
    values = np.round(rng.random(200) + classes * 0.2, 1).astype(np.float32)  # many ties
    sizes = np.bincount(classes, minlength=4).astype(np.int64)
    found = ranking.auc(values, classes, sizes)
    for c in range(4):
        if sizes[c] < ranking.FEWEST_OF_CLASS:
            assert np.isnan(found[c])
        else:
            assert found[c] == pytest.approx(roc_auc_score(classes == c, values), abs=1e-12)
    assert np.isnan(found).any()
    assert np.isfinite(found).any()


def test_selectivity_by_hand() -> None:
    means = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    sizes = np.array([10, 10, 10, 9])  # the last class is too small to count
    index, best = ranking.selectivity(means, sizes)
    assert best.tolist() == [1, 0]
    assert index[0] == pytest.approx((3 - 1.5) / (3 + 1.5))
    assert np.isnan(index[1])


def test_correlations_equal_numpy() -> None:
    rng = np.random.default_rng(3)
    values = (rng.standard_normal((2500, 6)) @ rng.standard_normal((6, 6))).astype(np.float32)
    values[:, 4] = 2  # dead
    exact = values.astype(np.float64)
    mean, sd = exact.mean(0), np.where(np.ptp(exact, axis=0) > 0, exact.std(0), 0)
    one = correlation.correlations([values], len(values), mean, sd)
    cut = correlation.correlations([values[1500:], values[7:1500], values[:7]], len(values), mean, sd)
    assert (one == cut).all(), "however the rows come, and in any order"
    living = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(one[np.ix_(living, living)], np.corrcoef(values[:, living].T), atol=1e-6)
    channel, other = correlation.nearest(one, sd > 0, 2)
    assert 4 not in channel
    assert 4 not in other
    for c in living:
        expected = sorted((o for o in living if o != c), key=lambda o: -one[c, o])[:2]
        assert other[channel == c].tolist() == expected


@settings(max_examples=40, deadline=None)
@given(_columns(SIGNED), st.booleans())
def test_a_block_is_coded_as_the_store_codes_one_value(values: np.ndarray, signed: bool) -> None:
    values = np.repeat(values, 17, axis=1)  # more channels than are encoded at a time
    edge = codes.edges(values if signed else np.abs(values), signed)
    coded, counts, means = coding.encode(values, edge)
    expected = codes.encode(values, edge)
    assert (coded == expected).all()
    for ours, theirs in zip((counts, means), codes.counts_and_means(values, expected), strict=True):
        assert (ours == theirs).all()
