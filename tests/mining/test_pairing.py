from __future__ import annotations

import numpy as np
import pytest

from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.pairing import Partners, best_partners, find_partners, information

NAN = np.nan


def test_best_partners_takes_the_best_first() -> None:
    mi = np.array(
        [[NAN, 0.3, 0.9, 0.1], [0.3, NAN, 0.2, 0.0], [0.9, 0.2, NAN, 0.0], [0.1, 0, 0, NAN]]
    )
    twins, best = best_partners(mi, np.ones((4, 4), bool), top_k=2, min_mi=0.15)
    assert twins.tolist() == [[2, 1], [0, 2], [0, 1], [-1, -1]]
    assert np.allclose(best, [[0.9, 0.3], [0.3, 0.2], [0.9, 0.2], [0, 0]])


def test_best_partners_obeys_what_is_allowed_and_what_is_known() -> None:
    mi = np.array([[5.0, 0.9, 0.5], [0.9, 5.0, NAN], [0.5, NAN, 5.0]])
    allowed = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1]], bool)
    twins, best = best_partners(mi, allowed, top_k=5)
    assert twins.shape == (3, 5)
    assert twins[:, 0].tolist() == [2, -1, 0]
    assert best[:, 0].tolist() == pytest.approx([0.5, 0.0, 0.5])


def test_information_finds_the_pair_that_moves_together() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 80, 2))
    paths = np.stack([one, two, one + 0.1 * rng.normal(size=(80, 2))])
    mi, entropies = information(paths, np.ones((3, 80), bool))
    assert np.isnan(np.diag(mi)).all()
    assert mi[0, 2] > 1.0
    assert abs(mi[0, 1]) < 0.4
    assert np.allclose(entropies, np.log(2 * np.pi * np.e), atol=0.5)  # two standard normals


def test_information_ignores_what_is_not_known() -> None:
    rng = np.random.default_rng(0)
    paths = rng.normal(size=(3, 80, 2))
    known = np.ones((3, 80), bool)
    known[1, 50:] = False
    spoilt = paths.copy()
    spoilt[1, 50:] = 1e6
    assert np.array_equal(
        information(paths, known)[0], information(spoilt, known)[0], equal_nan=True
    )


# --- the significant ones


def _groups(frames: int = 60, seed: int = 0) -> np.ndarray:
    """float64 [12, T, 2]: 0 to 3 move together, 4 to 7 move together, 8 to 11 each for itself."""
    rng = np.random.default_rng(seed)
    leaders = rng.normal(size=(2, frames, 2)).repeat(4, axis=0)
    together = leaders + 0.3 * rng.normal(size=leaders.shape)
    return np.concatenate([together, rng.normal(size=(4, frames, 2))])


def _found(
    samples: np.ndarray, known: np.ndarray, allowed: np.ndarray, **settings: float
) -> Partners:
    return find_partners(samples, known, allowed, MineConfig(**{"min_mi": 0.05, **settings}))


_ALL = ~np.eye(12, dtype=bool)
_KNOWN = np.ones((12, 60), bool)


