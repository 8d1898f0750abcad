"""Neuron groups: units of a layer that fire together in the same places, by non-negative matrix factorization.

Source: Olah et al., The Building Blocks of Interpretability, 2018. The factorization is scikit-learn's.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from store.errors import UsageError

ROUNDS = 500  # of the factorization, at most


@dataclass(frozen=True)
class Groups:
    """K neuron groups of P positions, the strongest first.

    `loadings` float32 [K, C]: the share of each unit in a group, of length 1; negative where the units of a signed
    layer are negative together. `strength` float32 [P, K]: how strong each group is at each position. `explained`: the
    share of the positions' squared length that the groups give back. `possible`: the same for as many principal
    directions without an offset (truncated SVD), which no factorization of this rank can exceed.
    """

    loadings: NDArray[np.float32]
    strength: NDArray[np.float32]
    explained: float
    possible: float

    def part(self, group: int) -> NDArray[np.float32]:
        """Return what one group alone gives back of the positions: float32 [P, C]."""
        part: NDArray[np.float32] = np.outer(self.strength[:, group], self.loadings[group])
        return part


def neuron_groups(positions: NDArray[np.float32], k: int, signed: bool, start: int | None = None) -> Groups:
    """Factorize the vectors of P positions, float32 [P, C], into at most k groups.

    A signed layer is factorized as its positive and its negative parts side by side. `start`: a seed for a random
    start; by default the factorization starts from singular vectors, the same ones every time. Fewer groups are
    returned where the positions have a smaller rank. Raises UsageError without scikit-learn.
    """
    try:
        from sklearn.decomposition import NMF
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise UsageError("neuron groups need scikit-learn: pip install 'unitscope[explain]'") from error
    x = positions.astype(np.float64)
    stacked = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], 1) if signed else np.maximum(x, 0)
    singular = np.linalg.svd(stacked, compute_uv=False)
    k = min(k, int(np.count_nonzero(singular > 1e-7 * max(singular.max(initial=0), 1e-30))))
    if k == 0:
        return Groups(np.zeros((0, x.shape[1]), np.float32), np.zeros((len(x), 0), np.float32), 0.0, 0.0)
    factors = NMF(k, init="nndsvda" if start is None else "random", random_state=start or 0, max_iter=ROUNDS, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what is reached then is reported as `explained`
        strength = factors.fit_transform(stacked)
    units = factors.components_
    length = np.linalg.norm(units, axis=1)
    units, strength = units / np.maximum(length, 1e-30)[:, None], strength * length
    order = np.argsort(-np.linalg.norm(strength, axis=0), kind="stable")
    units, strength = units[order], strength[:, order]
    total = float((stacked**2).sum())
    explained = 1 - float(((stacked - strength @ units) ** 2).sum()) / total
    loadings = units[:, : x.shape[1]] - units[:, x.shape[1] :] if signed else units
    return Groups(
        loadings.astype(np.float32),
        strength.astype(np.float32),
        explained,
        float((singular[:k] ** 2).sum()) / total,
    )


def matched(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each group of `a` with its own partner among those of `b`: float64 [min(K_a, K_b)].

    Partners are chosen so that the sum of the cosines is greatest. Loadings are float32 [K, C] of length 1.
    """
    from scipy.optimize import linear_sum_assignment

    cosine = a.astype(np.float64) @ b.T
    rows, columns = linear_sum_assignment(-cosine)
    found: NDArray[np.float64] = cosine[rows, columns]
    return found
