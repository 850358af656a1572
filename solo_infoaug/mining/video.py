"""Decoding: frames of a video, one after the other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from solo_infoaug.errors import VideoError

EXTENSIONS = frozenset(
    {".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"}
)


# Scaling by several threads, which PyAV does since 17, would take cores from other workers.
_SCALING: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


@dataclass(frozen=True)
class Frame:
    """A decoded frame. `image` makes arrays of it; nothing is converted before."""

    number: int
    _raw: av.VideoFrame

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, as shown: after the rotation that the file asks for."""
        height, width = self._raw.height, self._raw.width
        return (width, height) if self._turns % 2 else (height, width)

    @property
    def _turns(self) -> int:
        return round(getattr(self._raw, "rotation", 0) / 90) % 4

    def image(self, size: tuple[int, int] | None = None, layout: str = "rgb24") -> np.ndarray:
        """The frame as an array, resized to `size` (height, width) if given.

        `layout` is FFmpeg's name of a pixel format: "rgb24" or "bgr24", uint8 [H, W, 3], or
        "gray", uint8 [H, W].
        """
        height, width = size or self.size
        if self._turns % 2:
            height, width = width, height
        array = self._raw.to_ndarray(
            format=layout, width=width, height=height, interpolation="AREA", **_SCALING
        )
        return np.ascontiguousarray(np.rot90(array, self._turns))


def find_videos(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The video files that `sources` name: files as they are, folders searched through.

    Raises:
        VideoError: a source does not exist, a folder holds no video, or there is no source.
    """
    found: dict[Path, None] = {}
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(
                path
                for path in source.rglob("*")
                if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
            )
            inside = [path for path in inside if path.is_file()]
            if not inside:
                raise VideoError(
                    f"no video in folder {source} (looked for {' '.join(sorted(EXTENSIONS))})"
                )
            found.update(dict.fromkeys(inside))
        elif source.exists():
            found[source] = None
        else:
            raise VideoError(f"no such video: {source}")
    if not found:
        raise VideoError("no video given: name at least one file or folder")
    return list(found)


def video_digest(path: Path) -> str:
    """SHA-256 of the file's content.

    Raises:
        VideoError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VideoError(f"{path}: cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class VideoInfo:
    """What a container says about its first video stream."""

    width: int
    height: int
    fps: float
    duration: float | None
    codec: str


class Video:
    """A video file, opened for decoding: iterate over `frames`.

    Raises:
        VideoError: it cannot be opened, or holds no video stream.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Packets that the decoder refused.
        self.damaged = 0
        try:
            self._container = av.open(str(path))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path}: cannot be opened as a video: {_reason(error)}") from error
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"{path}: holds no video stream")
        self._stream = self._container.streams.video[0]
        # One thread: from damaged packets FFmpeg makes other pixels with another number of threads.
        self._stream.codec_context.thread_count = 1

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def info(self) -> VideoInfo:
        """Size in pixels, frames a second, duration in seconds if known, codec."""
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        return VideoInfo(
            stream.width, stream.height, float(rate), self._duration(), stream.name or "?"
        )

    def _duration(self) -> float | None:
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration:
            return self._container.duration / av.time_base
        return None

    def frames(
        self, start_fraction: float = 0.0, stop_fraction: float = 1.0, step: int = 1
    ) -> Iterator[Frame]:
        """Every `step`-th frame of a stretch of the video; `number` counts from its very start.

        Raises:
            VideoError: a stretch is asked for, but the duration is unknown.
        """
        begin, end = 0.0, float("inf")
        if (start_fraction, stop_fraction) != (0.0, 1.0):
            duration = self._duration()
            if duration is None:
                raise VideoError(
                    f"{self.path}: its duration is unknown, so start_fraction and stop_fraction "
                    "cannot be applied; rewrite it, for example as .mp4"
                )
            begin = start_fraction * duration
            end = stop_fraction * duration if stop_fraction < 1.0 else end
        origin: float | None = None
        fps = self.info.fps
        for number, raw in enumerate(self._decoded()):
            time = number / fps if raw.time is None else float(raw.time)
            if origin is None:
                origin = time
            # Half a frame of tolerance: rounding must not decide where a stretch begins.
            time += 0.5 / fps - origin
            if time >= end:
                return
            if time >= begin and number % step == 0:
                yield Frame(number, raw)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """All frames; packets that cannot be decoded are skipped and counted."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.FFmpegError, OSError):
                self.damaged += 1
                return
            try:
                decoded = packet.decode()
            except (av.error.FFmpegError, OSError, ValueError):
                self.damaged += 1
                continue
            for frame in decoded:
                assert isinstance(frame, av.VideoFrame)
                yield frame


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
