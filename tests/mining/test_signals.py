"""What enters the estimator: changes of colour, and what is made of the steps."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from solo_infoaug.mining.signals import colour_changes, represent

_SIDE = 8.0


def _frames(levels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames of flat squares of 16 pixels, side by side, in the colours `levels` [T, P, 3]."""
    frames = [
        np.repeat(np.repeat(colours[None].astype(np.uint8), 16, axis=1), 16, axis=0)
        for colours in levels
    ]
    centres = np.stack([16.0 * np.arange(levels.shape[1]) + 7.5, np.full(levels.shape[1], 7.5)], 1)
    return frames, np.repeat(centres[None], len(levels), axis=0)


def _exposed(gains: list[tuple[int, int, int]]) -> np.ndarray:
    """[T, 5, 3]: grey levels, with one added, that are multiplied by each frame's gains."""
    base = np.array([4, 8, 10, 16, 20])[:, None]
    return np.array([base * np.array([gain]) for gain in gains]) - 1


def test_what_all_share_is_removed_exactly() -> None:
    """Exposure and white balance: another factor for each channel."""
    frames, path = _frames(_exposed([(1, 1, 1), (4, 4, 4), (2, 6, 3), (12, 1, 5)]))
    known = np.ones((5, 3), bool)
    steps = colour_changes(frames, path, known, _SIDE)
    assert steps.shape == (5, 3, 3)
    assert np.abs(steps).max() < 1e-12


def test_an_own_change_is_kept() -> None:
    levels = _exposed([(1, 1, 1), (2, 3, 4), (2, 2, 2)])
    levels[1, 2, 0] = 3 * (levels[1, 2, 0] + 1) - 1  # thrice as red in the middle frame
    frames, path = _frames(levels)
    steps = colour_changes(frames, path, np.ones((5, 2), bool), _SIDE)
    expected = np.zeros((5, 2, 3))
    expected[2, :, 0] = np.log(3), -np.log(3)
    assert np.allclose(steps, expected, atol=1e-12)


def test_a_patch_is_followed() -> None:
    """A patch that moves over a background keeps its colour: there is no change."""
    frames = [np.full((40, 120, 3), 30, np.uint8) for _ in range(4)]
    path = np.zeros((4, 4, 2))
    path[:, :3] = [[20.0, 30.0], [60.0, 30.0], [100.0, 30.0]]
    for t, frame in enumerate(frames):
        frame[2:18, 10 + 20 * t : 26 + 20 * t] = 200, 100, 50
        path[t, 3] = 17.5 + 20 * t, 9.5
    assert np.abs(colour_changes(frames, path, np.ones((4, 3), bool), _SIDE)).max() < 1e-12


def test_what_is_not_known_is_zero_and_has_no_say() -> None:
    levels = _exposed([(1, 1, 1), (2, 2, 2)])
    levels[1, 2:] = 250, 3, 99  # three of five: the median would be theirs
    frames, path = _frames(levels)
    known = np.array([[True], [True], [False], [False], [False]])
    steps = colour_changes(frames, path, known, _SIDE)
    assert np.abs(steps).max() < 1e-12
    nobody = colour_changes(frames, path, np.zeros((5, 1), bool), _SIDE)
    assert np.array_equal(nobody, np.zeros((5, 1, 3)))


# --- representations


def _steps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    known = np.ones((6, 10), bool)
    known[1, 7:] = False
    known[2, :2] = False
    return rng.normal(0, 3, (6, 10, 2)) * known[..., None], known


def test_velocity_is_the_steps() -> None:
    steps, known = _steps()
    found, there = represent(steps, known, "velocity")
    assert np.array_equal(found, steps)
    assert np.array_equal(there, known)


def test_position_is_their_sums() -> None:
    steps, known = _steps()
    found, there = represent(steps, known, "position")
    assert np.array_equal(there, known)
    for p in range(6):
        place = np.zeros(2)
        for t in range(10):
            place = place + steps[p, t]
            assert found[p, t] == pytest.approx(place if known[p, t] else [0, 0])


@pytest.mark.parametrize("representation", ["velocity", "position", "both"])
def test_no_patch_at_all(representation: str) -> None:
    none = np.zeros((0, 9, 2)), np.zeros((0, 9), bool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, there = represent(*none, representation)
    assert found.shape == (0, 9, 4 if representation == "both" else 2)
    assert there.shape == (0, 9)


def test_both_are_beside_each_other_with_the_same_spread() -> None:
    steps, known = _steps()
    found, _ = represent(steps, known, "both")
    places, _ = represent(steps, known, "position")
    assert found.shape == (6, 10, 4)
    for part, source in ((found[..., :2], places), (found[..., 2:], steps)):
        assert part[known].std() == pytest.approx(1)
        factor = part[known] / source[known]
        assert np.allclose(factor, factor.ravel()[0])
    still, _ = represent(np.zeros_like(steps), known, "both")
    assert np.array_equal(still, np.zeros((6, 10, 4)))
