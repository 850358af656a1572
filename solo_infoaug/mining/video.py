"""Decoding: frames of a video, one after the other, as they are meant to be seen."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.stream import Disposition

from solo_infoaug._files import file_digest, reason_of
from solo_infoaug.errors import VideoError
from solo_infoaug.mining.container import open_input
from solo_infoaug.mining.content import Content
from solo_infoaug.mining.frame import AS_STORED, Frame, Orientation, every_nth, has_alpha
from solo_infoaug.mining.frame_folder import FrameFolder, folder_name
from solo_infoaug.mining.search import EXTENSIONS as EXTENSIONS
from solo_infoaug.mining.search import find_videos as find_videos
from solo_infoaug.mining.search import search as search

# Frames that run backwards in time by more (frame times) were joined, and are not just jittering.
_BACK = 4
# Of frames that jump ahead by more (frame times; and at least one second), some are missing.
_AHEAD = 10
# B-frames that are held back, at most, until the frame that they refer to proves to be whole: the
# largest picture buffer that H.264 and HEVC allow.
_HELD = 16
# Other pixel shapes (width over height) are a broken header.
_PIXEL_SHAPES = (0.2, 5.0)
_B_FRAME = 3
# A frame comes out of the decoder at most so many packets after its own.
_MOST_DELAYED = 256
# Transfer functions of high dynamic range (ITU-T H.273): PQ and HLG.
_HDR = {16: "PQ", 18: "HLG"}
_RANGES = {1: "limited", 2: "full"}


@dataclass
class _Decoded:
    """A frame as the decoder gave it; `time` in seconds from the first one."""

    number: int
    time: float
    raw: av.VideoFrame
    damaged: bool
    gap: bool
    orientation: Orientation
    pixel_shape: Fraction

    @property
    def geometry(self) -> tuple[object, ...]:
        """What must be the same for two frames to show one picture that goes on."""
        return self.raw.width, self.raw.height, _believed(self.pixel_shape), self.orientation


class Video:
    """A video file, or its bytes from elsewhere, opened for decoding: iterate over `frames`.

    Raises:
        VideoError: it cannot be opened, or holds no video stream.
    """

    def __init__(self, path: Path | Content) -> None:
        self.path = path
        # Seconds, once all packets were read
        self._measured: float | None = None
        # Packets that the decoder refused or found damaged; frames that were left out by that.
        self.damaged = 0
        self.left_out = 0
        self._found: dict[str, Any] = {}
        self._said = _Said()
        try:
            self._container = open_input(path)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path}: cannot be opened as a video: {reason_of(error)}") from error
        try:
            self._stream = self._chosen_stream()
        except VideoError:
            self._container.close()
            raise
        context = self._stream.codec_context
        # One thread: from damaged packets FFmpeg makes other pixels with another number of threads.
        context.thread_count = 1
        # Frames come later than their packets, and in another order: each names its packet.
        context.copy_opaque = True
        own_shape = context.sample_aspect_ratio or Fraction(1)
        shown_shape = self._stream.sample_aspect_ratio or Fraction(1)
        # A container that contradicts its stream is right, for all frames.
        self._container_shape = None if shown_shape == own_shape else shown_shape
        self._intra_only = bool(context.codec.intra_only)
        if self._intra_only:
            # Only such a frame is lost alone; FFmpeg shows it with made-up pixels, unmarked.
            context.options = {**context.options, "err_detect": "explode"}

    def _chosen_stream(self) -> av.VideoStream:
        """What a player would show: no cover picture, and of several streams the best."""
        moving = [stream for stream in self._container.streams.video if not _is_picture(stream)]
        pictures = len(self._container.streams.video) - len(moving)
        if not moving:
            what = "only a cover picture" if pictures else "no video stream"
            raise VideoError(f"{self.path}: holds {what}")
        if pictures:
            self._found["cover_pictures"] = pictures
        if len(moving) > 1:
            self._found["other_video_streams"] = len(moving) - 1
            best = self._container.streams.best("video")
            return next((stream for stream in moving if stream is best), moving[0])
        return moving[0]

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def name(self) -> str:
        """What the video is called."""
        return self.path.name

    @property
    def fps(self) -> float:
        """Frames a second, on average."""
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        return float(rate)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame, pixels, as the stream has them."""
        return self._stream.height, self._stream.width

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the stream; after `frames`, also what was found when decoding.

        Keys that say nothing (square pixels, frames that are shown as they are stored) are left
        out; docs/dictionary-format.md lists all.
        """
        stream = self._stream
        return {
            "width": stream.width,
            "height": stream.height,
            "fps": self.fps,
            "duration": self.duration,
            "codec": stream.name or "?",
            "pixel_format": stream.codec_context.pix_fmt,
            **_shape_record([self._stream.sample_aspect_ratio or Fraction(1)]),
            **self._found,
            **self._said.record(),
        }

    @cached_property
    def duration(self) -> float:
        """Seconds, measured: headers say when a video ends, which is not how long it lasts.

        Nothing is read for it where all packets were read before.
        """
        if self._measured is not None:
            return self._measured
        clock = _Clock(self.fps)
        try:
            with open_input(self.path) as container:
                stream = container.streams[self._stream.index]
                for packet in container.demux(stream):
                    _tick(clock, packet)
        except (av.error.FFmpegError, OSError):
            pass  # it ends where it cannot be read any further; decoding counts the damage
        return clock.now + 1 / self.fps

    def _pixel_shape(self) -> Fraction:
        """Width over height of a pixel of the packet decoded last; 1 where it is not known."""
        if self._container_shape is not None:
            return self._container_shape
        return self._stream.codec_context.sample_aspect_ratio or Fraction(1)

    def frames(
        self, start_fraction: float = 0.0, stop_fraction: float = 1.0, step: int = 1
    ) -> Iterator[Frame]:
        """Every `step`-th frame of a stretch of the video; `number` counts from its very start.

        Damaged frames are left out, up to the next keyframe, and counted in `left_out`; the frame
        after them has a `gap`. Stretches that meet have no frame in common and leave none out.
        """
        begin, end = 0.0, float("inf")
        if (start_fraction, stop_fraction) != (0.0, 1.0):
            begin = start_fraction * self.duration
            end = stop_fraction * self.duration if stop_fraction < 1.0 else end
        return every_nth(self._frames(begin, end), step)

    def _frames(self, begin: float, end: float) -> Iterator[Frame]:
        before: _Decoded | None = None
        for entry in self._deinterlaced(self._whole(self._stretch(begin, end))):
            gap = entry.gap or (before is not None and entry.geometry != before.geometry)
            shape = _believed(entry.pixel_shape)
            yield Frame(entry.number, entry.raw, gap, shape, entry.orientation)
            before = entry

    def _stretch(self, begin: float, end: float) -> Iterator[_Decoded]:
        for entry in self._decoded():
            # Half a frame of tolerance: rounding must not decide where a stretch begins.
            time = entry.time + 0.5 / self.fps
            if time >= end:
                return
            if time >= begin:
                yield entry

    def _decoded(self) -> Iterator[_Decoded]:
        """All frames; those that are not what was recorded are `damaged`.

        Damage spreads over the frames that refer to a damaged one, which FFmpeg does not mark: it
        ends at the next keyframe.
        """
        clock = _Clock(self.fps)
        damaged, keyframe_sent = False, True
        announced: set[int | None] = set()
        shapes: dict[int, Fraction] = {}  # by packet
        number = 0
        for place, packet in enumerate(self._packets()):
            # PyAV knows an object by its address, which equal small numbers share with other videos
            packet.opaque = (place,)
            if packet.is_corrupt:
                self.damaged += 1
                announced.add(packet.pts)
                damaged, keyframe_sent = True, False
            elif packet.is_keyframe:
                # A keyframe that was sent before the damage may still come out after it.
                keyframe_sent = True
            try:
                decoded = packet.decode()
            except (av.error.FFmpegError, OSError, ValueError):
                self.damaged += 1
                damaged, keyframe_sent = True, False
                continue
            shapes[place] = self._pixel_shape()
            shapes.pop(place - _MOST_DELAYED, None)
            for raw in decoded:
                assert isinstance(raw, av.VideoFrame)
                if raw.is_corrupt:
                    self.damaged += raw.pts not in announced
                    damaged = True
                elif damaged and keyframe_sent and (raw.key_frame or self._intra_only):
                    damaged = False
                jump = clock.tick(None if raw.time is None else float(raw.time))
                sent: Any = raw.opaque or (place,)
                shape = shapes.get(sent[0], shapes[place])
                entry = _Decoded(number, clock.now, raw, damaged, jump, _orientation(raw), shape)
                self._note_time(clock)
                if not damaged:  # a broken header says anything
                    self._note(entry)
                yield entry
                number += 1

    def _packets(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        clock = _Clock(self.fps)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.error.FFmpegError, OSError):
                self.damaged += 1
                break
            _tick(clock, packet)
            yield packet
        self._measured = clock.now + 1 / self.fps

    def _whole(self, entries: Iterable[_Decoded]) -> Iterator[_Decoded]:
        """The frames that are not damaged, with a `gap` where some are left out.

        A B-frame comes before a frame that it refers to; it waits until that one is known to be
        whole.
        """
        held: list[_Decoded] = []
        gap = False
        for entry in entries:
            gap |= entry.gap
            if entry.damaged:
                self.left_out += 1 + len(held)
                held, gap = [], True
                continue
            held.append(replace(entry, gap=gap))
            gap = False
            if entry.raw.pict_type != _B_FRAME or len(held) > _HELD:
                yield from held
                held = []
        yield from held

    def _deinterlaced(self, entries: Iterable[_Decoded]) -> Iterator[_Decoded]:
        """The same frames; both fields of interlaced ones, taken at two moments, become one."""
        filtered: _Deinterlacer | None = None
        for entry in entries:
            if filtered is not None and (entry.gap or not filtered.takes(entry.raw)):
                yield from filtered.rest()
                filtered = None
            if filtered is None and entry.raw.interlaced_frame:
                self._found["interlaced"] = "deinterlaced by bwdif"
                filtered = _Deinterlacer(entry.raw, self._stream.time_base)
            if filtered is None:
                yield entry
            else:
                yield from filtered.push(entry)
        if filtered is not None:
            yield from filtered.rest()

    def _note(self, entry: _Decoded) -> None:
        """Note for the record what a frame says of its pixels; all that differs is named."""
        raw, said = entry.raw, self._said
        said.sizes[f"{raw.width}x{raw.height}"] = None
        said.formats[raw.format.name] = None
        said.shapes[entry.pixel_shape] = None
        said.orientations[entry.orientation] = None
        said.colours[
            int(raw.color_primaries), int(raw.color_trc), int(raw.colorspace), int(raw.color_range)
        ] = None
        if has_alpha(raw):
            self._found["transparency"] = "over black"

    def _note_time(self, clock: _Clock) -> None:
        found = self._found
        if clock.jumps:
            found["time_jumps"] = clock.jumps
        if clock.disorder:
            found["times_out_of_order"] = clock.disorder
        elif clock.varies:
            found["frame_interval"] = [round(clock.shortest, 6), round(clock.longest, 6)]
        if clock.start:
            found["start_time"] = round(clock.start, 6)


class _Said:
    """What the frames of a stream said of their pixels: each value once, in order."""

    def __init__(self) -> None:
        self.sizes: dict[str, None] = {}
        self.formats: dict[str, None] = {}
        self.shapes: dict[Fraction, None] = {}
        self.orientations: dict[Orientation, None] = {}
        self.colours: dict[tuple[int, int, int, int], None] = {}

    def record(self) -> dict[str, Any]:
        if not self.sizes:
            return {}
        names = ("primaries", "transfer", "matrix", "range")
        colours = [
            dict(zip(names, (*colour[:3], _RANGES.get(colour[3], "unspecified")), strict=True))
            for colour in self.colours
        ]
        found: dict[str, Any] = {
            "sizes": list(self.sizes),
            "pixel_format": ", ".join(self.formats),
            "colour": colours[0],
            **_shape_record(self.shapes),
        }
        if len(colours) > 1:
            found["other_colours"] = colours[1:]
        if set(self.orientations) != {AS_STORED}:
            found["orientation"] = ", ".join(map(str, self.orientations))
        hdr = dict.fromkeys(_HDR[colour[1]] for colour in self.colours if colour[1] in _HDR)
        if hdr:
            found["high_dynamic_range"] = f"{' and '.join(hdr)}, not tone-mapped"
        return found


class _Clock:
    """Seconds since the first time stamp, which only ever run forwards.

    Where time goes back or jumps far ahead, recordings were joined: the next frame counts as one
    frame later, wherever its own time stamp is.
    """

    def __init__(self, fps: float) -> None:
        self._frame = 1 / fps
        self._last: float | None = None
        self._at = 0.0
        self.now = 0.0
        self.start = 0.0
        self.jumps = 0
        # So many frames are earlier than the one before, as where a container has no times for
        # B-frames and FFmpeg guesses them.
        self.disorder = 0
        self.shortest, self.longest = float("inf"), 0.0

    @property
    def varies(self) -> bool:
        """Whether the frames' distances differ by more than rounding to milliseconds can."""
        return self.longest - self.shortest > max(0.003, 0.2 * self._frame)

    def tick(self, stamp: float | None) -> bool:
        """The next time stamp, in seconds; returns whether it jumps."""
        if stamp is None and self._last is None:
            stamp = 0.0
        if self._last is None:
            assert stamp is not None
            self._last = self.start = stamp
            return False
        step = self._frame if stamp is None else stamp - self._last
        self._last = self._last + step if stamp is None else stamp
        ahead = max(1.0, _AHEAD * self._frame)
        jump = step < -_BACK * self._frame or step > ahead
        if jump:
            self.jumps += 1
            step = self._frame
        else:
            self.disorder += step < 0
            self.shortest, self.longest = min(self.shortest, step), max(self.longest, step)
        self._at += step
        self.now = max(self.now, self._at)
        return jump


