"""The background's motion: known cameras, foregrounds and layers of parallax."""

from __future__ import annotations

import numpy as np
import pytest

from solo_infoaug.mining.camera import (
    CameraStep,
    camera_steps,
    fit_camera,
    own_motion,
    remove_parallax,
    rms,
)

SIZE = (240, 320)
_ANGLE, _ZOOM = 0.02, 1.015
CAMERAS = {
    "similarity": np.array(
        [
            [_ZOOM * np.cos(_ANGLE), -_ZOOM * np.sin(_ANGLE), 3.0],
            [_ZOOM * np.sin(_ANGLE), _ZOOM * np.cos(_ANGLE), -2.0],
            [0, 0, 1],
        ]
    ),
    "affine": np.array([[1.02, 0.03, -4.0], [-0.01, 0.97, 2.5], [0, 0, 1]]),
    "homography": np.array([[1.01, 0.02, -3.0], [-0.02, 0.99, 4.0], [1e-4, -8e-5, 1]]),
}


def _points(count: int, seed: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """float64 [N, 2] in the frame, or in the middle of it."""
    rng = np.random.default_rng(seed)
    return rng.uniform([low * 320, low * 240], [high * 320, high * 240], (count, 2))


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """One point at a time, as a homography is defined."""
    found = []
    for x, y in points:
        u, v, w = matrix @ [x, y, 1.0]
        found.append((u / w, v / w))
    return np.array(found)


# --- one step of the camera


@pytest.mark.parametrize("model", list(CAMERAS))
def test_the_camera_is_found_among_outliers(model: str) -> None:
    source = _points(200, 0)
    target = _moved(source, CAMERAS[model])
    target[:60] += np.random.default_rng(1).uniform(5, 30, (60, 2))
    step = fit_camera(source, target, SIZE, model)
    assert step is not None
    everywhere = _points(50, 2)
    assert np.allclose(step.apply(everywhere), _moved(everywhere, CAMERAS[model]), atol=0.05)
    assert step.share == pytest.approx(140 / 200, abs=0.02)
    assert step.noise < 0.02


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_the_noise_is_measured(sigma: float) -> None:
    """Of a residual with two normal coordinates the RMS length is √2 sigma."""
    source = _points(1500, 0)
    target = _moved(source, CAMERAS["affine"])
    target += np.random.default_rng(1).normal(0, sigma, target.shape)
    step = fit_camera(source, target, SIZE, "affine")
    assert step is not None
    assert step.noise == pytest.approx(2**0.5 * sigma, rel=0.1)


@pytest.mark.parametrize("movers", [20, 130])
def test_a_foreground_that_does_not_reach_the_border_is_not_the_background(movers: int) -> None:
    """130 points of a large object in the middle, against 90 that lie all over the frame."""
    background, foreground = _points(90, 0), _points(movers, 1, 0.3, 0.7)
    source = np.concatenate([background, foreground])
    target = np.concatenate(
        [_moved(background, CAMERAS["similarity"]), foreground + np.array([-9.0, 7.0])]
    )
    step = fit_camera(source, target, SIZE)
    assert step is not None
    assert np.allclose(step.apply(background), target[:90], atol=0.1)
    assert step.share == pytest.approx(90 / (90 + movers), abs=0.02)


def test_nothing_fits_where_nothing_is_common() -> None:
    source = _points(150, 0)
    target = source + np.random.default_rng(1).normal(0, 25, source.shape)
    for model in CAMERAS:
        assert fit_camera(source, target, SIZE, model) is None


@pytest.mark.parametrize(("count", "trusted"), [(80, False), (160, True)])
def test_less_than_half_is_the_background_only_if_it_lies_all_around(
    count: int, trusted: bool
) -> None:
    """Points of the frame's left part, against 120 on the right that agree on nothing."""
    left, rest = _points(count, 0), _points(120, 1)
    left[:, 0] *= 0.6
    rest[:, 0] = SIZE[1] - rest[:, 0] * 0.3
    target = [
        _moved(left, CAMERAS["similarity"]),
        rest + 40 * np.random.default_rng(2).normal(size=rest.shape),
    ]
    step = fit_camera(np.concatenate([left, rest]), np.concatenate(target), SIZE)
    assert (step is not None) == trusted


def test_a_minority_is_no_background() -> None:
    """30 of 300 points agree, all over the frame: a tenth is no camera."""
    source = _points(300, 0)
    target = source + np.random.default_rng(1).normal(0, 25, source.shape)
    target[:30] = source[:30] + np.array([3.0, 1.0])
    assert fit_camera(source, target, SIZE, "similarity") is None


@pytest.mark.parametrize("count", [0, 1, 3, 19])
def test_too_few_points(count: int) -> None:
    source = _points(count, 0)
    assert fit_camera(source, source + 1, SIZE) is None


def test_points_in_one_place_do_no_harm() -> None:
    source = np.full((40, 2), 17.0)
    step = fit_camera(source, source + 2, SIZE)
    assert step is None or np.isfinite(step.matrix).all()


def test_none_says_that_nothing_moves() -> None:
    source = _points(5, 0)
    step = fit_camera(source, source + 9, SIZE, "none")
    assert step is not None
    assert np.array_equal(step.apply(source), source)
    assert (step.noise, step.share) == (0.0, 1.0)


def test_the_fit_is_deterministic() -> None:
    source = _points(200, 0)
    target = _moved(source, CAMERAS["homography"])
    target += np.random.default_rng(1).normal(0, 0.3, target.shape)
    one, two = (fit_camera(source, target, SIZE) for _ in range(2))
    assert one is not None
    assert two is not None
    assert np.array_equal(one.matrix, two.matrix)


def test_scaled() -> None:
    step = CameraStep(CAMERAS["homography"], 0.3, 0.8)
    scale = np.array([2.0, 2.5])
    larger, points = step.scaled(scale), _points(20, 0)
    assert np.allclose(larger.apply(points * scale), step.apply(points) * scale)
    assert larger.noise == pytest.approx(0.3 * 2.25)
    assert larger.share == 0.8


# --- what patches do that the camera does not


def test_own_motion_is_what_a_loop_finds() -> None:
    rng = np.random.default_rng(0)
    path = _points(15, 0) + rng.normal(0, 4, (6, 15, 2))
    visible = rng.random((6, 15)) < 0.8
    camera = [CameraStep(matrix, 0.0, 1.0) for matrix in CAMERAS.values()]
    steps = [camera[0], camera[1], None, camera[2], camera[0]]
    motion, known = own_motion(path, visible, steps)
    assert known.any()
    assert not known.all()
    for p in range(15):
        for t, step in enumerate(steps):
            there = step is not None and visible[t, p] and visible[t + 1, p]
            assert known[p, t] == there
            expected = np.zeros(2)
            if there:
                expected = path[t + 1, p] - _moved(path[t, p][None], step.matrix)[0]
            assert np.allclose(motion[p, t], expected)


def test_the_camera_alone_leaves_nothing() -> None:
    path = [_points(10, 0)]
    for matrix in CAMERAS.values():
        path.append(_moved(path[-1], matrix))
    camera = [CameraStep(matrix, 0.0, 1.0) for matrix in CAMERAS.values()]
    motion, known = own_motion(np.array(path), np.ones((4, 10), bool), camera)
    assert known.all()
    assert np.abs(motion).max() < 1e-9


def test_rms() -> None:
    motion = np.zeros((3, 4, 2))
    motion[0] = 3.0, 4.0
    motion[1, :2] = 6.0, 8.0
    known = np.ones((3, 4), bool)
    known[1, 2:] = False
    known[2] = False
    assert rms(motion, known).tolist() == [5.0, 10.0, 0.0]


# --- parallax


_PATCHES, _STEPS, _SIGMA = 600, 23, 0.07
_NOISE = 2**0.5 * _SIGMA


def _layers(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Patches at rest at random depths before a camera that moves now faster and now slower.

    Returns motion [P, T, 2], known [P, T], centres [P, 2], and the pattern [T, 2].
    """
    rng = np.random.default_rng(seed)
    centres = _points(_PATCHES, seed)
    speed = 1.5 + np.cumsum(rng.normal(0, 0.4, _STEPS))
    pattern = speed[:, None] * np.array([1.0, 0.3])
    strength = rng.uniform(-0.6, 1.4, _PATCHES)  # nearer and further than the camera's model
    motion = strength[:, None, None] * pattern + rng.normal(0, _SIGMA, (_PATCHES, _STEPS, 2))
    return motion, np.ones((_PATCHES, _STEPS), bool), centres, pattern


# The camera turns against its way, so that the most of the scene stays in the frame
_CAMERA = -0.4 * _layers()[3] + [0.2, 0.0]


def test_layers_of_any_depth_come_to_rest() -> None:
    motion, known, centres, _ = _layers()
    assert np.median(rms(motion, known)) > 5 * _NOISE
    left, modes = remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA)
    assert modes == 1
    speed = rms(left, known)
    # One of 46 numbers a patch is fitted; at the ends of the range a little is left
    assert np.median(speed) == pytest.approx(_NOISE, rel=0.05)
    assert np.quantile(speed, 0.9) < 1.2 * _NOISE
    assert speed.max() < 2.5 * _NOISE


def test_what_moves_otherwise_keeps_its_motion() -> None:
    """Against the camera beyond all layers, faster than any of them, or in its own way."""
    motion, known, centres, pattern = _layers()
    rng = np.random.default_rng(5)
    middle = np.flatnonzero((np.abs(centres - [160, 120]) < [60, 45]).all(axis=1))
    against, faster, other = np.array_split(middle, 3)
    own = np.cumsum(rng.normal(0, 1.0, (_STEPS, 2)), axis=0)
    motion[against] = -3.0 * pattern
    motion[faster] = 5.0 * pattern
    motion[other] = own
    left, modes = remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA)
    assert modes == 1
    # What is left is their motion less that of the nearest layer
    length = rms(pattern[None], known[:1])[0]
    assert np.allclose(rms(left, known)[against] / length, 3.0 - 0.6, atol=0.1)
    assert np.allclose(rms(left, known)[faster] / length, 5.0 - 1.4, atol=0.1)
    # Of any motion no more is taken than what lies along the pattern
    along = (own * pattern).sum() / (pattern**2).sum()
    across = rms((own - along * pattern)[None], known[:1])[0]
    assert (rms(left, known)[other] > 0.99 * across).all()
    assert across > 5 * _NOISE
    rest = np.setdiff1d(np.arange(_PATCHES), middle)
    assert np.quantile(rms(left, known)[rest], 0.9) < 1.2 * _NOISE


def test_a_scene_on_one_side_of_the_model_is_not_turned_around() -> None:
    """All layers drift one way: an object that drifts the other way loses nothing."""
    motion, known, centres, pattern = _layers()
    strength = np.random.default_rng(1).uniform(0.2, 1.4, _PATCHES)
    motion += (strength - (motion * pattern).sum((1, 2)) / (pattern**2).sum())[
        :, None, None
    ] * pattern
    middle = (np.abs(centres - [160, 120]) < [40, 30]).all(axis=1)
    motion[middle] = -0.8 * pattern
    left, modes = remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA)
    assert modes == 1
    assert np.allclose(left[middle], -0.8 * pattern, atol=1e-4)


def test_nothing_is_removed_where_it_does_not_reach_round_the_border() -> None:
    """A large object in the middle, before a background at rest."""
    motion, known, centres, pattern = _layers()
    middle = (np.abs(centres - [160, 120]) < [75, 55]).all(axis=1)
    rng = np.random.default_rng(1)
    motion = rng.normal(0, _SIGMA, motion.shape)
    motion[middle] += rng.uniform(0.8, 1.2, (middle.sum(), 1, 1)) * pattern
    assert middle.sum() > 60
    left, modes = remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA)
    assert modes == 0
    assert np.array_equal(left, motion)


def test_a_pattern_that_does_not_follow_the_camera_stays() -> None:
    motion, known, centres, _ = _layers()
    motion -= motion.mean(axis=1, keepdims=True)
    other = np.random.default_rng(7).normal(0, 1.0, (_STEPS, 2))
    left, modes = remove_parallax(motion, known, centres, SIZE, _NOISE, other)
    assert modes == 0
    assert np.array_equal(left, motion)
    # In part unknown, the rest tells
    part = _CAMERA.copy()
    part[::3] = np.nan
    assert remove_parallax(motion, known, centres, SIZE, _NOISE, part)[1] == 1


def test_a_steady_drift_needs_no_unsteady_camera() -> None:
    """Along a straight way, what the camera does from frame to frame is its hand's."""
    motion, known, centres, pattern = _layers()
    strength = (motion * pattern).sum(axis=(1, 2), keepdims=True) / (pattern**2).sum()
    motion += strength * (pattern.mean(axis=0) - pattern)
    shake = np.random.default_rng(7).normal(0, 1.0, (_STEPS, 2))
    assert remove_parallax(motion, known, centres, SIZE, _NOISE, shake)[1] == 1


@pytest.mark.parametrize(("alike", "removed"), [(0.2, 0), (0.4, 1)])
def test_a_few_things_that_move_alike_are_no_background(alike: float, removed: int) -> None:
    """Where much moves, each in its own way, a pattern must explain a good part of it."""
    motion, known, centres, pattern = _layers()
    rng = np.random.default_rng(2)
    motion[:] = np.cumsum(rng.normal(0, 1.0, motion.shape), axis=1)
    motion[rng.random(_PATCHES) < 0.7] = 0.0
    moving = np.flatnonzero(motion.any(axis=(1, 2)))
    group = rng.permutation(moving)[: round(alike * len(moving))]
    motion[group] = rng.uniform(0.5, 1.4, (len(group), 1, 1)) * pattern
    motion += rng.normal(0, _SIGMA, motion.shape)
    assert remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA)[1] == removed


def test_camera_steps() -> None:
    turn = np.array([[1.0, 0.1, 0.0], [-0.1, 1.0, 0.0], [0.0, 0.0, 1.0]])
    steps = camera_steps([CameraStep(turn, 0.0, 1.0), None], (40, 80))
    # In (20, 10), (20, 30), (60, 10), (60, 30)
    assert np.allclose(steps[0], [[1, -2], [3, -2], [1, -6], [3, -6]])
    assert np.isnan(steps[1]).all()


def test_nothing_is_removed_of_noise() -> None:
    _, known, centres, _ = _layers()
    motion = np.random.default_rng(1).normal(0, _SIGMA, (_PATCHES, _STEPS, 2))
    left, modes = remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA)
    assert modes == 0
    assert np.array_equal(left, motion)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_few_patches_are_left_alone(count: int) -> None:
    motion, known, centres, _ = (array[:count] for array in _layers())
    left, modes = remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA)
    assert modes == 0
    assert np.array_equal(left, motion)


def test_unknown_steps_stay_zero_and_do_not_matter() -> None:
    motion, known, centres, _ = _layers()
    rng = np.random.default_rng(3)
    known &= rng.random(known.shape) < 0.9
    motion *= known[..., None]
    left, modes = remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA)
    assert modes == 1
    assert (left[~known] == 0).all()
    assert np.median(rms(left, known)) == pytest.approx(_NOISE, rel=0.05)
    assert np.quantile(rms(left, known), 0.9) < 1.2 * _NOISE


def test_modes_are_removed_as_long_as_there_are_any() -> None:
    motion, known, centres, _ = _layers()
    once, _ = remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA, modes=1)
    left, modes = remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA, modes=3)
    assert modes == 1
    assert np.array_equal(left, once)


def test_parallax_is_deterministic_and_the_input_stays() -> None:
    motion, known, centres, _ = _layers()
    kept = motion.copy()
    one, two = (remove_parallax(motion, known, centres, SIZE, _NOISE, _CAMERA)[0] for _ in range(2))
    assert np.array_equal(one, two)
    assert np.array_equal(motion, kept)
