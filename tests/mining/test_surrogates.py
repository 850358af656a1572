from __future__ import annotations

import numpy as np
import pytest

from solo_infoaug.mining.pairing import information
from solo_infoaug.mining.surrogates import false_discovery, pair_p_values


def _smooth(count: int, frames: int, seed: int, keep: float = 0.8) -> np.ndarray:
    """Independent autocorrelated series [count, frames, 2]."""
    rng = np.random.default_rng(seed)
    series = np.zeros((count, frames + 50, 2))
    for t in range(1, frames + 50):
        series[:, t] = keep * series[:, t - 1] + rng.normal(size=(count, 2))
    return series[:, 50:]


def _p(samples: np.ndarray, pairs: np.ndarray, seed: int = 0, known=None) -> np.ndarray:
    known = np.ones(samples.shape[:2], bool) if known is None else known
    mi, _ = information(samples, known)
    return pair_p_values(samples, known, mi, pairs, surrogates=24, rng=np.random.default_rng(seed))[
        0
    ]


def test_independent_smooth_series_are_not_significant() -> None:
    samples = _smooth(60, 96, seed=0)
    pairs = np.stack(np.triu_indices(60, 1), axis=1)
    p = _p(samples, pairs)
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (p <= 0.01).mean() <= 0.03
    assert p.mean() == pytest.approx(0.5, abs=0.06)
    assert (false_discovery(p, len(p)) <= 0.05).mean() <= 0.01


def test_coupled_series_are() -> None:
    samples = _smooth(20, 96, seed=1)
    samples[10:] = samples[:10] + 0.5 * _smooth(10, 96, seed=2)
    coupled = np.stack([np.arange(10), np.arange(10, 20)], axis=1)
    others = np.stack([np.arange(10), np.roll(np.arange(10, 20), 3)], axis=1)
    p = _p(samples, np.concatenate([coupled, others]))
    q = false_discovery(p, 190)
    assert (q[:10] <= 0.05).mean() >= 0.9
    assert (q[10:] <= 0.05).mean() <= 0.1


def test_samples_that_are_not_known_do_not_count() -> None:
    samples = _smooth(12, 96, seed=3)
    known = np.ones((12, 96), bool)
    known[::2, 70:] = False
    spoilt = samples.copy()
    spoilt[::2, 70:] = 1e6
    pairs = np.stack(np.triu_indices(12, 1), axis=1)
    assert np.array_equal(_p(samples, pairs, known=known), _p(spoilt, pairs, known=known))


def test_the_generator_decides() -> None:
    samples = _smooth(8, 64, seed=4)
    pairs = np.stack(np.triu_indices(8, 1), axis=1)
    assert np.array_equal(_p(samples, pairs, 1), _p(samples, pairs, 1))
    assert not np.array_equal(_p(samples, pairs, 1), _p(samples, pairs, 2))


def test_false_discovery_by_hand() -> None:
    p = np.array([0.02, 0.9, 0.005])
    # among 4 tests: 0.005·4/1, 0.02·4/2, 0.9·4/3 → 1
    assert false_discovery(p, 4) == pytest.approx([0.04, 1.0, 0.02])
    assert false_discovery(np.array([0.03, 0.02]), 2) == pytest.approx([0.03, 0.03])
