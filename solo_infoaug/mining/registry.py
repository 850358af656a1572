"""The trackers by name: those of `trackers.py`, and those that users add."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from solo_infoaug.mining.config import MineConfig
    from solo_infoaug.mining.trackers import Tracker

    MakeTracker = Callable[[Path, MineConfig], Tracker]
    Make = TypeVar("Make", bound=MakeTracker)


class Registered(NamedTuple):
    """How a tracker is made for a video, and whether it is a network."""

    make: MakeTracker
    neural: bool


TRACKERS: dict[str, Registered] = {}
"""What the setting `tracker` may be."""


def register_tracker(name: str, *, neural: bool = False) -> Callable[[Make], Make]:
    """Decorate what makes a tracker, a class or a function, so that `tracker=name` finds it.

    It is called with the path of each video and the `MineConfig`, and returns a
    `solo_infoaug.mining.trackers.Tracker`; `GridTracker` there makes one of any function that
    tracks points. Worker processes must import the module that registers it.

    Args:
        name: the value of the setting `tracker`; a tracker of that name is replaced.
        neural: it takes `tracker_checkpoint`, and a GPU on Ray unless `device=cpu`.
    """

    def add(make: Make) -> Make:
        TRACKERS[name] = Registered(make, neural)
        return make

    return add
