from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from solo_infoaug.errors import VideoError
from solo_infoaug.mining.samples import sample_clips
from solo_infoaug.mining.video import Video, find_videos, video_digest


def test_frames_are_the_written_ones(video: Path, scene) -> None:
    with Video(video) as opened:
        frames = list(opened.frames())
    assert [frame.number for frame in frames] == list(range(len(scene[0])))
    assert frames[0].size == (160, 256)
    for place in (0, 31, 63):
        error = np.abs(frames[place].image().astype(int) - scene[0][place].astype(int)).mean()
        assert error < 12  # compression, and colour at half resolution


def test_image_is_resized(video: Path) -> None:
    with Video(video) as opened:
        frame = next(opened.frames())
        assert frame.image((40, 64)).shape == (40, 64, 3)


def test_fractions_split_a_video_without_overlap_or_gap(video: Path) -> None:
    with Video(video) as opened:
        head = [frame.number for frame in opened.frames(0.0, 0.7)]
    with Video(video) as opened:
        tail = [frame.number for frame in opened.frames(0.7, 1.0)]
    assert head + tail == list(range(64))
    assert len(head) in (44, 45)


def test_step_takes_every_nth_frame(video: Path) -> None:
    with Video(video) as opened:
        assert [frame.number for frame in opened.frames(step=10)] == list(range(0, 64, 10))


def test_odd_size(tmp_path: Path, write_video) -> None:
    frames = [np.full((51, 77, 3), 40 + t, np.uint8) for t in range(5)]
    path = write_video(tmp_path / "odd.mkv", frames, codec="ffv1", pix_fmt="yuv444p")
    with Video(path) as opened:
        images = [frame.image() for frame in opened.frames()]
    assert images[0].shape == (51, 77, 3)
    assert abs(int(images[3][25, 38, 1]) - 43) <= 3


def test_text_named_mp4(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("this is no video\n" * 100)
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be opened as a video"):
        Video(path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(VideoError, match="cannot be opened"):
        Video(path)


def test_truncated_file_opens_or_says_why(tmp_path: Path, video: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"cut\.mp4: cannot be opened"):
        Video(path)


def test_find_videos(tmp_path: Path, video: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.mp4", "deep/a.MKV", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"left out what is not known as video: 1 \.txt, 1 hidden"):
        found = find_videos([tmp_path, tmp_path / "b.mp4", video])
    assert [path.name for path in found] == ["b.mp4", "a.MKV", "two.mp4"]


def test_find_videos_errors(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no such video: .*nothing"):
        find_videos([tmp_path / "nothing"])
    with pytest.raises(VideoError, match="no video in folder"):
        find_videos([tmp_path])
    with pytest.raises(VideoError, match="videos: expected at least one file or folder, got none"):
        find_videos([])
    os.mkfifo(tmp_path / "pipe.mp4")  # reading it would wait for ever
    for source in (tmp_path / "pipe.mp4", Path("/dev/zero")):
        with pytest.raises(VideoError, match=f"{source}: expected a video file or a folder, got a"):
            find_videos([source])


def test_digest_depends_on_content_only(tmp_path: Path) -> None:
    one, two, other = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    one.write_bytes(b"same")
    two.write_bytes(b"same")
    other.write_bytes(b"differs")
    assert video_digest(one) == video_digest(two) != video_digest(other)


def test_sample_clips_are_there() -> None:
    assert [clip.name for clip in sample_clips()] == [
        "bigbuckbunny.mp4",
        "bikes.mp4",
        "carphone_pristine.mp4",
    ]


def test_sample_clips_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solo_infoaug.mining.samples.find_spec", lambda name: None)
    with pytest.raises(VideoError, match=r'pip install "solo-infoaug\[samples\]"'):
        sample_clips()
