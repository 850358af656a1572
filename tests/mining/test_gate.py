"""The entropy gate, against closed forms and loops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from videos import texture

from solo_infoaug.mining.gate import (
    along_background,
    difference,
    distances,
    drift,
    error_ratio,
    explained_by_own,
    grid_points,
    motion_threshold,
    sample,
    smoothed,
    support,
    surrounded,
)


def test_motion_threshold() -> None:
    speed = np.array([0.1, 0.2, 9.0])
    # The noise is the median of the patches …
    assert motion_threshold(speed, 0.3, 0.0, 6.0) == pytest.approx(6 * 0.2)
    # … but no more than three times that of the fit: most patches may move
    assert motion_threshold(speed, 0.05, 0.0, 6.0) == pytest.approx(6 * 0.15)
    # … nor more than 1.5 times the lower quartile
    assert motion_threshold(np.array([0.1, 0.1, 4.0, 4.0, 4.0]), 9.0, 0.0, 6.0) == pytest.approx(
        0.9
    )
    assert motion_threshold(speed, 0.3, 5.0, 6.0) == 5.0
    assert motion_threshold(speed, np.inf, 0.0, 6.0) == pytest.approx(6 * 0.2)
    assert motion_threshold(np.zeros(0), 0.3, 1.0, 6.0) == pytest.approx(1.8)
    assert motion_threshold(speed, 0.3, 0.0, 0.0) == 0.0


def test_smoothed_is_the_mean_of_the_known_frames_around() -> None:
    rng = np.random.default_rng(0)
    known = rng.random((4, 9)) < 0.7
    motion = rng.normal(size=(4, 9, 2)) * known[..., None]
    found = smoothed(motion, known)
    for patch in range(4):
        for t in range(9):
            near = [s for s in range(max(t - 2, 0), min(t + 3, 9)) if known[patch, s]]
            expected = motion[patch, near].mean(axis=0) if known[patch, t] else np.zeros(2)
            assert found[patch, t] == pytest.approx(expected)


# --- does a patch's own motion explain its pixels?

_FRAMES = 7


def _scene(gain: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """A square that jumps before a background at rest, flat below; its steps [T−1, 2].

    Each frame is `gain` grey levels brighter than the one before.
    """
    rng = np.random.default_rng(0)
    background = cv2.cvtColor(texture(180, 200, 0), cv2.COLOR_RGB2GRAY) // 2 + 40
    background[100:] = 90
    square = cv2.cvtColor(texture(50, 50, 1), cv2.COLOR_RGB2GRAY) // 2 + 40
    steps = rng.choice([-4, -3, 3, 4], (_FRAMES - 1, 2))
    at = np.concatenate([[[26, 26]], steps]).cumsum(axis=0)
    frames = []
    for t, (x, y) in enumerate(at):
        image = background.copy()
        image[y : y + 50, x : x + 50] = square
        frames.append(image + np.uint8(gain * t))
    return frames, steps.astype(float)


def _ratios(
    frames: list[np.ndarray], start: tuple[float, float], steps: np.ndarray, motion: np.ndarray
) -> float:
    path = np.concatenate([[start], steps]).cumsum(axis=0)[:, None]
    known = np.ones((1, _FRAMES - 1), bool)
    return float(error_ratio(frames, path, motion[None], known, 16.0)[0])


@pytest.mark.parametrize("gain", [0, 6])
def test_a_patch_that_moves_explains_its_pixels(gain: int) -> None:
    """Not the brightness of the frame, which changes for all."""
    frames, steps = _scene(gain)
    assert _ratios(frames, (51.0, 51.0), steps, steps) < 0.1


def test_flow_that_bleeds_over_an_outline_does_not() -> None:
    """Beside the object the background rests, but its flow is the object's."""
    frames, steps = _scene()
    assert _ratios(frames, (150.0, 45.0), steps, steps) > 10


def test_where_there_is_no_texture_both_fit() -> None:
    frames, steps = _scene()
    assert _ratios(frames, (150.0, 140.0), steps, steps) == pytest.approx(1, abs=1e-6)


def test_a_patch_that_follows_the_background_fits_alike() -> None:
    frames, steps = _scene()
    rest = np.zeros_like(steps)
    assert _ratios(frames, (130.0, 30.0), rest, rest) == 1.0


def test_what_is_not_known_does_not_count() -> None:
    frames, steps = _scene()
    path = np.concatenate([[(51.0, 51.0)], steps]).cumsum(axis=0)[:, None]
    known = np.ones((1, _FRAMES - 1), bool)
    known[0, 3:] = False
    whole = error_ratio(frames, path, steps[None], known, 16.0)
    spoilt, motion = path.copy(), steps.copy()
    spoilt[4:], motion[3:] = -50.0, 33.0
    assert np.array_equal(error_ratio(frames, spoilt, motion[None], known, 16.0), whole)
    for nowhere in (np.nan, 1e9):  # what a file of tracks may say of a hidden point
        spoilt[4:] = nowhere
        assert np.array_equal(error_ratio(frames, spoilt, motion[None], known, 16.0), whole)
    known[:] = False
    assert error_ratio(frames, path, steps[None], known, 16.0).tolist() == [1.0]


