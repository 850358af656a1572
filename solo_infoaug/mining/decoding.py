"""Decoding: frames of a video, one after the other, as they are meant to be seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import av.error
from av.stream import Disposition

from solo_infoaug._files import reason_of
from solo_infoaug.errors import VideoError
from solo_infoaug.mining.clock import Clock, tick_packet
from solo_infoaug.mining.container import open_input
from solo_infoaug.mining.content import Content
from solo_infoaug.mining.decoded import Decoded, Said, believed, orientation_of, shape_record
from solo_infoaug.mining.deinterlacing import Deinterlacer
from solo_infoaug.mining.frame import Frame, every_nth, has_alpha

# B-frames that are held back, at most, until the frame that they refer to proves to be whole: the
# largest picture buffer that H.264 and HEVC allow.
_HELD = 16
_B_FRAME = 3
# A frame leaves the decoder at most this many packets after its own.
_MOST_DELAYED = 256


class Video:
    """A video file, or its bytes from elsewhere, opened for decoding: iterate over `frames`.

    Raises:
        VideoError: it cannot be opened, or holds no video stream.
    """

    def __init__(self, path: Path | Content) -> None:
        self.path = path
        # Seconds, once all packets were read
        self._measured: float | None = None
        # Packets that the decoder refused or found damaged; frames left out because of them.
        self.damaged = 0
        self.left_out = 0
        self._found: dict[str, Any] = {}
        self._said = Said()
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
        """The stream that a player would show: not a cover picture, and the best of several."""
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
        """The name of the file."""
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
            **shape_record([self._stream.sample_aspect_ratio or Fraction(1)]),
            **self._found,
            **self._said.record(),
        }

    @cached_property
    def duration(self) -> float:
        """Seconds, measured: a header gives the time at which a video ends, whenever it began.

        If all packets were read before, nothing is read again.
        """
        if self._measured is not None:
            return self._measured
        clock = Clock(self.fps)
        try:
            with open_input(self.path) as container:
                stream = container.streams[self._stream.index]
                for packet in container.demux(stream):
                    tick_packet(clock, packet)
        except (av.error.FFmpegError, OSError):
            pass  # the video ends where it cannot be read; decoding counts the damage
        return clock.now + 1 / self.fps

    def _pixel_shape(self) -> Fraction:
        """Width over height of a pixel of the packet decoded last; 1 if unknown."""
        if self._container_shape is not None:
            return self._container_shape
        return self._stream.codec_context.sample_aspect_ratio or Fraction(1)

    def frames(
        self, start_fraction: float = 0.0, stop_fraction: float = 1.0, step: int = 1
    ) -> Iterator[Frame]:
        """Every `step`-th frame of a stretch of the video; `number` counts from its very start.

        Damaged frames are left out, up to the next keyframe, and counted in `left_out`; the frame
        after them has a `gap`. Adjacent stretches share no frame, and no frame lies between them.
        """
        begin, end = 0.0, float("inf")
        if (start_fraction, stop_fraction) != (0.0, 1.0):
            begin = start_fraction * self.duration
            end = stop_fraction * self.duration if stop_fraction < 1.0 else end
        return every_nth(self._frames(begin, end), step)

    def _frames(self, begin: float, end: float) -> Iterator[Frame]:
        before: Decoded | None = None
        for entry in self._deinterlaced(self._whole(self._stretch(begin, end))):
            gap = entry.gap or (before is not None and entry.geometry != before.geometry)
            shape = believed(entry.pixel_shape)
            yield Frame(entry.number, entry.raw, gap, shape, entry.orientation)
            before = entry

    def _stretch(self, begin: float, end: float) -> Iterator[Decoded]:
        for entry in self._decoded():
            # Half a frame of tolerance: rounding must not decide where a stretch begins.
            time = entry.time + 0.5 / self.fps
            if time >= end:
                return
            if time >= begin:
                yield entry

    def _decoded(self) -> Iterator[Decoded]:
        """All frames; those that differ from what was recorded are `damaged`.

        Damage spreads to the frames that refer to a damaged one, up to the next keyframe. FFmpeg
        does not mark these.
        """
        clock = Clock(self.fps)
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
                entry = Decoded(number, clock.now, raw, damaged, jump, orientation_of(raw), shape)
                self._found |= clock.record()
                if not damaged:  # a broken header says anything
                    self._said.note(entry)
                    if has_alpha(raw):
                        self._found["transparency"] = "over black"
                yield entry
                number += 1

    def _packets(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        clock = Clock(self.fps)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except (av.error.FFmpegError, OSError):
                self.damaged += 1
                break
            tick_packet(clock, packet)
            yield packet
        self._measured = clock.now + 1 / self.fps

    def _whole(self, entries: Iterable[Decoded]) -> Iterator[Decoded]:
        """The frames that are not damaged, with a `gap` where some are left out.

        A B-frame comes before a frame that it refers to; it waits until that one is known to be
        whole.
        """
        held: list[Decoded] = []
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

    def _deinterlaced(self, entries: Iterable[Decoded]) -> Iterator[Decoded]:
        """The same frames; the two fields of an interlaced frame become one picture."""
        filtered: Deinterlacer | None = None
        for entry in entries:
            if filtered is not None and (entry.gap or not filtered.takes(entry.raw)):
                yield from filtered.rest()
                filtered = None
            if filtered is None and entry.raw.interlaced_frame:
                self._found["interlaced"] = "deinterlaced by bwdif"
                filtered = Deinterlacer(entry.raw, self._stream.time_base)
            if filtered is None:
                yield entry
            else:
                yield from filtered.push(entry)
        if filtered is not None:
            yield from filtered.rest()


def _is_picture(stream: av.VideoStream) -> bool:
    """Whether a video stream is a cover picture or a thumbnail."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    return bool(stream.disposition & pictures)
