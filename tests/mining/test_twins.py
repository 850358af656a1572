from __future__ import annotations

import numpy as np
import pytest

from solo_infoaug.mining.twins import apart, best_partners, information, trajectories

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


def test_trajectories() -> None:
    tracks = np.arange(12.0).reshape(3, 2, 2) ** 2
    seen = np.array([[1, 1], [1, 1], [1, 0]], bool)
    position, known = trajectories(tracks, seen, "position")
    assert position.shape == (2, 3, 2)
    assert known.tolist() == [[True, True, True], [True, True, False]]
    velocity, known = trajectories(tracks, seen, "velocity")
    assert np.array_equal(velocity[1], tracks[1:, 1] - tracks[:-1, 1])
    assert known.tolist() == [[True, True], [True, False]]


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


def test_apart() -> None:
    centres = np.array([[8.0, 8.0], [24.0, 8.0], [16.0, 16.0]])
    assert apart(centres, 16).tolist() == [
        [False, True, False],
        [True, False, False],
        [False, False, False],
    ]
