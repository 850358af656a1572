"""One window: from frames to patches and their twins."""

from __future__ import annotations

from dataclasses import dataclass

from solo_infoaug.mining.background import without_background
from solo_infoaug.mining.candidates import REASONS
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.patch_grid import patch_size
from solo_infoaug.mining.storing import Stored, store
from solo_infoaug.mining.trackers import Tracker, Tracks
from solo_infoaug.mining.twins import find_twins
from solo_infoaug.mining.windows import Window


@dataclass(frozen=True)
class Mined:
    """How many patches of a window had each result, and what is stored: None without a twin."""

    reasons: dict[str, int]
    stored: Stored | None


def follow(window: Window, tracker: Tracker, config: MineConfig) -> Tracks | None:
    """The tracks of a window's patches; None if the frames are too small for two of them."""
    size = patch_size(*window.size, config)
    if size > min(window.size):
        return None
    tracks = tracker.follow(window, size, config.grid_step, config.camera)
    return tracks if tracks.path.shape[1] >= 2 else None


def mine_window(window: Window, tracks: Tracks | None, config: MineConfig) -> Mined:
    """Mine one window: tracks → background → gate → partners → crops.

    Units are source pixels, of the active picture until patches are stored.
    """
    if tracks is None:
        return Mined({}, None)
    size = patch_size(*window.size, config)
    patches, camera = without_background(window, tracks, size, config)
    twins = find_twins(patches, config)
    counts = {name: int((twins.reason == number).sum()) for number, name in enumerate(REASONS)}
    if not counts["twin"]:
        return Mined(counts, None)
    record = {**camera, **twins.record, "patch": size, "reasons": counts}
    if window.within is not None:
        record["picture"] = str(window.within)
    if tracks.overlay is not None:
        record["overlay"] = round(float(tracks.overlay.mean()), 4)
    return Mined(counts, store(patches, twins, record, config))
