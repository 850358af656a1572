"""From signals to twins: mutual information, significance, the best partners."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from solo_infoaug.information import EstimateWarning, entropy, pairwise_mutual_information
from solo_infoaug.mining.surrogates import false_discovery, pair_p_values


def information(
    paths: np.ndarray, known: np.ndarray, estimator: str = "3kl", k: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """MI of all pairs, float32 [P, P] with NaN on the diagonal, and entropies, float32 [P]; nats.

    Args:
        paths: [P, T, d].
        known: bool [P, T]; a pair uses the samples that both have.
    """
    x = torch.from_numpy(paths).float()
    mask = None if known.all() else torch.from_numpy(known)
    mi = pairwise_mutual_information(x, estimator=estimator, k=k, mask=mask)
    pairs = mi.numpy().copy()
    np.fill_diagonal(pairs, np.nan)
    return pairs, entropy(x, k=k, mask=mask).numpy()


def best_partners(
    mi: np.ndarray, allowed: np.ndarray, top_k: int = 5, min_mi: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The partners of highest MI of each patch.

    Args:
        mi: [P, P] nats, NaN where there is no estimate.
        allowed: bool [P, P], which pairs may be twins.
        top_k: K.
        min_mi: a twin needs more (nats).

    Returns:
        int64 [P, K], best first, -1 where there is none, and their MI float32 [P, K], 0 there.
    """
    count = len(mi)
    score = np.where(allowed & ~np.eye(count, dtype=bool) & (mi > min_mi), mi, -np.inf)
    best = np.argsort(-score, axis=1, kind="stable")[:, :top_k]
    value = np.take_along_axis(score, best, axis=1)
    twins = np.full((count, top_k), -1, np.int64)
    found = np.zeros((count, top_k), np.float32)
    good = np.isfinite(value)
    twins[:, : best.shape[1]][good] = best[good]
    found[:, : best.shape[1]][good] = value[good]
    return twins, found


# So many pairs a patch are tested, however few twins are kept: with fewer, too few surrogates are
# pooled to resolve the p-values that the false-discovery control needs, and nobody has a twin.
_TESTED = 5


@dataclass(frozen=True)
class Partners:
    """Twins of M patches: `twins` int64 [M, K], `mi` and `p_value` float32 [M, K], `entropies`
    float32 [M], `pairs` float32 [M, M], and `null` float32 [...], the MI of surrogates; nats."""

    twins: np.ndarray
    mi: np.ndarray
    p_value: np.ndarray
    entropies: np.ndarray
    pairs: np.ndarray
    null: np.ndarray


def find_partners(
    samples: np.ndarray,
    known: np.ndarray,
    allowed: np.ndarray,
    *,
    estimator: str = "3kl",
    k: int = 3,
    top_k: int = 5,
    min_mi: float = 0.05,
    fdr: float = 0.05,
    surrogates: int = 24,
    seed: int = 0,
) -> Partners:
    """The significant partners of highest mutual information of each of M patches.

    Args:
        samples: float64 [M, T, d].
        known: bool [M, T].
        allowed: bool [M, M], which pairs may be twins.
        estimator, k: of the mutual information.
        top_k: K.
        min_mi: a twin needs more (nats).
        fdr: the false-discovery rate among pairs; 1 for no test.
        surrogates: how many a pair.
        seed: draws their shifts.
    """
    if len(samples) < 2:
        return _nobody(len(samples), top_k)
    with warnings.catch_warnings():
        # Twenty samples of smooth motion lie near a curve, and a surrogate may have none in common:
        # the test against surrogates, which share both, is what decides.
        warnings.simplefilter("ignore", EstimateWarning)
        return _significant(
            samples,
            known,
            allowed,
            estimator=estimator,
            k=k,
            top_k=top_k,
            min_mi=min_mi,
            fdr=fdr,
            surrogates=surrogates,
            seed=seed,
        )


def _significant(
    samples: np.ndarray,
    known: np.ndarray,
    allowed: np.ndarray,
    *,
    estimator: str,
    k: int,
    top_k: int,
    min_mi: float,
    fdr: float,
    surrogates: int,
    seed: int,
) -> Partners:
    mi, entropies = information(samples, known, estimator, k)
    candidates, _ = best_partners(mi, allowed, max(top_k, _TESTED), min_mi)
    row, column = np.nonzero(candidates >= 0)
    if fdr == 1.0 or not len(row):
        twins, best = best_partners(mi, allowed, top_k, min_mi)
        p_value = np.where(twins >= 0, 0, 1).astype(np.float32)
        return Partners(twins, best, p_value, entropies, mi, np.zeros(0, np.float32))
    tested = np.unique(np.sort(np.stack([row, candidates[row, column]], axis=1), axis=1), axis=0)
    p, null = pair_p_values(
        samples,
        known,
        mi,
        tested,
        estimator=estimator,
        k=k,
        surrogates=surrogates,
        rng=np.random.default_rng(seed),
    )
    good = false_discovery(p, int(np.triu(allowed, 1).sum())) <= fdr
    passed = np.zeros_like(allowed)
    passed[tuple(tested[good].T)] = True
    twins, best = best_partners(mi, passed | passed.T, top_k, min_mi)
    p_of = np.ones(mi.shape, np.float32)
    p_of[tuple(tested.T)] = p_of[tuple(tested.T[::-1])] = p
    p_value = np.take_along_axis(p_of, np.maximum(twins, 0), axis=1)
    p_value = np.where(twins >= 0, p_value, 1.0).astype(np.float32)
    return Partners(twins, best, p_value, entropies, mi, null.reshape(-1))


def _nobody(count: int, top_k: int) -> Partners:
    return Partners(
        np.full((count, top_k), -1, np.int64),
        np.zeros((count, top_k), np.float32),
        np.ones((count, top_k), np.float32),
        np.full(count, -np.inf, np.float32),
        np.full((count, count), np.nan, np.float32),
        np.zeros(0, np.float32),
    )
