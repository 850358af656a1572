"""Deinterlacing: both fields of a frame, taken at two times, become one picture."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import av
import av.error

from solo_infoaug.mining.decoded import Decoded


class Deinterlacer:
    """FFmpeg's bwdif for frames of one size and format; it returns one frame for each."""

    def __init__(self, raw: av.VideoFrame, time_base: Fraction | None) -> None:
        self._kind = _kind(raw)
        self._waiting: deque[Decoded] = deque()
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
        """Whether a frame is of the size and format that this was made for."""
        return self._kind == _kind(raw)

    def push(self, entry: Decoded) -> Iterator[Decoded]:
        """Take the next frame; returns those that are ready."""
        self._waiting.append(entry)
        self._graph.vpush(entry.raw)
        return self._pull()

    def rest(self) -> Iterator[Decoded]:
        """The frames that are left; none can be pushed after this."""
        self._graph.vpush(None)
        return self._pull()

    def _pull(self) -> Iterator[Decoded]:
        while self._waiting:
            try:
                raw = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            yield replace(self._waiting.popleft(), raw=raw)


def _kind(raw: av.VideoFrame) -> tuple[object, ...]:
    """What FFmpeg's filter needs to be the same in all frames."""
    colour = raw.colorspace, raw.color_range, raw.color_trc, raw.color_primaries
    return raw.width, raw.height, raw.format.name, *map(int, colour)
