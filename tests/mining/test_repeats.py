"""Frames that come twice are left out, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.repeats import without_repeats
from solo_infoaug.mining.video import open_video
from solo_infoaug.viewer import show

SMALL = MineConfig(
    window=32, stride=32, min_frames=24, temporal_crops=2, crop_size=16, surrogates=8
)


def _kept(path: Path) -> tuple[list[int], int]:
    counts = {"repeated_frames": 0}
    with open_video(path) as video:
        numbers = [frame.number for frame in without_repeats(video.frames(), counts)]
    return numbers, counts["repeated_frames"]


@pytest.mark.parametrize(
    "pattern",
    [[1], [2], [3], [2, 3], [1, 1, 1, 1, 9], [1] * 30 + [40]],
    ids=["once", "twice", "thrice", "two and three", "a rest now and then", "a long rest"],
)
def test_repetitions_are_left_out(tmp_path: Path, write_video, scene, pattern: list[int]) -> None:
    times = [pattern[t % len(pattern)] for t in range(len(scene[0]))]
    frames = [frame for frame, count in zip(scene[0], times, strict=True) for _ in range(count)]
    kept, repeated = _kept(write_video(tmp_path / "video.mp4", frames, fps=50))
    first = np.cumsum([0, *times[:-1]]).tolist()
    expected = first if max(times) <= 3 else list(range(len(frames)))  # who rests, rests
    assert kept == expected
    assert repeated == len(frames) - len(expected)


def test_a_still_scene_stays(tmp_path: Path, write_video, scene) -> None:
    kept, repeated = _kept(write_video(tmp_path / "still.mp4", [scene[0][0]] * 50))
    assert (kept, repeated) == (list(range(50)), 0)


def test_a_film_with_every_frame_twice_is_mined_as_the_film(
    tmp_path: Path, video: Path, write_video, scene
) -> None:
    doubled = write_video(tmp_path / "two.mkv", [f for f in scene[0] for _ in (0, 1)], fps=50)
    once = mine(video, tmp_path / "once", SMALL, progress=False)
    twice = mine(doubled, tmp_path / "twice", SMALL, progress=False)
    assert set(twice.patches["frame"]) == {2 * frame for frame in set(once.patches["frame"])}
    assert 0.8 < len(twice.anchors) / len(once.anchors) < 1.25
    # the film of the twins has the frames that were mined
    show(twice, tmp_path / "twins.mp4", [doubled])
    with open_video(tmp_path / "twins.mp4") as film:
        assert len(list(film.frames())) == sum(len(w.arrays["tracks"]) for w in twice.windows)
    assert twice.windows[0].arrays["numbers"].tolist() == list(range(0, 64, 2))