def test_partners_are_those_that_move_together() -> None:
    found = _found(_groups(), _KNOWN, _ALL, top_k=5)
    assert found.twins.shape == found.mi.shape == found.p_value.shape == (12, 5)
    for patch in range(8):
        group = set(range(patch // 4 * 4, patch // 4 * 4 + 4))
        assert set(found.twins[patch, :3].tolist()) == group - {patch}
        assert found.twins[patch, 3:].tolist() == [-1, -1]
        assert (np.diff(found.mi[patch, :3]) <= 0).all()
        assert (found.p_value[patch, :3] < 0.05).all()
    assert (found.twins[8:] == -1).all()
    assert (found.mi[found.twins < 0] == 0).all()
    assert (found.p_value[found.twins < 0] == 1).all()
    # What is stored of a pair is what was estimated of it
    pairs, entropies = information(_groups(), _KNOWN)
    assert np.array_equal(found.pairs, pairs, equal_nan=True)
    assert np.array_equal(found.entropies, entropies)
    row, column = np.nonzero(found.twins >= 0)
    assert np.array_equal(found.mi[row, column], pairs[row, found.twins[row, column]])


def test_a_pair_has_one_p_value() -> None:
    found = _found(_groups(), _KNOWN, _ALL)
    p = {
        (i, int(j)): value
        for i in range(12)
        for j, value in zip(found.twins[i], found.p_value[i], strict=True)
        if j >= 0
    }
    assert len(p) == 24
    assert all(p[j, i] == value for (i, j), value in p.items())


def test_pairs_that_are_not_allowed_are_no_twins() -> None:
    allowed = _ALL.copy()
    allowed[0, 1] = allowed[1, 0] = False
    allowed[4:8] = allowed[:, 4:8] = False
    twins = _found(_groups(), _KNOWN, allowed).twins
    assert set(twins[0].tolist()) == {2, 3, -1}
    assert set(twins[1].tolist()) == {2, 3, -1}
    assert set(twins[2].tolist()) == {0, 1, 3, -1}
    assert (twins[4:] == -1).all()


def test_mi_is_estimated_where_a_twin_may_be() -> None:
    """Things without an allowed pair between them go by themselves, with the same bits."""
    rng = np.random.default_rng(2)
    leaders = rng.normal(size=(3, 40, 2)).repeat((70, 70, 10), axis=0)
    samples = leaders + 0.5 * rng.normal(size=leaders.shape)
    thing = np.arange(3).repeat((70, 70, 10))
    known = rng.random((150, 40)) < 0.9
    allowed = thing[:, None] == thing
    allowed[70:80, 0] = True  # one direction is enough
    linked = (thing < 2)[:, None] == (thing < 2)
    pairs, entropies = information(samples, known)
    found = _found(samples, known, allowed)
    assert np.array_equal(found.pairs, np.where(linked, pairs, np.nan), equal_nan=True)
    assert np.array_equal(found.entropies, entropies)


def test_of_partners_alike_the_deepest_comes_first() -> None:
    samples, depth = _groups(), np.zeros(12, int)
    config = MineConfig(min_mi=0.05, mi_tolerance=0.0)
    plain = find_partners(samples, _KNOWN, _ALL, config)
    assert np.array_equal(_found(samples, _KNOWN, _ALL, mi_tolerance=9.0).twins, plain.twins)
    last = plain.twins[0, 2]  # of the three others of its group
    depth[last] = 1
    gap = float(plain.mi[0, 0] - plain.mi[0, 2])
    for tolerance, first in ((0.9 * gap, plain.twins[0, 0]), (1.1 * gap, last)):
        config = MineConfig(min_mi=0.05, mi_tolerance=tolerance, top_k=1)
        found = find_partners(samples, _KNOWN, _ALL, config, depth=depth)
        assert found.twins[0].tolist() == [first]
        assert found.mi[0, 0] == found.pairs[0, first]
    found = find_partners(
        samples, _KNOWN, _ALL, MineConfig(min_mi=0.05, mi_tolerance=9.0), None, depth
    )
    assert found.twins[0, :3].tolist() == [last, *plain.twins[0, :2]]
    row, column = np.nonzero(found.twins >= 0)
    assert np.array_equal(found.mi[row, column], found.pairs[row, found.twins[row, column]])


def test_top_k_keeps_the_best() -> None:
    many, few = (_found(_groups(), _KNOWN, _ALL, top_k=k) for k in (5, 1))
    assert few.twins.shape == (12, 1)
    assert np.array_equal(few.twins[:, 0], many.twins[:, 0])


def test_what_moves_independently_has_no_partner() -> None:
    """Random walks: autocorrelation alone gives their pairs some information."""
    rng = np.random.default_rng(1)
    walks = np.cumsum(rng.normal(size=(20, 60, 2)), axis=1)
    allowed = ~np.eye(20, dtype=bool)
    known = np.ones((20, 60), bool)
    tested = _found(walks, known, allowed)
    assert (tested.twins[:, 0] >= 0).mean() <= 0.1
    untested = _found(walks, known, allowed, fdr=1.0)
    assert (untested.twins[:, 0] >= 0).mean() > 0.5
    assert (untested.p_value[untested.twins >= 0] == 0).all()
    assert (untested.p_value[untested.twins < 0] == 1).all()
    assert untested.null.size == 0


def test_least_information() -> None:
    found = _found(_groups(), _KNOWN, _ALL, fdr=1.0, min_mi=0.6)
    assert (found.mi[found.twins >= 0] > 0.6).all()
    whole = _found(_groups(), _KNOWN, _ALL, fdr=1.0, min_mi=0.0, top_k=11)
    assert ((whole.mi > 0.6).sum(axis=1) == (found.twins >= 0).sum(axis=1)).all()


@pytest.mark.parametrize("count", [0, 1])
def test_nobody_to_choose_from(count: int) -> None:
    found = _found(
        np.zeros((count, 23, 2)), np.ones((count, 23), bool), np.zeros((count, count), bool)
    )
    assert found.twins.tolist() == [[-1] * 5] * count
    assert found.p_value.tolist() == [[1.0] * 5] * count
    assert found.mi.tolist() == [[0.0] * 5] * count
    assert found.pairs.shape == (count, count)
    assert found.entropies.tolist() == [-np.inf] * count


def test_the_seed_decides() -> None:
    one, two, other = (_found(_groups(), _KNOWN, _ALL, surrogates=8, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.null, two.null)
    assert np.array_equal(one.p_value, two.p_value)
    assert not np.array_equal(one.null, other.null)


@pytest.mark.parametrize("frames", [4, 8, 23])
def test_short_windows(frames: int) -> None:
    """As few steps as the settings allow: an answer, and no number that is none."""
    found = _found(_groups(frames), np.ones((12, frames), bool), _ALL, k=2)
    assert np.isfinite(found.p_value).all()
    assert ((found.p_value > 0) & (found.p_value <= 1)).all()
    assert np.isfinite(found.mi).all()
