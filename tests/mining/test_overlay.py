"""What is burnt into the frame rests while the camera moves, and is no part of the scene."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from videos import WriteVideo, texture

from solo_infoaug.errors import VideoError
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.flow import Flow, follow_patches
from solo_infoaug.mining.overlay import covered, find_overlay

HEIGHT, WIDTH = 320, 480
# (x, y) of the corners of each
BOXES = {"logo": (380, 24, 440, 84), "clock": (20, 20, 180, 56), "letters": (24, 268, 184, 296)}


def _pan(count: int = 24, speed: int = 3) -> list[np.ndarray]:
    wide = texture(HEIGHT, WIDTH + speed * count, 0)
    return [wide[:, speed * t : speed * t + WIDTH].copy() for t in range(count)]


def _drawn(image: np.ndarray, name: str, t: int) -> np.ndarray:
    white, line = (255, 255, 255), cv2.LINE_AA
    if name == "logo":
        cv2.circle(image, (410, 54), 28, (230, 230, 230), -1)
        cv2.putText(image, "TV", (392, 62), 0, 0.8, (200, 20, 20), 3, line)
    elif name == "clock":
        cv2.rectangle(image, (20, 20), (180, 56), (0, 0, 0), -1)
        cv2.putText(image, f"12:34:{t // 8:02d}", (32, 48), 0, 0.9, white, 2, line)
    else:
        cv2.putText(image, "letters only", (26, 292), 0, 1.0, (0, 0, 0), 6, line)
        cv2.putText(image, "letters only", (26, 292), 0, 1.0, white, 2, line)
    return image


def _grey(images: list[np.ndarray]) -> list[np.ndarray]:
    return [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]


@pytest.mark.parametrize("name", list(BOXES))
def test_what_rests_before_a_moving_scene_is_found(name: str) -> None:
    found = find_overlay(_grey([_drawn(image, name, t) for t, image in enumerate(_pan())]))
    assert found is not None
    assert found.shape == (HEIGHT // 2, WIDTH // 2)
    x0, y0, x1, y1 = (value // 2 for value in BOXES[name])
    assert found[y0 + 3 : y1 - 3, x0 + 6 : x1 - 6].mean() > 0.95
    around = found.copy()
    around[y0 - 8 : y1 + 8, x0 - 8 : x1 + 8] = False
    assert not around.any()


def _lines(t: int) -> np.ndarray:
    """Straight edges along the pan: they look as if they rested."""
    image = _pan(t + 1)[t]
    image[200:204], image[230:236] = 255, 0
    return image


def _bus(t: int) -> np.ndarray:
    """A thing that fills two thirds of the frame passes before a camera that stands still."""
    image = texture(HEIGHT, WIDTH, 0)
    image[:, : 2 * WIDTH // 3] = np.roll(texture(HEIGHT, WIDTH, 1), 5 * t, 1)[:, : 2 * WIDTH // 3]
    return image


def test_nothing_is_found_in_scenes_without_an_overlay() -> None:
    still = [_drawn(_pan(1)[0], "logo", t) for t in range(24)]
    for images in (_pan(), still, [_lines(t) for t in range(24)], [_bus(t) for t in range(24)]):
        assert find_overlay(_grey(images)) is None
    assert find_overlay(_grey(_pan(4))) is None


def test_which_patches_are_covered() -> None:
    overlay = np.zeros((50, 100), bool)
    overlay[10:20, 30:40] = True  # of frames twice as large: x 60 to 80, y 20 to 40
    points = np.array([[70.0, 30.0], [59.0, 30.0], [62.0, 30.0], [199.0, 99.0]])
    assert covered(overlay, (100, 200), points).tolist() == [True, False, True, False]
    # A square of 10: none of it, a tenth, all
    squares = np.array([[50.0, 30.0], [56.0, 30.0], [70.0, 30.0]])
    assert covered(overlay, (100, 200), squares, 10).tolist() == [False, True, True]
    assert not covered(None, (100, 200), points, 10).any()


def test_vectors_on_an_overlay_are_left_out() -> None:
    forth = np.full((60, 90, 2), 2.0, np.float32)
    flow = Flow(forth, -forth, (120, 180))
    overlay = np.zeros((60, 90), bool)
    overlay[:30, :45] = True
    points, _ = flow.matches(1.0, overlay)
    everywhere, _ = flow.matches(1.0)
    left = [point for point in everywhere.tolist() if point[0] >= 90 or point[1] >= 60]
    assert points.tolist() == left
    assert 0 < len(points) < len(everywhere)
    centres = np.array([[40.0, 30.0], [140.0, 90.0]], np.float32)
    path, visible = follow_patches([flow], centres, 16, 0, 1.0, overlay)
    assert visible[1].tolist() == [False, True]
    assert path[1].tolist() == [[40.0, 30.0], [142.0, 92.0]]


@pytest.mark.parametrize("name", ["logo", "clock"])
def test_no_twin_lies_on_an_overlay(tmp_path: Path, write_video: WriteVideo, name: str) -> None:
    """Two things move before a panned background; without the mask the overlay is a third."""
    images, rng = _pan(48), np.random.default_rng(5)
    at, speed = np.array([[60.0, 130.0], [300.0, 150.0]]), np.zeros((2, 2))
    for t, image in enumerate(images):
        speed = 0.6 * speed + rng.normal(0, 1.6, (2, 2))
        at = at + speed
        for number, (x, y) in enumerate(at.round().astype(int)):
            image[y : y + 100, x : x + 100] = texture(100, 100, 7 + number)
        _drawn(image, name, t)
    path = write_video(tmp_path / "clip.mp4", images)
    found = mine(path, tmp_path / "twins", MineConfig(), progress=False)
    rows = found.patches
    anchors = np.flatnonzero(np.asarray(found.twins)[:, 0] >= 0)
    assert len(anchors) > 50
    x0, y0, x1, y1 = BOXES[name]
    half = np.asarray(rows["size"]) / 2
    x, y = np.asarray(rows["x"]), np.asarray(rows["y"])
    touches = (x + half > x0 + 4) & (x - half < x1 - 4) & (y + half > y0 + 4) & (y - half < y1 - 4)
    assert not touches.any()
    record = json.loads(found.part_files(0).read("video.json"))
    assert record["source"]["windows_with_overlay"] == 2
    assert all(0 < window["overlay"] < 0.15 for window in record["windows"])


def test_a_camera_said_to_stand_still_has_no_overlay(
    tmp_path: Path, write_video: WriteVideo
) -> None:
    images = [_drawn(image, "logo", t) for t, image in enumerate(_pan(24))]
    path = write_video(tmp_path / "clip.mp4", images)
    try:
        found = mine(path, tmp_path / "twins", MineConfig(camera="none"), progress=False)
    except VideoError:
        return
    assert not any("overlay" in window.record for window in found.windows)