def test_no_patch_at_all() -> None:
    shape = (_FRAMES, 0, 2), (0, _FRAMES - 1, 2), (0, _FRAMES - 1)
    path, motion, known = np.zeros(shape[0]), np.zeros(shape[1]), np.zeros(shape[2], bool)
    assert error_ratio(_scene()[0], path, motion, known, 16.0).shape == (0,)


def test_the_ratio_is_what_loops_find() -> None:
    """Points on whole pixels: 0.9 sides hold six of them, so that 40/3 pixels are 2 apart."""
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 256, (60, 80)).astype(np.uint8) for _ in range(4)]
    path = rng.integers(10, 50, (4, 5, 2)).astype(float)
    motion = rng.integers(-4, 5, (5, 3, 2)).astype(float)
    known = rng.random((5, 3)) < 0.8
    smooth = [cv2.GaussianBlur(frame.astype(np.float64), (0, 0), 0.7) for frame in frames]

    def pixels(t: int, x: float, y: float) -> np.ndarray:
        return np.array(
            [smooth[t][int(y) + v, int(x) + u] for v in range(-5, 6, 2) for u in range(-5, 6, 2)]
        )

    def error(residual: np.ndarray) -> float:
        residual = residual - np.median(residual)
        return float(np.mean([min(value**2, 20.0**2) for value in residual]))

    expected = []
    for p in range(5):
        own, background = [], []
        for t in range(3):
            if known[p, t]:
                before = pixels(t, *path[t, p])
                own.append(error(pixels(t + 1, *path[t + 1, p]) - before))
                background.append(error(pixels(t + 1, *(path[t + 1, p] - motion[p, t])) - before))
        expected.append((np.mean(own) + 4) / (np.mean(background) + 4))
    found = error_ratio(frames, path, motion, known, 40 / 3)
    assert np.allclose(found, expected, rtol=0.01)
    assert np.ptp(expected) > 0.02


# --- neighbours that move alike


def _signal() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    known = rng.random((12, 9)) < 0.7
    motion = rng.normal(0, 1, (12, 9, 3)) * known[..., None]
    motion[3], known[3] = motion[2], known[2]
    return motion, known


def test_difference_is_what_loops_find() -> None:
    motion, known = _signal()
    differences, energy = difference(motion, known)
    for i in range(12):
        for j in range(12):
            both = known[i] & known[j]
            assert energy[i, j] == pytest.approx((motion[i, both] ** 2).sum())
            # Where one of them is not known it is 0: what the other one does there is left out
            expected = ((motion[i, both] - motion[j, both]) ** 2).sum()
            assert differences[i, j] == pytest.approx(expected, abs=1e-9)


def test_no_patch_differs_from_no_patch() -> None:
    """Nothing moves in most windows of a camera that watches a street at night."""
    differences, energy = difference(np.zeros((0, 9, 2)), np.zeros((0, 9), bool))
    assert differences.shape == energy.shape == (0, 0)
    assert support(np.zeros((0, 0)), 16.0, differences, energy).shape == (0,)


def test_support_is_what_loops_find() -> None:
    rng = np.random.default_rng(1)
    centres = np.concatenate([rng.uniform(0, 60, (40, 2)), [[30.0, 30.0], [30.0, 30.0]]])
    side = 16.0
    known = np.ones((42, 8), bool)
    motion = rng.normal(0, 1, (1, 8, 2)) + rng.normal(0, 0.45, (42, 8, 2))
    differences, energy = difference(motion, known)
    found = support(distances(centres), side, differences, energy)
    expected = []
    for i in range(42):
        count = 0
        for j in range(42):
            away = max(abs(centres[i] - centres[j]))
            alike = ((motion[i] - motion[j]) ** 2).sum() < 0.25 * (motion[i] ** 2).sum()
            count += bool(0 < away < 1.5 * side and alike)
        expected.append(count)
    assert found.tolist() == expected
    assert sum(expected) > 0
    assert len(set(expected)) > 3


# --- sampling


def test_sampling_is_bilinear() -> None:
    image = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    points = np.random.default_rng(1).uniform(-5, 45, (50, 7, 2)).astype(np.float32)
    points = np.round(points * 32) / 32  # OpenCV's steps
    expected = map_coordinates(image, [points[..., 1], points[..., 0]], order=1, mode="nearest")
    assert np.allclose(sample(image, points), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_more_rows_than_opencv_takes(channels: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 40, *channels)).astype(np.uint8)
    x, y = rng.integers(0, 40, (40_000, 2)), rng.integers(0, 30, (40_000, 2))
    found = sample(image, np.stack([x, y], axis=-1).astype(np.float32))
    assert np.array_equal(found, image[y, x])


