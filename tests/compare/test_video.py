"""The benchmark on video: which patches it asks about, and what it makes of known similarities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from solo_infoaug.compare.grid import Planner, parse_grid
from solo_infoaug.compare.run import evaluate_video
from solo_infoaug.compare.video import (
    Clip,
    PropagationConfig,
    Tiles,
    VideoConfig,
    cut,
    evaluate_clips,
    evaluate_sequence,
    find_clips,
    kept_back,
    patches_to_test,
    propagate_clips,
    scores,
    split_clips,
)
from solo_infoaug.errors import ConfigError
from solo_infoaug.mining import MineConfig
from solo_infoaug.training import pretrain

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
    everywhere = evaluate_clips(
        patches_to_test(config), {"colour": None, "blind": lambda x: torch.ones(len(x), 4)}
    )
    assert everywhere["colour"]["unseen_auc"] == {"c": 100.0}
    assert everywhere["blind"]["seen_auc"] == {"a": 50.0, "b": 50.0}


@pytest.fixture
def composite(tmp_path: Path) -> Path:
    """Two videos of three things of one colour each, with ids at half the frames' size."""
    colours = np.array([(30, 200, 30), (200, 30, 30), (30, 30, 200), (200, 200, 30)])
    random = np.random.default_rng(0)
    for name in ("train/c0", "test/c0"):
        ids = np.zeros((8, 32, 48), np.uint8)
        ids[:, 8:24, 8:16], ids[:, 8:16, 24:40], ids[:, 24:32, 40:48] = 1, 2, 3
        for number in range(8):
            image = colours[ids[number].repeat(2, 0).repeat(2, 1)]
            image = np.clip(image + random.integers(-20, 20, image.shape), 0, 255)
            file = tmp_path / f"composites/{name}/{number:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(file)
        np.savez(tmp_path / f"composites/{name}.npz", ids=ids)
    return tmp_path / "composites"


def test_one_thing_against_different_things(composite: Path) -> None:
    """Against a loop over all pairs of patches and all pairs of such pairs."""
    config = VideoConfig(str(composite), held_out=["test-*"], test_frames=2)
    (clip,) = split_clips(config)["unseen"]
    tiles = kept_back(clip, 0.0, config)
    # 2, 2 and 1 patches on the three things, of the mask at half the size
    assert [np.bincount(frame.objects)[1:].tolist() for frame in tiles] == [[2, 2, 1]] * 2
    random = torch.Generator().manual_seed(0)
    known = {
        frame.pixels.numpy().tobytes(): torch.randn(len(frame.pixels), 5, generator=random)
        for frame in tiles
    }
    found = evaluate_sequence(tiles, lambda pixels: known[pixels.numpy().tobytes()])
    of_frames = []
    for frame in tiles:
        features = known[frame.pixels.numpy().tobytes()]
        rows = [i for i, number in enumerate(frame.objects) if number > 0]
        alike: dict[bool, list[float]] = {True: [], False: []}
        for i in rows:
            for j in rows:
                if i < j:
                    cosine = torch.cosine_similarity(features[i], features[j], dim=0)
                    alike[bool(frame.objects[i] == frame.objects[j])].append(float(cosine))
        assert (len(alike[True]), len(alike[False])) == (2, 8)
        wins = [a > b for a in alike[True] for b in alike[False]]
        of_frames.append(100 * sum(wins) / len(wins))
    assert found["things"] == pytest.approx(sum(of_frames) / 2)
    assert evaluate_sequence(tiles, None)["things"] == 100.0
    blind = evaluate_sequence(tiles, lambda pixels: torch.ones(len(pixels), 3))
    assert blind["things"] == 50.0


def test_things_are_a_metric_only_where_a_frame_shows_several(composite: Path, davis: Path) -> None:
    models: Any = {"colour": None}
    config = VideoConfig(str(composite), held_out="test-*", test_frames=2)
    found = evaluate_clips(patches_to_test(config), models)["colour"]
    assert found["seen_things"] == {"train-c0": 100.0}
    assert found["unseen_things"] == {"test-c0": 100.0}
    one = evaluate_clips(patches_to_test(VideoConfig(str(davis), test_frames=2)), models)["colour"]
    assert "unseen_auc" in one
    assert "unseen_things" not in one


def test_videos_are_held_out_by_name(davis: Path) -> None:
    def unseen(*names: str) -> list[str]:
        return [clip.name for clip in split_clips(VideoConfig(str(davis), names))["unseen"]]

    assert unseen("a", "c") == ["a", "c"]
    assert unseen("[ab]") == ["a", "b"]
    with pytest.raises(ConfigError, match=r"video\.held_out: .*got d, which none has"):
        unseen("a", "d")
    with pytest.raises(ConfigError, match=r"video\.held_out: .*got \*, after which none is left"):
        unseen("*")
    assert VideoConfig("x", held_out=["a"]) == VideoConfig("x", held_out="a")
    assert VideoConfig("x", held_out=["a"]).digest != VideoConfig("x").digest


def _colours(image: Tensor) -> Tensor:
    """Features that tell red from green, at every pixel."""
    red = image[0] > image[1]
    return torch.stack([red, ~red]).float()


