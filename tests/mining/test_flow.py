"""Dense flow, and patches that follow it, against known warps and an independent computation."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from videos import texture

from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.flow import Flow, flow_maker, follow_patches
from solo_infoaug.mining.mine_window import follow, mine_window
from solo_infoaug.mining.patch_grid import grid
from solo_infoaug.mining.trackers import make_tracker
from solo_infoaug.mining.windows import Window

HEIGHT, WIDTH = 120, 160


def _warped(matrix: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two grey frames: what is at x in the first one is at matrix [2, 3] · (x, 1) in the second."""
    margin = 40
    large = cv2.cvtColor(texture(HEIGHT + 2 * margin, WIDTH + 2 * margin, seed), cv2.COLOR_RGB2GRAY)
    before = np.ascontiguousarray(large[margin:-margin, margin:-margin])
    cut = matrix.astype(np.float64).copy()
    cut[:, 2] -= cut[:, :2] @ [margin, margin]  # from the coordinates of the large one
    return before, cv2.warpAffine(large, cut, (WIDTH, HEIGHT))


def _constant(dx: float, dy: float) -> Flow:
    forth = np.empty((HEIGHT, WIDTH, 2), np.float32)
    forth[:] = dx, dy
    return Flow(forth, -forth, (HEIGHT, WIDTH))


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
def test_flow_of_a_translation(preset: str) -> None:
    flow = flow_maker(preset)(*_warped(np.array([[1, 0, 3.4], [0, 1, -1.7]])))
    assert flow.size == (HEIGHT, WIDTH)
    assert flow.forth.shape == flow.back.shape == (HEIGHT // 2, WIDTH // 2, 2)
    inner = slice(6, -6), slice(6, -6)
    assert np.abs(flow.forth[inner] - [3.4, -1.7]).mean() < 0.2
    assert np.abs(flow.back[inner] - [-3.4, 1.7]).mean() < 0.2


def test_matches_of_an_affine_warp() -> None:
    angle, zoom = np.deg2rad(2.0), 1.03
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    matrix = np.array([[c, -s, 2.0], [s, c, -3.0]])
    one, two = _warped(matrix)
    source, target = flow_maker()(one, two).matches(1.0)
    assert len(source) > 0.8 * len(flow_maker()(one, one).matches(1.0)[0])
    truth = source @ matrix[:, :2].T + matrix[:, 2]
    assert np.median(np.abs(target - truth).max(axis=1)) < 0.3
    assert np.median(np.linalg.norm(truth - source, axis=1)) > 3
    assert np.abs(target - truth).max() < 1.5


def test_unrelated_frames_have_few_matches() -> None:
    one, two = (cv2.cvtColor(texture(HEIGHT, WIDTH, n), cv2.COLOR_RGB2GRAY) for n in (1, 2))
    flow = flow_maker()(one, two)
    assert len(flow.matches(1.0)[0]) < 0.3 * len(flow_maker()(one, one).matches(1.0)[0])
    centres = grid(HEIGHT, WIDTH, 16)
    _, visible = follow_patches([flow], centres, 16, 0, 1.0)
    assert visible[0].all()
    assert visible[1].mean() < 0.2


# --- the same in float64, with loops and SciPy's interpolation


def _at(flow: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The flow at (x, y); outside, that of the nearest pixel."""
    where = [[point[1]], [point[0]]]
    return np.array(
        [
            map_coordinates(flow[..., axis].astype(float), where, order=1, mode="nearest")[0]
            for axis in (0, 1)
        ]
    )


def _reference_step(
    forth: np.ndarray, back: np.ndarray, centre: np.ndarray, side: float, max_error: float
) -> np.ndarray | None:
    limit = np.array([forth.shape[1] - 1, forth.shape[0] - 1])
    steps = []
    for v in (-1, 0, 1):
        for u in (-1, 0, 1):
            start = centre + np.array([u, v]) / 3 * 0.9 * side
            if (start < 0).any() or (start > limit).any():
                continue
            # Whether the way comes back is asked of the nearest pixel
            way = forth[tuple(np.floor(start[::-1] + 0.5).astype(int))].astype(float)
            end = np.floor(start + 0.5) + way
            if (end < -0.5).any() or (end > limit + 0.5).any():
                continue
            home = _at(back, np.clip(end, 0, limit))
            if (way + home) @ (way + home) < max_error**2 + 0.01 * (way @ way + home @ home):
                steps.append(_at(forth, start))
    return None if len(steps) < 0.5 * 9 else np.median(steps, axis=0)


def test_patches_follow_like_the_reference() -> None:
    rng = np.random.default_rng(0)
    flows = []
    for _ in range(4):
        coarse = rng.normal(0, 3, (5, 6, 2)).astype(np.float32)
        forth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        # Not quite the inverse: many points disagree, some patches are lost
        noise = cv2.resize(rng.normal(0, 0.9, (8, 9, 2)).astype(np.float32), (WIDTH, HEIGHT))
        flows.append(Flow(forth, -forth + noise, (HEIGHT, WIDTH)))
    centres = grid(HEIGHT, WIDTH, 16)
    seed, side, max_error = 2, 16.0, 1.0
    path, visible = follow_patches(flows, centres, side, seed, max_error)
    assert 0.2 < visible[[0, 4]].mean() < 0.8  # both happens
    for patch, centre in enumerate(centres.astype(float)):
        for order in (range(seed, 4), range(seed, 0, -1)):
            place: np.ndarray = centre
            there = True
            for t in order:
                after = t + 1 if order.step > 0 else t - 1
                flow = flows[min(t, after)]
                pair = (flow.forth, flow.back) if after > t else (flow.back, flow.forth)
                step = _reference_step(*pair, place, side, max_error) if there else None
                there = step is not None
                place = place if step is None else place + step
                assert visible[after, patch] == there
                assert np.allclose(path[after, patch], place, atol=1e-3)


def test_vectors_on_a_coarser_grid_lie_between_the_pixels() -> None:
    """The vector i of a grid of half the size belongs to the place 2i + 0.5 of the frame."""
    x = 2.0 * np.arange(WIDTH // 2, dtype=np.float32) + 0.5
    slope = np.zeros((HEIGHT // 2, WIDTH // 2, 2), np.float32)
    slope[..., 0] = x / 10
    flow = Flow(slope, np.zeros_like(slope), (HEIGHT, WIDTH))
    centre = np.array([[40.0, 60.0]], np.float32)
    path, visible = follow_patches([flow], centre, 16, 0, 100.0)
    assert visible.all()
    assert path[1, 0].tolist() == pytest.approx([44.0, 60.0], abs=1e-3)


def test_both_directions_from_the_seed() -> None:
    centres = np.array([[60.0, 50.0], [90.5, 70.25]], np.float32)
    path, visible = follow_patches([_constant(2.5, -1.25)] * 6, centres, 16, 4, 1.0)
    away = np.arange(-4, 3)[:, None, None] * np.array([2.5, -1.25])
    assert visible.all()
    assert np.allclose(path, centres + away, atol=1e-4)


def test_a_patch_is_lost_where_two_columns_of_its_points_have_left() -> None:
    """5 of 9 points are needed: 2 columns of 3. The second is in the middle."""
    side, speed = 16.0, 4.0
    centres = np.array([[120.3, 60.0]], np.float32)
    path, visible = follow_patches([_constant(speed, 0.0)] * 12, centres, side, 0, 1.0)
    steps = int((WIDTH - 1 - 120.3) // speed)  # that end inside
    assert visible[:, 0].tolist() == [True] * (steps + 1) + [False] * (12 - steps)
    assert np.allclose(path[steps:, 0, 0], 120.3 + speed * steps, atol=1e-3)  # rests there


def test_lost_stays_lost() -> None:
    good = _constant(1.0, 0.0)
    bad = Flow(good.forth, good.forth, good.size)  # the way back goes on
    path, visible = follow_patches(
        [good, bad, good, good], np.array([[50.0, 50.0]], np.float32), 16, 0, 1.0
    )
    assert visible[:, 0].tolist() == [True, True, False, False, False]
    assert path[:, 0, 0].tolist() == [50, 51, 51, 51, 51]


def test_long_vectors_may_miss_by_more() -> None:
    """The flow misses its start by 2 pixels: too far for a step of 5, not for one of 16."""
    centre = np.array([[40.0, 60.0]], np.float32)
    for length, seen in ((5.0, False), (16.0, True)):
        forth = _constant(length, 0.0).forth
        flow = Flow(forth, -forth + np.array([0, 2], np.float32), (HEIGHT, WIDTH))
        # 2² against 1 + 0.01 · (2 length² + 2²)
        assert (1 + 0.01 * (2 * length**2 + 4) > 4) == seen
        assert follow_patches([flow], centre, 16, 0, 1.0)[1][1, 0] == seen


def test_no_patch_at_all() -> None:
    path, visible = follow_patches([_constant(1, 1)] * 3, np.zeros((0, 2), np.float32), 16, 1, 1.0)
    assert (path.shape, visible.shape) == ((4, 0, 2), (4, 0))


def test_a_dense_grid_on_a_wide_frame() -> None:
    """Ten thousand patches; OpenCV's functions that sample images take 32767 rows at most."""
    height, width, frames = 480, 854, 8
    background = texture(height, width, 0)
    square = texture(120, 120, 1)
    rng = np.random.default_rng(2)
    at = np.array([300, 180]) + np.cumsum(rng.integers(-4, 5, (frames, 2)), axis=0)
    images = []
    for x, y in at:
        image = background.copy()
        image[y : y + 120, x : x + 120] = square
        images.append(image)
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    window = Window(0, 4, images[0].shape[:2], grey, dict(enumerate(images)), list(range(frames)))
    config = MineConfig(
        patch_fraction=0.05,
        grid_step=0.25,
        window=frames,
        stride=frames,
        min_frames=frames,
        fdr=1.0,
        flow="ultrafast",
    )
    tracker = make_tracker(Path("x.mp4"), config)
    mined = mine_window(window, follow(window, tracker, config), config)
    assert sum(mined.reasons.values()) == len(grid(height, width, 24, 0.25)) > 10_000
    assert mined.stored is not None
    twins = mined.stored.twins[:, 0] >= 0
    x, y = mined.stored.patches["x"][twins], mined.stored.patches["y"][twins]
    inside = np.maximum(np.abs(x - at[4][0] - 60), np.abs(y - at[4][1] - 60)) < 66
    assert twins.sum() > 50
    assert inside.mean() > 0.95