def test_sampling_nowhere() -> None:
    assert sample(np.zeros((5, 5), np.uint8), np.zeros((0, 4, 2), np.float32)).shape == (0, 4)
    assert sample(np.zeros((5, 5, 3), np.uint8), np.zeros((0, 4, 2), np.float32)).shape == (0, 4, 3)


def test_grid_points_lie_in_the_patch_around_its_centre() -> None:
    points = grid_points(np.array([[50.0, 20.0], [8.5, 9.5]]), 20.0)
    assert points.shape == (2, 36, 2)
    assert np.allclose(points.mean(axis=1), [[50, 20], [8.5, 9.5]], atol=1e-4)
    # Six cells of 3 pixels: the outermost centres are 7.5 away
    assert np.allclose(np.abs(points - points.mean(axis=1, keepdims=True)).max(axis=1), 7.5)
    assert len(np.unique(points[0].round(3), axis=0)) == 36


def test_a_patch_too_flat_to_tell_does_as_those_around_it() -> None:
    side, count = 10.0, 5
    centres = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2) * side
    moving, middle, corner = np.arange(len(centres)), 12, 0
    ratio = np.full(len(centres), 0.2)
    ratio[[middle, corner]] = 0.8

    def explained(limit: float = 0.5) -> np.ndarray:
        return explained_by_own(ratio, moving, centres.astype(np.float32), side, limit)

    assert explained().all()
    ratio[middle] = 0.95  # the background explains it as well
    assert explained().tolist() == (ratio < 0.9).tolist()
    ratio[:] = 0.8  # nobody around it can tell either
    assert not explained().any()
    ratio[centres[:, 0] < 20] = (
        0.2  # the outline of a thing: three of the eight around are the thing
    )
    assert explained().tolist() == (centres[:, 0] < 20).tolist()


def test_a_patch_that_does_not_move_is_nobodys_support() -> None:
    centres = np.array([[0, 0], [10, 0], [20, 0], [0, 10], [10, 10], [20, 10]], np.float32)
    moving = np.array([0, 1, 2])
    ratio = np.array([0.2, 0.8, 0.2])
    explained = explained_by_own(ratio, moving, centres, 10.0, 0.5)
    assert explained.tolist() == [True, False, True]  # two of five neighbours, the rest is at rest


def test_sample_takes_more_points_than_opencv_takes_rows() -> None:
    image = cv2.cvtColor(texture(96, 128, 1), cv2.COLOR_RGB2GRAY)
    points = np.random.default_rng(0).integers(0, [128, 96], (40_000, 4, 2))
    found = sample(image, points.astype(np.float32))
    assert np.array_equal(found, image[points[..., 1], points[..., 0]])


def test_drift_is_the_extent_of_what_one_moves_more_than_the_other() -> None:
    """Against the bounding boxes of paths that are summed in NumPy."""
    rng = np.random.default_rng(0)
    motion = rng.normal([0.5, 0.0], size=(4, 12, 2))
    motion[1] = motion[0]  # parts of one thing
    motion[3] = -motion[0]  # apart as fast as they go
    known = np.ones((4, 12), bool)
    known[2, 5:8] = False
    pairs = np.array([[0, 1], [0, 2], [2, 1], [0, 3]])

    def extent(steps: np.ndarray) -> float:
        path = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        return float(np.linalg.norm(np.ptp(path, axis=0)))

    def expected(i: int, j: int) -> float:
        one, two = (motion[n][known[i] & known[j]] for n in (i, j))
        return extent(one - two) / max(extent(one), extent(two))

    found = drift(motion, known, pairs)
    assert np.allclose(found, [expected(i, j) for i, j in pairs])
    assert found[0] == 0
    assert found[3] == pytest.approx(2.0)
    assert drift(motion, known, pairs[:0]).shape == (0,)


def test_surrounded_counts_the_certain_neighbours() -> None:
    """Patches of side 10, half a side apart: a row of five, of which the last is not certain."""
    apart = np.abs(np.subtract.outer(np.arange(5), np.arange(5))) * 5.0
    certain = np.array([True, True, True, True, False])
    assert surrounded(apart, 10.0, certain).tolist() == [2, 3, 3, 2, 2]


def test_what_moves_as_the_background_and_further_looks_like_parallax() -> None:
    rng = np.random.default_rng(0)
    background = np.broadcast_to(rng.normal(size=(1, 15, 2)), (4, 15, 2)).copy()
    other = rng.normal(size=(15, 2))
    # At a right angle to the background's motion, so that shares add up
    other -= (other * background[0]).sum() / (background[0] ** 2).sum() * background[0]
    other *= np.linalg.norm(background[0]) / np.linalg.norm(other)
    motion = np.stack([0.7 * background[0], -0.7 * background[0], other, background[0] + 2 * other])
    assert np.allclose(along_background(motion, background), [1, 0, 0, 1 / 5])
    assert along_background(motion, 0 * background).tolist() == [0] * 4
    # A camera that hardly moves has hardly any parallax
    assert np.allclose(along_background(motion[:1], 0.15 * background[:1]), 1)
    assert np.allclose(along_background(motion[:1], 0.1 * background[:1]), 0)
