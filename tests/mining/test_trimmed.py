"""The camera over a window, where half of the frame moves: known cameras and things."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from solo_infoaug.mining.camera import CameraStep, fit_camera, fit_noise
from solo_infoaug.mining.trimmed import fit_over_window

SIZE, FRAMES, SEED = (240, 320), 12, 0


def _window(
    share_of_thing: float, own: float, noise: float = 0.02
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    """Paths [T, P, 2] under a camera that zooms and shakes, of which the thing in the middle also
    drifts; visible [T, P]; the true matrices; and which patches are the background's, bool [P]."""
    rng = np.random.default_rng(3)
    x, y = np.meshgrid(np.arange(8, 320, 8.0), np.arange(8, 240, 8.0))
    start = np.stack([x.ravel(), y.ravel()], axis=1)
    half = 0.5 * np.sqrt(share_of_thing) * np.array([320, 240])
    thing = (np.abs(start - [160, 120]) < half).all(axis=1)
    path, matrices = [start], list[np.ndarray]()
    for _ in range(FRAMES - 1):
        zoom, (dx, dy) = 1 + 0.004 * rng.normal(), 2 * rng.normal(size=2)
        matrix = np.array([[zoom, 0.002, dx], [-0.002, zoom, dy], [2e-6, -3e-6, 1]])
        moved = np.column_stack([path[-1], np.ones(len(start))]) @ matrix.T
        step = moved[:, :2] / moved[:, 2:]
        step[thing] += own * (np.array([1.0, 0.3]) + 0.4 * rng.normal(size=2))
        path.append(step)
        matrices.append(matrix)
    paths = np.array(path) + rng.normal(scale=noise, size=(FRAMES, len(start), 2))
    return paths, np.ones(paths.shape[:2], bool), matrices, ~thing


def _by_pairs(path: np.ndarray) -> list[CameraStep | None]:
    return [fit_camera(a, b, SIZE) for a, b in itertools.pairwise(path)]


def _error(
    camera: list[CameraStep | None], path: np.ndarray, true: list[np.ndarray], at: np.ndarray
) -> float:
    """RMS error of the camera's steps at the patches `at`, pixels a frame."""
    squares = []
    for step, matrix, points in zip(camera, true, path[:-1, at], strict=True):
        assert step is not None
        moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
        squares.append(((step.apply(points) - moved[:, :2] / moved[:, 2:]) ** 2).sum(axis=1))
    return float(np.sqrt(np.mean(squares)))


def test_it_follows_the_background_where_fits_of_pairs_bend_to_a_slow_thing() -> None:
    path, visible, true, background = _window(0.5, 1.5)
    by_pairs = _by_pairs(path)
    found = fit_over_window(path, visible, by_pairs, SEED, SIZE, "homography")
    assert found is not None
    assert _error(by_pairs, path, true, background) > 0.1
    assert _error(found, path, true, background) < 0.02


def test_it_follows_the_background_where_pairs_follow_the_thing_exactly() -> None:
    path, visible, true, background = _window(0.55, 2.0)
    by_pairs = _by_pairs(path)
    assert fit_noise(by_pairs) < 0.06
    assert _error(by_pairs, path, true, background) > 1
    found = fit_over_window(path, visible, by_pairs, SEED, SIZE, "homography")
    assert found is not None
    assert _error(found, path, true, background) < 0.02


def test_pairs_that_could_not_be_fitted_become_known() -> None:
    path, visible, true, background = _window(0.5, 1.5)
    by_pairs = _by_pairs(path)
    by_pairs[4] = by_pairs[5] = None
    found = fit_over_window(path, visible, by_pairs, SEED, SIZE, "homography")
    assert found is not None
    assert _error(found, path, true, background) < 0.02


def test_fits_that_most_points_follow_stay() -> None:
    path, visible, _, _ = _window(0.1, 1.5)
    assert fit_over_window(path, visible, _by_pairs(path), SEED, SIZE, "homography") is None


def test_fits_as_good_as_those_of_pairs_change_nothing() -> None:
    path, visible, _, _ = _window(0.4, 12.0)  # far faster than RANSAC tolerates
    by_pairs = _by_pairs(path)
    assert np.mean([step.share for step in by_pairs if step]) < 0.66
    assert fit_over_window(path, visible, by_pairs, SEED, SIZE, "homography") is None


@pytest.mark.parametrize("camera", [[None] * (FRAMES - 1), []])
def test_an_unknown_camera_stays_unknown(camera: list[CameraStep | None]) -> None:
    path, visible, _, _ = _window(0.5, 1.5)
    frames = len(camera) + 1
    assert (
        fit_over_window(path[:frames], visible[:frames], camera, SEED, SIZE, "homography") is None
    )


def test_patches_that_are_hardly_seen_are_not_the_background() -> None:
    path, visible, true, background = _window(0.4, 1.5)
    hidden = np.flatnonzero(background)[::8]
    path[3:, hidden], visible[3:, hidden] = 0.0, False
    seen = background.copy()
    seen[hidden] = False
    found = fit_over_window(
        path, visible, _by_visible_pairs(path, visible), SEED, SIZE, "homography"
    )
    assert found is not None
    assert _error(found, path, true, seen) < 0.02


def _by_visible_pairs(path: np.ndarray, visible: np.ndarray) -> list[CameraStep | None]:
    both = visible[1:] & visible[:-1]
    return [
        fit_camera(a[seen], b[seen], SIZE)
        for a, b, seen in zip(path[:-1], path[1:], both, strict=True)
    ]


def test_a_camera_that_stands_still_by_the_settings_is_not_fitted() -> None:
    path, visible, _, _ = _window(0.5, 1.5)
    assert fit_over_window(path, visible, _by_pairs(path), SEED, SIZE, "none") is None