def _tick(clock: _Clock, packet: Any) -> None:
    """Count a packet's time, but for the empty one at the end and for what is not shown."""
    if packet.size and not packet.is_discard:
        stamp = packet.pts if packet.dts is None else packet.dts
        clock.tick(None if stamp is None else float(stamp * packet.time_base))


class _Deinterlacer:
    """FFmpeg's bwdif for frames of one size and format: as many come out as go in."""

    def __init__(self, raw: av.VideoFrame, time_base: Fraction | None) -> None:
        self._kind = _kind(raw)
        self._waiting: deque[_Decoded] = deque()
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        source = self._graph.add_buffer(
            width=raw.width,
            height=raw.height,
            format=raw.format,
            time_base=raw.time_base or time_base or Fraction(1, 25),
        )
        bwdif = self._graph.add("bwdif", "mode=send_frame:deint=interlaced")
        self._graph.link_nodes(source, bwdif, self._graph.add("buffersink")).configure()

    def takes(self, raw: av.VideoFrame) -> bool:
        return self._kind == _kind(raw)

    def push(self, entry: _Decoded) -> Iterator[_Decoded]:
        self._waiting.append(entry)
        self._graph.vpush(entry.raw)
        return self._pull()

    def rest(self) -> Iterator[_Decoded]:
        self._graph.vpush(None)
        return self._pull()

    def _pull(self) -> Iterator[_Decoded]:
        while self._waiting:
            try:
                raw = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            yield replace(self._waiting.popleft(), raw=raw)


