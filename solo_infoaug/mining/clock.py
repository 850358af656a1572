"""The time of a video's frames, from time stamps that may be missing, jump or run backwards."""

from __future__ import annotations

from typing import Any

# If time runs backwards by more (in frames), recordings were joined; less is jitter.
_BACK = 4
# If time jumps ahead by more (in frames; and at least one second), frames are missing.
_AHEAD = 10


class Clock:
    """Seconds since the first time stamp; they never decrease.

    If time goes back or jumps far ahead, recordings were joined. The next frame then counts as one
    frame later, whatever its own time stamp is.
    """

    def __init__(self, fps: float) -> None:
        self._frame = 1 / fps
        self._last: float | None = None
        self._at = 0.0
        self.now = 0.0
        self.start = 0.0
        self.jumps = 0
        # Number of frames that are earlier than the one before. It happens if a container has no
        # times for B-frames and FFmpeg guesses them.
        self.disorder = 0
        self.shortest, self.longest = float("inf"), 0.0

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

    def record(self) -> dict[str, Any]:
        """What was unusual about the times."""
        found: dict[str, Any] = {}
        if self.jumps:
            found["time_jumps"] = self.jumps
        if self.disorder:
            found["times_out_of_order"] = self.disorder
        # by more than rounding to milliseconds can
        elif self.longest - self.shortest > max(0.003, 0.2 * self._frame):
            found["frame_interval"] = [round(self.shortest, 6), round(self.longest, 6)]
        if self.start:
            found["start_time"] = round(self.start, 6)
        return found


def tick_packet(clock: Clock, packet: Any) -> None:
    """Count a packet's time unless it is the empty one at the end, or is not shown."""
    if packet.size and not packet.is_discard:
        stamp = packet.pts if packet.dts is None else packet.dts
        clock.tick(None if stamp is None else float(stamp * packet.time_base))
