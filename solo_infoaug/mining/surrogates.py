"""Test whether pairs share more information than their autocorrelation explains."""

from __future__ import annotations

import numpy as np
import torch

from solo_infoaug.information.significance import shifted_information

# Surrogates are shifted by at least this fraction of the track in either direction.
_MIN_SHIFT = 0.125
# Minimum spread of a pair's null, nats, because few surrogates may agree by chance.
_MIN_SPREAD = 0.01


def pair_p_values(
    samples: np.ndarray,
    known: np.ndarray,
    mi: np.ndarray,
    pairs: np.ndarray,
    *,
    estimator: str = "3kl",
    k: int = 3,
    surrogates: int = 24,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """p-values of some pairs of tracks against circularly time-shifted surrogates of themselves.

    Shifting one track of a pair keeps the autocorrelation of both and breaks their coupling. Each
    pair's MI is compared with the mean and spread of its own surrogates. The surrogates of all
    pairs together, each compared with the others of its pair, show how large such a difference
    becomes by chance. Pooling lets a few surrogates a pair resolve the small p-values that
    false-discovery control over all pairs needs.

    Quian Quiroga et al. (2002), DOI 10.1103/PhysRevE.65.041903.

    `samples` are [P, T, d]; where they are `known` bool [P, T] is shifted with the track. `mi` is
    [P, P] nats, by the estimator and its `k`; `pairs` int [M, 2] are to be tested.

    Returns:
        p-values float64 [M], and the MI of all surrogates float32 [M, surrogates], nats.
    """
    frames = samples.shape[1]
    min_shift = max(1, round(_MIN_SHIFT * frames))
    shifts = rng.permutation(np.arange(min_shift, frames - min_shift + 1))[:surrogates]
    null = shifted_information(
        torch.from_numpy(samples).float(),
        torch.from_numpy(pairs),
        shifts.tolist(),
        estimator,
        k,
        mask=None if known.all() else torch.from_numpy(known),
    ).numpy()
    observed = mi[pairs[:, 0], pairs[:, 1]]
    score = (observed - null.mean(axis=1)) / np.maximum(null.std(axis=1, ddof=1), _MIN_SPREAD)
    pool = np.sort(_against_the_others(null), axis=None)
    above = len(pool) - np.searchsorted(pool, score, side="left")
    return (1 + above) / (1 + len(pool)), null.astype(np.float32)


def false_discovery(p: np.ndarray, tests: int) -> np.ndarray:
    """q-values of p-values [M] among `tests` hypotheses; the remaining ones count as p = 1.

    Benjamini and Hochberg (1995), DOI 10.1111/j.2517-6161.1995.tb02031.x.
    """
    order = np.argsort(p, kind="stable")
    scaled = p[order] * tests / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def _against_the_others(null: np.ndarray) -> np.ndarray:
    """Distance of each surrogate from the mean of the others of its row, in their spreads."""
    count = null.shape[1] - 1
    total, square = null.sum(axis=1, keepdims=True), (null**2).sum(axis=1, keepdims=True)
    mean = (total - null) / count
    variance = np.maximum((square - null**2) / count - mean**2, 0) * count / max(count - 1, 1)
    return (null - mean) / np.maximum(np.sqrt(variance), _MIN_SPREAD)