def test_masks_are_propagated_in_held_out_videos(davis: Path) -> None:
    folder = davis / "Annotations/480p/c"
    full = VideoConfig(str(davis), propagation=PropagationConfig(frames=8))
    # the last two of the eight frames: their object has lost its right half in the truth
    for number in (6, 7):
        mask = np.asarray(Image.open(folder / f"{number:05d}.png")).copy()
        mask[:, 40:] = 0
        Image.fromarray(mask).save(folder / f"{number:05d}.png")
    found = propagate_clips(full, {"knows": _colours, "blind": lambda x: torch.ones(1, 8, 12)})
    assert set(found["knows"]) == {"unseen_j", "unseen_f", "unseen_jf"}
    assert all(set(videos) == {"c"} for videos in found["knows"].values())
    # five frames are right, and in two of seven half of the object is
    assert found["knows"]["unseen_j"]["c"] == pytest.approx(100 * (5 + 2 * 0.5) / 7)
    assert found["blind"]["unseen_j"]["c"] < found["knows"]["unseen_j"]["c"] - 10
    # with the first six frames alone all is right
    six = replace(full, propagation={"frames": 6})  # a mapping, as configurations have it
    assert six.propagation == PropagationConfig(frames=6)
    assert propagate_clips(six, {"knows": _colours})["knows"] == {
        "unseen_j": {"c": 100.0},
        "unseen_f": {"c": 100.0},
        "unseen_jf": {"c": 100.0},
    }


def test_a_video_without_an_object_in_its_first_frame_is_left_out(davis: Path) -> None:
    nothing = Image.fromarray(np.zeros((64, 96), np.uint8))
    nothing.save(davis / "Annotations/480p/c/00000.png")
    config = VideoConfig(str(davis), propagation=PropagationConfig())
    assert propagate_clips(config, {"knows": _colours}) == {"knows": {}}


def test_data_and_runs_without_propagation_are_what_they_were(davis: Path) -> None:
    without = VideoConfig(str(davis))
    assert replace(without, propagation=PropagationConfig(frames=3)).digest == without.digest
    assert "propagation" not in without.as_dict()
    assert VideoConfig(**without.as_dict()) == without
    some = replace(without, propagation=PropagationConfig(frames=3))
    assert VideoConfig(**some.as_dict()) == some


def test_checkpoints_and_references_are_evaluated(
    host: Any,
    make_cfg: Callable[..., Any],
    davis: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = make_cfg("simclr", None, max_epochs=1)
    cfg.backbone = {"name": "small_resnet"}
    checkpoint = pretrain(cfg).checkpoint
    assert checkpoint is not None
    settings = VideoConfig(str(davis), propagation=PropagationConfig(frames=3, size=64))
    metrics, more = evaluate_video(checkpoint, settings.as_dict(), tmp_path)
    columns = {"unseen_j", "unseen_f", "unseen_jf"}
    assert columns | {"unseen_auc"} <= set(metrics)
    chance = more["references"].pop("chance")
    assert chance == {"seen_auc": 50.0, "unseen_auc": 50.0}
    assert set(more["references"]) == {"untrained network", "mean colour"}
    for known in (metrics, *more["references"].values()):
        assert known["unseen_jf"] == pytest.approx((known["unseen_j"] + known["unseen_f"]) / 2)
    assert more["references"]["mean colour"]["unseen_j"] > 90
    assert more["sequences"]["unseen_jf"] == {"c": metrics["unseen_jf"]}
    without = replace(settings, propagation=None).as_dict()
    metrics, more = evaluate_video(checkpoint, without, tmp_path)
    assert not columns & {*metrics, *more["references"]["mean colour"]}
    # the patches and the references are there already: no video is opened for them
    monkeypatch.setattr("solo_infoaug.compare.video.open_video", None)
    assert evaluate_video(checkpoint, without, tmp_path) == (metrics, more)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("video.test_frames=5", {"frames": 10, "size": 320}),
        ("video.propagation.frames=4", {"frames": 4, "size": 320}),
        ("video.propagation=null", None),
    ],
)
def test_propagation_is_on_and_one_override_turns_it_off(
    host: Any,
    davis: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    expected: Any,
) -> None:
    monkeypatch.setattr(
        "solo_infoaug.compare.video.prepare_video",
        lambda folder, config, workers: (tmp_path / "stills", tmp_path / "twins"),
    )
    chosen = ["data=video", f"data.videos='{davis}'", "methods=byol", "arms=baseline", "seeds=0"]
    (run,) = Planner(parse_grid([*chosen, f"out='{tmp_path}'", override])).plan()
    assert run.evaluate["video"].get("propagation") == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"propagation": 3}, r"video\.propagation: expected a mapping of frames and size, or null"),
        (
            {"propagation": {"frames": 1}},
            r"video\.propagation\.frames: expected a whole number ≥ 2, got 1",
        ),
        ({"held_out": 1}, r"video\.held_out: expected a whole number ≥ 2, or names.*got 1"),
        ({"held_out": []}, r"video\.held_out: expected a whole number ≥ 2, or names"),
        ({"held_out": [2]}, r"video\.held_out: expected a whole number ≥ 2, or names"),
        ({"stop_fraction": 1.0}, r"video\.stop_fraction: expected a number in \(0, 1\)"),
    ],
)
def test_bad_settings_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoConfig("videos", **setting)
