"""The trackers by name: those of `trackers.py`, and those that users add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

Make = TypeVar("Make", bound=Callable[..., Any])


class Registered(NamedTuple):
    """What makes a tracker of a video and a `MineConfig`; whether it is a network."""

    make: Callable[..., Any]
    neural: bool


TRACKERS: dict[str, Registered] = {}
"""What the setting `tracker` may be."""


def register_tracker(name: str, *, neural: bool = False) -> Callable[[Make], Make]:
    """Decorate what makes a tracker, a class or a function, so that `tracker=name` finds it.

    It is called with the path of each video (of one in a store or in a tar shard, with its
    `solo_infoaug.mining.content.Content`) and the `MineConfig`, and returns a
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
