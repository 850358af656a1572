from __future__ import annotations

import numpy as np
import pytest

from solo_infoaug.mining.camera import estimate_camera

SIZE = (240, 320)


def _points(count: int, seed: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform([low * 320, low * 240], [high * 320, high * 240], (count, 2))


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    flat = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ matrix.T
    return flat[:, :2] / flat[:, 2:]


def _affine(t: int) -> np.ndarray:
    """A camera that pans, turns and zooms: from the first frame to frame t."""
    angle, zoom = 0.004 * t, 1 + 0.003 * t
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    return np.array([[c, -s, 1.5 * t], [s, c, -0.7 * t], [0, 0, 1]])


def _shot(movers: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Background points, and `movers` that go their own way in the middle of the frame."""
    rng = np.random.default_rng(seed)
    background, foreground = _points(60, seed), _points(movers, seed + 1, 0.35, 0.65)
    steps = rng.uniform(2.5, 5, (20, 1, 2)) * rng.choice([-1, 1], (20, 1, 2))
    own = np.cumsum(steps, axis=0)
    own -= own[:1]
    world = np.concatenate(
        [np.repeat(background[None], 20, axis=0), foreground[None] + own], axis=1
    )
    tracks = np.stack([_moved(world[t], _affine(t)) for t in range(20)])
    return tracks + rng.normal(0, 0.02, tracks.shape), world, np.ones(tracks.shape[:2], bool)


@pytest.mark.parametrize("model", ["similarity", "affine", "homography"])
def test_the_camera_is_removed(model: str) -> None:
    tracks, world, visible = _shot(movers=20)
    camera = estimate_camera(tracks, visible, SIZE, model)
    assert camera.record["removed"] is True
    assert camera.record["fitted"] == 19
    assert 0.7 < camera.record["inliers"] <= 0.85
    assert np.abs(camera.stabilise(tracks) - world).max() < 0.8
    assert 0.01 < camera.noise < 0.06


def test_a_foreground_in_the_majority_is_not_taken_for_the_background() -> None:
    tracks, world, visible = _shot(movers=110)
    camera = estimate_camera(tracks, visible, SIZE)
    assert camera.record["removed"] is True
    assert np.abs(camera.stabilise(tracks) - world)[:, :60].max() < 0.8


def test_nothing_is_removed_where_nothing_is_common() -> None:
    rng = np.random.default_rng(0)
    tracks = _points(80, 0) + np.cumsum(rng.normal(0, 5, (20, 80, 2)), axis=0)
    camera = estimate_camera(tracks, np.ones((20, 80), bool), SIZE)
    assert camera.record["removed"] is False
    assert camera.record["why"] == "no common background"
    assert np.array_equal(camera.stabilise(tracks), tracks)


def test_a_stretch_is_no_camera_motion() -> None:
    """Two objects side by side, no background: an affine model would explain both."""
    rng = np.random.default_rng(0)
    side = np.array([40.0, 60.0])
    points = np.concatenate(
        [rng.uniform(0, 80, (30, 2)) + side, rng.uniform(0, 80, (30, 2)) + side]
    )
    points[30:, 0] += 160
    steps = rng.uniform(2.5, 5, (20, 2, 2)) * rng.choice([-1, 1], (20, 2, 2))
    tracks = points + np.repeat(np.cumsum(steps, axis=0), 30, axis=1)
    camera = estimate_camera(tracks, np.ones((20, 60), bool), SIZE)
    assert camera.record["removed"] is False


def test_none_leaves_tracks_alone() -> None:
    tracks, _, visible = _shot(movers=5)
    camera = estimate_camera(tracks, visible, SIZE, "none")
    assert np.array_equal(camera.stabilise(tracks), tracks)
    assert camera.record == {"model": "none"}


def test_points_that_are_not_seen_do_not_count() -> None:
    tracks, world, visible = _shot(movers=0)
    visible[10:, :20] = False
    spoilt = tracks.copy()
    spoilt[10:, :20] = 7.0
    camera = estimate_camera(spoilt, visible, SIZE)
    assert np.abs(camera.stabilise(spoilt) - world)[:, 20:].max() < 0.8


def test_it_is_deterministic() -> None:
    tracks, _, visible = _shot(movers=30)
    one, two = (estimate_camera(tracks, visible, SIZE) for _ in range(2))
    assert np.array_equal(one.to_first, two.to_first)
