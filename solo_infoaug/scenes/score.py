"""Compare twins that were mined from a generated scene with its truth."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import cv2
import numpy as np

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.reading import WindowRecord
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.patch_grid import grid, patch_size
from solo_infoaug.scenes.generated import Scene


@dataclass(frozen=True)
class Score:
    """How well twins fit the truth of a scene; counts of patches, by what they lie on.

    A patch lies on an object if three quarters of it do, on the background if no pixel of it
    belongs to an object or a pole. A twin is right if most of it belongs to the same object. A
    patch counts once in each window, with the truth of the frame that it was taken from.
    """

    objects: int  # on an object, and visible for the shortest track that is mined
    with_twin: int  # of these, have a twin
    right: int  # of these, on the same object
    background: int
    background_with_twin: int
    # How many of them would be, were twins drawn from the patches of the window that have one, too,
    # and do not overlap: what the mutual information adds to the knowledge that both move.
    right_by_chance: float

    @property
    def purity(self) -> float:
        """Share of the objects' twins that lie on the same object."""
        return self.right / self.with_twin if self.with_twin else float("nan")

    @property
    def recall(self) -> float:
        """The share of trackable patches on objects that have a twin."""
        return self.with_twin / self.objects if self.objects else float("nan")

    @property
    def false_alarms(self) -> float:
        """The share of background patches that have a twin."""
        return self.background_with_twin / self.background if self.background else float("nan")

    @property
    def chance(self) -> float:
        """The purity of twins that are drawn at random."""
        return self.right_by_chance / max(self.with_twin, 1)

    def __add__(self, other: Score) -> Score:
        return Score(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def score(
    scene: Scene, dictionary: TwinDictionary | None, config: MineConfig | None = None
) -> Score:
    """Compare the twins of a dictionary, mined from `scene` alone, with the truth.

    All patches of all windows count. A dictionary holds the whole grid of each window that has a
    twin; in the other windows no patch has one, nor in any where it is None.

    Raises:
        ValueError: the dictionary is not one of this scene, with these settings.
    """
    config = config or MineConfig()
    height, width = scene.config.height, scene.config.width
    size = patch_size(height, width, config)
    whole = grid(height, width, size, config.grid_step)
    stored = {} if dictionary is None else {window.first: window for window in dictionary.windows}
    total = Score(0, 0, 0, 0, 0, 0.0)
    for frames in _windows(scene.config.frames, config):
        seed, twin = frames[len(frames) // 2], np.full(len(whole), -1)
        if dictionary is not None and frames.start in stored:
            window = stored.pop(frames.start)
            seed = window.record["frame"]
            twin = _twins_in_grid(dictionary, window, whole)
        total += _compare(scene, seed, frames, whole, size, twin, config.min_frames)
    if stored:
        raise ValueError(f"windows begin at frames {sorted(stored)}: not with these settings")
    return total


def _windows(frames: int, config: MineConfig) -> list[range]:
    """The windows that a shot of this many frames is mined in."""
    windows = []
    for start in range(0, frames, config.stride):
        window = range(start, min(start + config.window, frames))
        if len(window) >= config.min_frames:
            windows.append(window)
        if window.stop == frames:
            break
    return windows


def _twins_in_grid(
    dictionary: TwinDictionary, window: WindowRecord, centres: np.ndarray
) -> np.ndarray:
    """int [G]: of each patch of a window's grid the best twin, by its place in it; −1 for none."""
    rows = np.arange(window.patches.start, window.patches.stop)
    best = dictionary.twins[rows, 0].numpy()
    twin = np.full(len(centres), -1)
    here, there = rows[best >= 0], best[best >= 0]
    twin[_places(dictionary, here, centres)] = _places(dictionary, there, centres)
    arrays = window.arrays
    if not np.array_equal(arrays["centres"].round(), centres.round()):
        raise ValueError(f"frame {window.record['frame']}: its grid is not that of these settings")
    if not np.array_equal(arrays["reason"] == 0, twin >= 0):
        raise ValueError(f"frame {window.record['frame']}: twins and `reason` do not fit together")
    return twin


def _places(dictionary: TwinDictionary, rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """int64 [N]: where in the grid patches of the dictionary lie."""
    stored = np.stack([dictionary.patches["x"][rows], dictionary.patches["y"][rows]], axis=1)
    distance = np.abs(stored[:, None] - centres[None]).max(axis=2)
    if len(rows) and distance.min(axis=1).max() > 0.5:
        raise ValueError("the dictionary's patches do not lie on the grid of these settings")
    return distance.argmin(axis=1)


def _compare(
    scene: Scene,
    seed: int,
    frames: range,
    centres: np.ndarray,
    size: int,
    twin: np.ndarray,
    min_frames: int,
) -> Score:
    """The score of the window `frames`, whose patches lie at `centres` [G, 2] in frame `seed`.

    `twin` int [G] is the place of each patch's twin, −1 for none. A patch is trackable if its
    middle is seen in at least `min_frames` frames around the seed.
    """
    owner, share = _ownership(scene.owners(seed), centres, size)
    _, visible = scene.paths(centres, seed, frames)
    middle = seed - frames.start
    before = np.logical_and.accumulate(visible[middle::-1]).sum(axis=0)
    after = np.logical_and.accumulate(visible[middle:]).sum(axis=0)
    has = twin >= 0
    objects = (owner > 0) & (share >= 0.75) & (before + after - 1 >= min_frames)
    background = (owner == 0) & (share == 1.0)
    anchors = np.flatnonzero(objects & has)
    others = np.flatnonzero(has)
    non_overlapping = np.abs(centres[anchors][:, None] - centres[others]).max(axis=2) >= size - 0.5
    same = non_overlapping & (owner[anchors][:, None] == owner[others])
    chance = same.sum(axis=1) / np.maximum(non_overlapping.sum(axis=1), 1)
    return Score(
        objects=int(objects.sum()),
        with_twin=len(anchors),
        right=int((owner[twin[anchors]] == owner[anchors]).sum()),
        background=int(background.sum()),
        background_with_twin=int((background & has).sum()),
        right_by_chance=float(chance.sum()),
    )


def _ownership(owners: np.ndarray, centres: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What owns most of each patch, int64 [G], and the share that it owns, float64 [G]."""
    left, top = np.round(centres - size / 2).astype(int).T
    names = np.unique(owners)
    shares = []
    for name in names:
        area = cv2.integral((owners == name).astype(np.uint8))
        count = area[top + size, left + size] - area[top, left + size]
        shares.append((count - area[top + size, left] + area[top, left]) / size**2)
    most = np.argmax(shares, axis=0)
    return names[most].astype(np.int64), np.max(shares, axis=0)
