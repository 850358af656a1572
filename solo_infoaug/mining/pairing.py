"""From signals to twins: mutual information, significance, best partners."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from solo_infoaug._compile import compiled
from solo_infoaug.information import EstimateWarning, entropy, pairwise_mutual_information
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.surrogates import false_discovery, pair_p_values


def information(
    paths: np.ndarray, known: np.ndarray, estimator: str = "3kl", k: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """MI of all pairs, float32 [P, P] with NaN on the diagonal, and entropies, float32 [P]; nats.

    Args:
        paths: [P, T, d].
        known: bool [P, T]; a pair uses the samples that both have.
    """
    return _pairs(paths, known, estimator, k), _entropies(paths, known, k)


def _pairs(paths: np.ndarray, known: np.ndarray, estimator: str, k: int) -> np.ndarray:
    x, mask = _tensors(paths, known)
    pairs = pairwise_mutual_information(x, estimator=estimator, k=k, mask=mask).numpy().copy()
    np.fill_diagonal(pairs, np.nan)
    return pairs


def _entropies(paths: np.ndarray, known: np.ndarray, k: int) -> np.ndarray:
    x, mask = _tensors(paths, known)
    return entropy(x, k=k, mask=mask).numpy()


def _tensors(paths: np.ndarray, known: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.from_numpy(paths).float(), None if known.all() else torch.from_numpy(known)


def best_partners(
    mi: np.ndarray, allowed: np.ndarray, top_k: int = 5, min_mi: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The partners of highest MI of each patch.

    Args:
        mi: [P, P] nats, NaN without an estimate.
        allowed: bool [P, P], whether the second may be the twin of the first.
        top_k: K.
        min_mi: a twin has more than this, nats; one number or [P, P].

    Returns:
        int64 [P, K], best first, then -1; and their MI float32 [P, K], 0 there.
    """
    twins, found = _largest(mi, allowed & (mi > min_mi), top_k)
    return twins, found.astype(np.float32)


@compiled()
def _largest(values, among, count):  # type: ignore[no-untyped-def]
    """Columns and values, [P, count], of the largest of each row, the first of equal ones first.

    Only those that are `among`, bool [P, P], count, and none on the diagonal. -1 and 0 fill up.
    """
    places = np.full((len(values), count), -1, np.int64)
    largest = np.zeros((len(values), count), values.dtype)
    for i in range(len(values)):
        for j in range(len(values)):
            n, value = count - 1, values[i, j]
            if i == j or not among[i, j] or (places[i, n] >= 0 and largest[i, n] >= value):
                continue
            while n > 0 and (places[i, n - 1] < 0 or largest[i, n - 1] < value):
                places[i, n], largest[i, n] = places[i, n - 1], largest[i, n - 1]
                n -= 1
            places[i, n], largest[i, n] = j, value
    return places, largest


# Number of patches up to which things share a call of the estimator.
_TOGETHER = 64
# Minimum number of pairs tested for each patch, however few twins are kept. With fewer, the pooled
# surrogates do not resolve the p-values that the false-discovery control needs, and no patch has a
# twin.
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
    config: MineConfig,
    min_mi: np.ndarray | None = None,
    depth: np.ndarray | None = None,
) -> Partners:
    """The significant partners of highest mutual information of each of M patches.

    The best may differ by less than the estimate's error. Of those within `config.mi_tolerance` of
    the highest, the ones of greatest `depth` come first.

    Args:
        samples: float64 [M, T, d].
        known: bool [M, T].
        allowed: bool [M, M], whether the second may be the twin of the first.
        config: estimator, test, and thresholds.
        min_mi: minimum for each pair, nats, [M, M]; by default the setting of that name.
        depth: int [M]; by default all alike.
    """
    least: np.ndarray | float = config.min_mi if min_mi is None else min_mi
    count = len(samples)
    depth = np.zeros(count, int) if depth is None else depth
    if count < 2:
        no_pairs = np.full((count, count), np.nan, np.float32)
        return _partners(
            no_pairs, np.full(count, -np.inf, np.float32), no_pairs > 0, config, least, depth
        )
    with warnings.catch_warnings():
        # Twenty samples of smooth motion lie near a curve, and a surrogate may have no common
        # samples. The surrogates of the test share both properties, and the test decides.
        warnings.simplefilter("ignore", EstimateWarning)
        mi, entropies = _information_of(allowed, samples, known, config)
        candidates, _ = best_partners(mi, allowed, max(config.top_k, _TESTED), least)
        row, column = np.nonzero(candidates >= 0)
        if config.fdr == 1.0 or not len(row):
            return _partners(mi, entropies, allowed, config, least, depth)
        pairs = np.stack([row, candidates[row, column]], axis=1)
        tested = np.unique(np.sort(pairs, axis=1), axis=0)
        p, null = pair_p_values(
            samples,
            known,
            mi,
            tested,
            estimator=config.estimator,
            k=config.k,
            surrogates=config.surrogates,
            rng=np.random.default_rng(config.seed),
        )
    good = false_discovery(p, int(np.triu(allowed | allowed.T, 1).sum())) <= config.fdr
    passed = np.zeros_like(allowed)
    passed[tuple(tested[good].T)] = True
    p_of = np.ones(mi.shape, np.float32)
    p_of[tuple(tested.T)] = p_of[tuple(tested.T[::-1])] = p
    passed = (passed | passed.T) & allowed
    return _partners(mi, entropies, passed, config, least, depth, p_of, null.reshape(-1))


def _information_of(
    allowed: np.ndarray, samples: np.ndarray, known: np.ndarray, config: MineConfig
) -> tuple[np.ndarray, np.ndarray]:
    """See `information`; MI is NaN where no chain of allowed pairs links two patches.

    Things that move apart have no allowed pair, so that of a window with four of them a quarter of
    the pairs is estimated.
    """
    count = len(samples)
    _, thing = connected_components(csr_array(allowed), directed=False)
    sizes = np.bincount(thing)
    mi = np.full((count, count), np.nan, np.float32)
    # Small ones together, since a call costs as much as thousands of pairs
    small = sizes < _TOGETHER
    group = np.where(small, np.cumsum(sizes * small) // _TOGETHER, -1 - np.arange(len(sizes)))
    for number in np.unique(group):
        members = np.flatnonzero(group[thing] == number)
        pairs = _pairs(samples[members], known[members], config.estimator, config.k)
        mi[np.ix_(members, members)] = pairs
    return mi, _entropies(samples, known, config.k)


def _partners(
    mi: np.ndarray,
    entropies: np.ndarray,
    allowed: np.ndarray,
    config: MineConfig,
    min_mi: np.ndarray | float,
    depth: np.ndarray,
    p_of: np.ndarray | None = None,
    null: np.ndarray | None = None,
) -> Partners:
    """The best of the allowed pairs. Without `p_of` [M, M] they were not tested and have p = 0."""
    twins, best = best_partners(mi, allowed, max(config.top_k, _TESTED), min_mi)
    alike = (twins >= 0) & (best >= best[:, :1] - config.mi_tolerance)
    order = np.argsort(-np.where(alike, depth[twins], -1), axis=1, kind="stable")
    order = order[:, : config.top_k]
    twins, best = (np.take_along_axis(found, order, axis=1) for found in (twins, best))
    p_of = np.zeros(mi.shape) if p_of is None else p_of
    p_value = np.ones(twins.shape, np.float32)
    there = np.nonzero(twins >= 0)
    p_value[there] = p_of[there[0], twins[there]]
    null = np.zeros(0, np.float32) if null is None else null
    return Partners(twins, best, p_value, entropies, mi, null)
