"""One folder with everything that goes wrong: the good ones are mined, the others are explained."""

from __future__ import annotations

import errno
import os
import pathlib
import struct
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from solo_infoaug.cli import app
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.mining.video import Video

SETTINGS = ["-s", "min_frames=24", "-s", "window=64", "-s", "stride=64", "-s", "temporal_crops=2"]
SETTINGS += ["-s", "camera=none", "-s", "parallax=0"]


def _variable_rate(path: Path, frames: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        time = 0
        for place, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            time += 20 if place % 3 else 90
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _rotated(source: Path, target: Path) -> None:
    """Set the track's display matrix to a quarter turn, as phones do."""
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd")
    matrix = header + 4 + 4 + 20 + 8 + 8  # version and flags, times and ids, reserved, layer …
    height, width = (struct.unpack(">I", data[matrix + at : matrix + at + 4])[0] for at in (40, 36))
    turn = (0, 1 << 16, 0, -(1 << 16), 0, 0, height, 0, 1 << 30)
    data[matrix : matrix + 36] = struct.pack(">9i", *turn)
    assert width > height
    target.write_bytes(data)


def _without_a_frame(path: Path, codec: str, pix_fmt: str, **options: str) -> None:
    """A whole container with a video stream of which no frame was ever written."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
        container.start_encoding()


def _sound(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, video: Path, write_video, scene) -> Path:
    frames = scene[0]
    made = tmp_path_factory.mktemp("folder")
    # good
    (made / "good.mp4").write_bytes(video.read_bytes())
    odd = [np.ascontiguousarray(frame[:151, :243]) for frame in frames]
    write_video(made / "odd.mkv", odd, codec="ffv1", pix_fmt="yuv444p")
    write_video(made / "deep.mkv", frames, codec="ffv1", pix_fmt="yuv420p10le")
    _variable_rate(made / "variable.mp4", frames)
    _rotated(video, made / "rotated.mp4")
    # bad
    whole = video.read_bytes()
    (made / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (made / "empty.mp4").touch()
    (made / "text.mp4").write_text("this is no video " * 99)
    _sound(made / "sound.mp4")
    write_video(made / "one.mp4", frames[:1])
    _without_a_frame(made / "none.mp4", "libx264", "yuv420p", movflags="empty_moov")
    _without_a_frame(made / "none.avi", "mjpeg", "yuvj420p")
    write_video(
        made / "pixel.mkv", [np.zeros((1, 1, 3), np.uint8)] * 30, codec="ffv1", pix_fmt="yuv444p"
    )
    return made


@pytest.mark.slow
def test_the_good_are_mined_and_the_bad_explained(folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["mine", str(folder), "-o", str(tmp_path / "d"), *SETTINGS])
    assert run.exit_code == 2, run.output
    dictionary = TwinDictionary.load(tmp_path / "d")
    good = ["deep.mkv", "good.mp4", "odd.mkv", "rotated.mp4", "variable.mp4"]
    assert sorted(dictionary.videos) == good
    failed = {Path(name).name: why for name, why in dictionary.info["failed"].items()}
    twinless = {Path(name).name for name in dictionary.info["twinless"]}
    assert twinless == {"one.mp4", "pixel.mkv"}  # nothing is wrong with them
    failed |= {Path(n).name: why for n, why in dictionary.info["twinless"].items()}
    reasons = {
        "cut.mp4": "cannot be opened as a video",
        "empty.mp4": "cannot be opened as a video",
        "text.mp4": "cannot be opened as a video",
        "sound.mp4": "holds no video stream",
        "none.mp4": "no frame could be decoded",
        "none.avi": "no frame could be decoded",
        "one.mp4": r"no shot has at least min_frames=24 frames (1 frames in all)",
        "pixel.mkv": "no two patches could be tracked",
    }
    assert set(failed) == set(reasons)
    for name, why in reasons.items():
        assert why in failed[name]
        assert name in run.output


def _with_secret(folder: Path, video: Path) -> list[str]:
    """Arguments that mine a good video and `secret.mp4`, which holds another."""
    (folder / "good.mp4").write_bytes(video.read_bytes())
    (folder / "secret.mp4").write_bytes(video.read_bytes() + b"\0")
    return ["mine", str(folder), "-o", str(folder / "d"), *SETTINGS, "-j", "1"]


def _assert_secret_failed(arguments: list[str], why: str) -> None:
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 2, run.output
    assert why in run.output
    dictionary = TwinDictionary.load(arguments[3])
    assert dictionary.videos == ["good.mp4"]
    ((name, reason),) = dictionary.info["failed"].items()
    assert Path(name).name == "secret.mp4"
    assert why in reason


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_without_permission(video: Path, tmp_path: Path) -> None:
    arguments = _with_secret(tmp_path, video)
    (tmp_path / "secret.mp4").chmod(0)
    _assert_secret_failed(arguments, "cannot be read: Permission denied")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("pathlib.Path.open", "cannot be read: Permission denied"),
        # Readable when it was hashed, and not any more when it is decoded
        ("av.open", "cannot be opened as a video: Permission denied"),
    ],
)
def test_a_file_that_the_system_refuses(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, why: str
) -> None:
    arguments = _with_secret(tmp_path, video)
    real = pathlib.Path.open if what == "pathlib.Path.open" else av.open

    def refuse(path: Path | str, *args: Any, **options: Any) -> Any:
        if Path(path).name == "secret.mp4":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(what, refuse)
    _assert_secret_failed(arguments, why)


def test_rotation_is_obeyed(folder: Path, scene) -> None:
    with Video(folder / "rotated.mp4") as video:
        frame = next(video.frames())
        assert frame.size == (256, 160)
        image = frame.image()
    assert image.shape == (256, 160, 3)
    turned = np.rot90(scene[0][0], -1)  # a quarter turn clockwise
    assert np.abs(image.astype(int) - turned.astype(int)).mean() < 12


def test_a_container_without_a_frame(folder: Path) -> None:
    for name in ("none.mp4", "none.avi"):
        with Video(folder / name) as video:
            assert list(video.frames()) == []
            assert video.damaged == 0
