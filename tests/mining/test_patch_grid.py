from __future__ import annotations

import numpy as np
import pytest

from solo_infoaug.mining.patch_grid import corners, grid, patch_tracks


@pytest.mark.parametrize(("height", "width", "size"), [(144, 176, 16), (51, 77, 20), (20, 20, 20)])
def test_grid_lies_in_the_frame_and_is_centred(height: int, width: int, size: int) -> None:
    centres = grid(height, width, size)
    assert len(centres) == (height // size) * (width // size)
    assert (centres >= size / 2).all()
    assert (centres <= np.array([width, height]) - size / 2).all()
    assert np.allclose(centres.mean(axis=0), [width / 2, height / 2])
    gaps = np.abs(centres[:, None] - centres[None]).max(axis=2)
    assert (gaps[~np.eye(len(centres), dtype=bool)] >= size).all()


def test_grid_of_a_frame_smaller_than_a_patch() -> None:
    assert grid(10, 100, 16).shape == (0, 2)
    assert grid(1, 1, 16).shape == (0, 2)


def test_corners_find_the_corner() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[20:40, 20:40] = 255
    found = corners(image, np.array([[20.0, 20.0]]), np.array([24.0, 24.0]))
    assert found.shape == (1, 4, 2)
    assert np.abs(found - 20).max(axis=2).min() <= 2


def test_patches_follow_the_median_of_their_points() -> None:
    centres = np.array([[10.0, 10.0]], np.float32)
    steps = np.array([[1.0, 0.0], [1.0, 0.0], [1.2, 0.0], [9.0, 9.0]])  # one outlier
    tracks = np.arange(4)[:, None, None, None] * steps[None, None]
    visible = np.ones((4, 1, 4), bool)
    path, seen = patch_tracks(centres, tracks, visible)
    assert seen.all()
    assert np.allclose(path[:, 0, 0], 10 + 1.1 * np.arange(4))
    assert np.allclose(path[:, 0, 1], 10)


def test_a_patch_goes_on_with_the_points_that_are_left() -> None:
    centres = np.zeros((1, 2), np.float32)
    tracks = np.zeros((5, 1, 2, 2))
    tracks[:, 0, 0, 0] = np.arange(5)  # steps of 1, lost after frame 1
    tracks[:, 0, 1, 0] = 3 * np.arange(5)  # steps of 3, lost after frame 3
    visible = np.array([[1, 1], [1, 1], [0, 1], [0, 1], [0, 0]], bool)[:, None]
    path, seen = patch_tracks(centres, tracks, visible, min_points=1)
    assert path[:, 0, 0].tolist() == [0, 2, 5, 8, 8]
    assert seen[:, 0].tolist() == [True, True, True, True, False]
    _, seen = patch_tracks(centres, tracks, visible, min_points=2)
    assert seen[:, 0].tolist() == [True, True, False, False, False]
