from __future__ import annotations

from pathlib import Path

import numpy as np
from solo_infoaug.mining.shots import split_shots

from solo_infoaug.mining.samples import sample_clips
from solo_infoaug.mining.video import Video


def _scene(value: int, frames: int) -> list[np.ndarray]:
    rng = np.random.default_rng(value)
    still = rng.integers(0, 255, (12, 16, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return [still.astype(np.uint8)] * frames


def _split(path: Path, **settings: int) -> list[tuple[int, int]]:
    with Video(path) as video:
        shots = list(split_shots(video.frames(), **settings))
    for shot in shots:
        assert len(shot.numbers) == len(shot.small) == shot.numbers[-1] - shot.numbers[0] + 1
        assert 0 in shot.keyframes
    assert [shot.index for shot in shots] == list(range(len(shots)))
    return [(shot.numbers[0], shot.numbers[-1] + 1) for shot in shots]


def test_cuts_are_found_to_the_frame(tmp_path: Path, write_video) -> None:
    path = write_video(tmp_path / "cuts.mp4", _scene(1, 20) + _scene(2, 33) + _scene(3, 15))
    assert _split(path, min_frames=8, max_frames=40) == [(0, 20), (20, 53), (53, 68)]


def test_short_shots_are_skipped_and_long_ones_go_on(tmp_path: Path, write_video) -> None:
    path = write_video(tmp_path / "cuts.mp4", _scene(1, 20) + _scene(2, 33) + _scene(3, 15))
    assert _split(path, min_frames=16, max_frames=16) == [(0, 16), (20, 36), (36, 52)]


def test_keyframes_are_the_frames_of_their_place(tmp_path: Path, write_video) -> None:
    frames = [np.full((64, 64, 3), 2 * t, np.uint8) for t in range(60)]
    path = write_video(tmp_path / "ramp.mp4", frames)
    with Video(path) as video:
        shots = list(split_shots(video.frames(), min_frames=10, max_frames=32))
    assert [(shot.numbers[0], len(shot)) for shot in shots] == [(0, 32), (32, 28)]
    for shot in shots:
        assert sorted(shot.keyframes) == list(range(0, len(shot), 2))
        for place, image in shot.keyframes.items():
            assert abs(image.mean() - 2 * shot.numbers[place]) < 3


def test_real_clip_with_cuts() -> None:
    bikes = sample_clips()[1]
    assert _split(bikes, min_frames=20, max_frames=96) == [
        (0, 30),
        (30, 76),
        (76, 137),
        (137, 187),
        (187, 242),
    ]
