"""The benchmark on video: which patches it asks about, and what it makes of known similarities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from solo_infoaug.compare.video import (
    Clip,
    Tiles,
    VideoConfig,
    cut,
    evaluate_clips,
    evaluate_sequence,
    find_clips,
    kept_back,
    scores,
    split_clips,
)
from solo_infoaug.errors import ConfigError
from solo_infoaug.mining import MineConfig

SIDE = 16  # the miner's least patch, on frames of 96 × 64


def _frame(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A red object of 48 × 32 pixels over green, and where it is."""
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 16:64] = 3
    image = np.where(mask[..., None] > 0, (200, 30, 30), (30, 200, 30)).astype(np.uint8)
    noise = np.random.default_rng(number).integers(-20, 20, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Three videos of eight frames in DAVIS's layout."""
    for name in ("a", "b", "c"):
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / kind / "480p" / name).mkdir(parents=True)
        for number in range(8):
            image, mask = _frame(number)
            Image.fromarray(image).save(tmp_path / f"JPEGImages/480p/{name}/{number:05d}.jpg")
            Image.fromarray(mask).save(tmp_path / f"Annotations/480p/{name}/{number:05d}.png")
    return tmp_path


def test_both_layouts_are_found_and_split(davis: Path, tmp_path: Path) -> None:
    found = find_clips(davis)
    assert [clip.name for clip in found] == ["a", "b", "c"]
    assert found[0].read_masks().shape == (8, 64, 96)
    parts = split_clips(VideoConfig(str(davis)))
    assert {name: [clip.name for clip in clips] for name, clips in parts.items()} == {
        "seen": ["a", "b"],
        "unseen": ["c"],
    }


def test_packed_masks_are_read(tmp_path: Path) -> None:
    mask = np.stack([_frame(n)[1] > 0 for n in range(3)])
    file = tmp_path / "x.npz"
    np.savez(file, mask=np.packbits(mask), shape=mask.shape)
    assert np.array_equal(Clip("x", tmp_path / "x.mp4", file).read_masks(), mask)
    file.write_bytes(b"no masks")
    with pytest.raises(ConfigError, match=r"data\.videos: the masks .*x\.npz cannot be read"):
        Clip("x", tmp_path / "x.mp4", file).read_masks()


def test_a_folder_without_masks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.videos: expected a folder with two videos"):
        find_clips(tmp_path / "nothing")


def test_patches_know_their_object() -> None:
    image, mask = _frame(0)
    mask[16:32, 64:72] = 3  # half of a further patch
    tiles = cut(image, mask, MineConfig())
    assert (tiles.side, len(tiles.pixels)) == (SIDE, 4 * 6)
    objects = tiles.objects.reshape(4, 6)
    assert objects.tolist() == [[0] * 6, [0, 3, 3, 3, -1, 0], [0, 3, 3, 3, 0, 0], [0] * 6]


def test_scores_of_known_similarities() -> None:
    """Three patches on an object and two of the background in a row, two patches apart."""
    corners = np.array([[2 * SIDE * n, 0] for n in range(5)])
    tiles = Tiles(torch.zeros(5, 3, 4, 4), corners, np.array([1, 1, 1, 0, 0]), SIDE)
    right = np.array([[9, 8, 7, 1, 2], [8, 9, 7, 2, 1], [8, 7, 9, 1, 1], [0] * 5, [0] * 5], float)
    assert scores(right, tiles, tiles) == (100.0, 100.0)
    assert scores(-right, tiles, tiles) == (0.0, 0.0)
    # a patch's likeness to itself does not count
    assert scores(np.eye(5), tiles, tiles)[0] == 50.0  # type: ignore[index]
    # in a later frame the patches at its own place are left out as well
    later = Tiles(tiles.pixels[:2], corners[[0, 3]], np.array([1, 0]), SIDE)
    similarity = np.array([[9, 1], [9, 1], [0, 1], [0, 0], [0, 0]], float)
    # the first patch has no other of its object to find; of the two others one is right
    assert scores(similarity, tiles, later) == (pytest.approx(100 * 2 / 4), 50.0)
    assert scores(right, Tiles(tiles.pixels, corners, np.zeros(5, int), SIDE), tiles) is None


def test_only_the_kept_part_is_tested_and_colour_tells_red_from_green(davis: Path) -> None:
    config = VideoConfig(str(davis), test_frames=2)
    clip = find_clips(davis)[0]
    tiles = kept_back(clip, 0.75, config)
    assert len(tiles) == 2
    last = [np.asarray(Image.open(clip.source / f"{n:05d}.jpg")) for n in (6, 7)]
    for frame, image in zip(tiles, last, strict=True):
        assert (frame.objects == 3).sum() == 6
        assert torch.equal(frame.pixels, cut(image, None, config.mining).pixels)
    found = evaluate_sequence(tiles, None)
    assert found == {"auc": 100.0, "same_frame": 100.0, "later_frame": 100.0}
    everywhere = evaluate_clips(config, {"colour": None, "blind": lambda x: torch.ones(len(x), 4)})
    assert everywhere["colour"]["unseen_auc"] == {"c": 100.0}
    assert everywhere["blind"]["seen_auc"] == {"a": 50.0, "b": 50.0}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"held_out": 1}, r"video\.held_out: expected a whole number ≥ 2, got 1"),
        ({"stop_fraction": 1.0}, r"video\.stop_fraction: expected a number in \(0, 1\)"),
    ],
)
def test_bad_settings_are_named(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoConfig("videos", **setting)