def open_video(path: Path | Content, fps: float = 25.0) -> Video | FrameFolder:
    """A video file, or a folder of numbered frames, to read; `fps` is that of folders.

    Raises:
        VideoError: it cannot be opened, or holds no video.
    """
    return FrameFolder(path, fps) if isinstance(path, Path) and path.is_dir() else Video(path)


def video_name(path: Path) -> str:
    """What a video is called: a file's name; a folder of frames without a word such as `img1`."""
    return folder_name(path) if path.is_dir() else path.name


def video_stem(path: Path) -> str:
    """The same without the ending that files have."""
    return folder_name(path) if path.is_dir() else path.stem


def video_digest(path: Path) -> str:
    """SHA-256 of a file's content; of a folder of frames, of their contents in order.

    Raises:
        VideoError: it cannot be read.
    """
    try:
        if not path.is_dir():
            return file_digest(path)
        numbered = FrameFolder(path).numbered
        together = hashlib.sha256()
        for file, place in zip(numbered.files, numbered.places, strict=True):
            together.update(f"{place} {file_digest(file)}\n".encode())
        return together.hexdigest()
    except OSError as error:
        raise VideoError(f"{path}: cannot be read: {error.strerror or error}") from error


def _is_picture(stream: av.VideoStream) -> bool:
    """Whether a video stream is a cover picture or a thumbnail."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    return bool(stream.disposition & pictures)


def _orientation(raw: av.VideoFrame) -> Orientation:
    """How a frame is to be shown, by its display matrix (see FFmpeg's libavutil/display.h)."""
    try:
        side: Any = raw.side_data.get("DISPLAYMATRIX")
    except (ValueError, KeyError):  # PyAV does not know the kind of other side data
        turns = round(raw.rotation / 90) % 4
        return (
            AS_STORED,
            Orientation(transposed=True, mirrored_y=True),
            Orientation(mirrored_x=True, mirrored_y=True),
            Orientation(transposed=True, mirrored_x=True),
        )[turns]
    if side is None:
        return AS_STORED
    # A point (x, y) is shown at (a x + c y, b x + d y)
    a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def _kind(raw: av.VideoFrame) -> tuple[object, ...]:
    """What a filter takes for the same in all its frames."""
    colour = raw.colorspace, raw.color_range, raw.color_trc, raw.color_primaries
    return raw.width, raw.height, raw.format.name, *map(int, colour)


def _believed(shape: Fraction) -> float:
    """The width of a stored pixel over its height; 1 where it cannot be."""
    return float(shape) if _can_be(shape) else 1.0


def _can_be(shape: Fraction) -> bool:
    return _PIXEL_SHAPES[0] <= float(shape) <= _PIXEL_SHAPES[1]


def _shape_record(shapes: Iterable[Fraction]) -> dict[str, str]:
    texts = {
        shape: f"{shape.numerator}:{shape.denominator}"
        + ("" if _can_be(shape) else " (not believed: taken as square)")
        for shape in shapes
    }
    return {} if set(texts) <= {Fraction(1)} else {"pixel_shape": ", ".join(texts.values())}
