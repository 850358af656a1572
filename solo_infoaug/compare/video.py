"""`video`: a benchmark on real video. Does the backbone know which patches are of one object?

Some videos are trained on, others are held out whole. The last part of the former is kept back:
no twin and no patch to pretrain on comes from there. Only the evaluation uses masks of objects. It
measures, with patches that do not overlap:

* AUC: is the similarity of two patches of one object higher than that of one of them and a patch
  of the background, in the same frame? Chance is 50 per cent.
* Things: where a frame shows several objects, is the similarity of two patches of one of them
  higher than that of two patches of different ones? Chance is 50 per cent.
* Retrieval: is the nearest patch on the same object, in the same frame and in a later one? Patches
  at the place of the query are left out.

And without patches, in the first frames of the held-out videos: label propagation, by
`solo_infoaug.evaluation.segmentation`.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from solo_infoaug._checks import is_whole, require
from solo_infoaug._files import digest, mark_as_made, new_file, write_json
from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation.clips import Clip, find_clips, fitted
from solo_infoaug.evaluation.propagation import FeatureMap
from solo_infoaug.evaluation.segmentation import segment
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.crops import crops
from solo_infoaug.mining.patch_grid import patch_size
from solo_infoaug.mining.video import open_video

VERSION = 1
"""Part of the digest: changes if the same settings give another benchmark."""

Features = Callable[[Tensor], Tensor]
"""uint8 [N, 3, S, S] → float32 [N, D]."""


@dataclass(frozen=True)
class PropagationConfig:
    """How much label propagation sees of each held-out video.

    Raises:
        ConfigError: a value cannot be used.
    """

    frames: int = 10
    """Number of frames, from the first on."""
    size: int = 320
    """Shorter side in pixels of the frames that the backbone sees; 8 pixels a place."""

    def __post_init__(self) -> None:
        for name, least in {"frames": 2, "size": 8}.items():
            value = getattr(self, name)
            good = is_whole(value, least)
            require(good, f"video.propagation.{name}", f"a whole number ≥ {least}", value)


@dataclass(frozen=True)
class VideoConfig:
    """Settings of the benchmark; a ConfigError if a value cannot be used."""

    videos: str
    """Folder with NAME.mp4 (or a folder of frames NAME) next to NAME.npz, whose `mask` is packed
    bits and `shape` is frames, height, width, or whose `ids` is the number of the object at each
    pixel, uint8 [T, H, W]; or with DAVIS's JPEGImages and Annotations."""
    held_out: int | Sequence[str] = 3
    """Every n-th video is held out whole, in the order of their names; or which are: names, or
    patterns such as `test-*`."""
    stop_fraction: float = 0.75
    """Fraction of the other videos that is trained on."""
    train_frames: int = 12
    """Number of frames of each from which patches to pretrain on are cut."""
    train_patches: int = 40
    """Number of patches from each of these frames."""
    test_frames: int = 5
    """Number of frames from each video's tested part."""
    background: int = 200
    """Maximum number of background patches from each tested frame."""
    seed: int = 0
    propagation: PropagationConfig | None = None
    """Label propagation, also as a mapping; None leaves it out."""

    def __post_init__(self) -> None:
        if isinstance(given := self.propagation, Mapping):
            object.__setattr__(self, "propagation", PropagationConfig(**given))
        else:
            good = given is None or isinstance(given, PropagationConfig)
            require(good, "video.propagation", "a mapping of frames and size, or null", given)
        named: Any = self.held_out
        if not is_whole(named, 2):
            named = (named,) if isinstance(named, str) else named
            listed = isinstance(named, list | tuple) and len(named) > 0
            good = listed and all(isinstance(name, str) for name in named)
            expected = "a whole number ≥ 2, or names or patterns of videos"
            require(good, "video.held_out", expected, self.held_out)
            object.__setattr__(self, "held_out", tuple(named))
        minima = {"train_frames": 1, "train_patches": 1, "test_frames": 2}
        for name, least in {**minima, "background": 1}.items():
            value = getattr(self, name)
            expected = f"a whole number ≥ {least}"
            require(is_whole(value, least), f"video.{name}", expected, value)
        good = 0 < self.stop_fraction < 1
        require(good, "video.stop_fraction", "a number in (0, 1)", self.stop_fraction)

    @property
    def digest(self) -> str:
        """A short hash of what the data depends on: settings, the miner's, generator's version."""
        settings = asdict(self)
        settings.pop("propagation")
        return digest([VERSION, settings, self.mining.hashed()])

    def as_dict(self) -> dict[str, Any]:
        """The settings; without label propagation they are what they were before there was it."""
        settings = asdict(self)
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def mining(self) -> MineConfig:
        """The miner's defaults, except where it stops. Crops show patches, as the test does."""
        return MineConfig(stop_fraction=self.stop_fraction, context=1.0)


def split_clips(config: VideoConfig) -> dict[str, list[Clip]]:
    """`seen`: videos that are trained on, but for their last part; and `unseen`: held-out ones."""
    clips, which = find_clips(Path(config.videos)), config.held_out
    if isinstance(which, int):
        unseen = clips[which - 1 :: which]
    else:
        found = {
            pattern: fnmatch.filter([clip.name for clip in clips], pattern) for pattern in which
        }
        names = {name for of_pattern in found.values() for name in of_pattern}
        unseen = [clip for clip in clips if clip.name in names]
        for pattern, of_pattern in found.items():
            if not of_pattern or len(unseen) == len(clips):
                raise ConfigError(
                    f"video.held_out: expected names of some of the videos in {config.videos} "
                    f"({', '.join(clip.name for clip in clips[:3])}, …), or patterns; got "
                    f"{pattern}, "
                    + ("after which none is left" if of_pattern else "which none has")
                )
    return {"seen": [s for s in clips if s not in unseen], "unseen": unseen}


# --- patches -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiles:
    """Patches of one frame that do not overlap: images, places and objects."""

    pixels: Tensor
    """uint8 [N, 3, S, S]."""
    corners: np.ndarray
    """int64 [N, 2]: x, y."""
    objects: np.ndarray
    """int64 [N]: the object that three quarters of the patch show; 0: background, −1: mixed."""
    side: int
    """Side of the patches, pixels of the frame."""


Tested = dict[str, dict[str, list[Tiles]]]
"""Split → video → its tested frames."""


def cut(image: np.ndarray, mask: np.ndarray | None, config: MineConfig) -> Tiles:
    """The miner's patches without overlap of `image`, uint8 [H, W, 3]; objects by `mask` [H, W]."""
    height, width = image.shape[:2]
    side = patch_size(height, width, config)
    height, width = height // side, width // side
    y, x = (n.ravel() * side for n in np.mgrid[:height, :width])
    corners = np.stack([x, y], axis=1)
    pixels = crops(
        {0: image},
        np.zeros((len(corners), 1), np.int64),
        (corners + side / 2)[None].astype(np.float64),
        side,
        config.crop_size,
        config.context,
    )[:, 0]
    objects = np.zeros(len(corners), np.int64)
    if mask is not None:
        mask = fitted(mask, *image.shape[:2])
        whole = mask[: height * side, : width * side].reshape(height, side, width, side)
        blocks = whole.transpose(0, 2, 1, 3).reshape(len(corners), -1)
        objects[(blocks > 0).any(axis=1)] = -1
        for number in np.unique(mask[mask > 0]):
            objects[(blocks == number).mean(axis=1) >= 0.75] = number
    return Tiles(torch.from_numpy(pixels), corners, objects, side)


def _frames(
    sequence: Clip, start: float, stop: float, count: int
) -> Iterator[tuple[int, np.ndarray]]:
    """`count` frames spread over a part of the video: numbers and images, uint8 [H, W, 3]."""
    with open_video(sequence.source) as video:
        there = [(frame.number, frame.image()) for frame in video.frames(start, stop)]
    for index in np.unique(np.linspace(0, len(there) - 1, count).round().astype(int)):
        yield there[index]


def kept_back(sequence: Clip, start: float, config: VideoConfig) -> list[Tiles]:
    """The patches of a video's tested frames: all on objects, and some of the background."""
    masks, tested = sequence.read_masks(), []
    for number, image in _frames(sequence, start, 1.0, config.test_frames):
        tiles = cut(image, masks[min(number, len(masks) - 1)], config.mining)
        rng = np.random.default_rng([config.seed, number])
        background = rng.permutation(np.flatnonzero(tiles.objects == 0))[: config.background]
        rows = np.sort(np.concatenate([np.flatnonzero(tiles.objects > 0), background]))
        chosen = tiles.pixels[rows], tiles.corners[rows], tiles.objects[rows]
        tested.append(Tiles(*chosen, tiles.side))
    return tested


# --- the benchmark on disk -----------------------------------------------------------------------


def prepare_video(folder: Path, config: VideoConfig, workers: int = 1) -> tuple[Path, Path]:
    """Make the benchmark in `folder`, or take it from there: images to pretrain on, dictionary."""
    stills, twins, marker = folder / "stills", folder / "twins", folder / "video.json"
    mark_as_made(folder)
    with FileLock(f"{folder}.lock"):
        if not marker.is_file():
            seen = split_clips(config)["seen"]
            shutil.rmtree(stills, ignore_errors=True)
            for sequence in seen:
                _write_stills(stills / sequence.name, sequence, config)
            mine([sequence.source for sequence in seen], twins, config.mining, workers=workers)
            write_json(marker, config.as_dict())
    return stills, twins


def _write_stills(folder: Path, sequence: Clip, config: VideoConfig) -> None:
    folder.mkdir(parents=True)
    for number, image in _frames(sequence, 0.0, config.stop_fraction, config.train_frames):
        tiles = cut(image, None, config.mining)
        rng = np.random.default_rng([config.seed, number])
        for row in rng.permutation(len(tiles.pixels))[: config.train_patches]:
            pixels = tiles.pixels[row].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{number:05d}-{row:05d}.png")


# --- the evaluation ------------------------------------------------------------------------------


def scores(similarity: np.ndarray, asking: Tiles, asked: Tiles) -> tuple[float, float] | None:
    """AUC and retrieval (per cent) from the N patches of a frame to the M of it or of a later one.

    `similarity` [N, M] is the higher the more alike. None where no object shows in two patches, or
    no background.
    """
    from sklearn.metrics import roc_auc_score

    non_overlapping = (
        np.abs(asking.corners[:, None] - asked.corners[None]).max(axis=2) >= asking.side
    )
    on = asking.objects[:, None] > 0
    same = on & (asking.objects[:, None] == asked.objects[None]) & non_overlapping
    background = on & (asked.objects[None] == 0) & non_overlapping
    rows = np.flatnonzero(same.any(axis=1) & background.any(axis=1))
    if len(rows) == 0:
        return None
    pairs = same | background
    auc = roc_auc_score(same[rows][pairs[rows]], similarity[rows][pairs[rows]])
    nearest = np.where(non_overlapping, similarity, -np.inf)[rows].argmax(axis=1)
    return 100 * float(auc), 100 * float(same[rows, nearest].mean())


def things(similarity: np.ndarray, tiles: Tiles) -> float | None:
    """AUC (per cent) of two patches of one object against two of different ones, in one frame.

    `similarity` [N, N] is the higher the more alike. None unless some object shows in two patches
    and another one in a patch.
    """
    from sklearn.metrics import roc_auc_score

    one, other = np.triu_indices(len(tiles.objects), 1)
    apart = np.abs(tiles.corners[one] - tiles.corners[other]).max(axis=1) >= tiles.side
    asked = apart & (tiles.objects[one] > 0) & (tiles.objects[other] > 0)
    one, other = one[asked], other[asked]
    same = tiles.objects[one] == tiles.objects[other]
    if not same.any() or same.all():
        return None
    return 100 * float(roc_auc_score(same, similarity[one, other]))


def evaluate_sequence(tiles: Sequence[Tiles], features: Features | None) -> dict[str, float]:
    """`auc`, `things`, `same_frame`, `later_frame` of one video: means over its tested frames.

    A metric that no frame has is left out: `things` where none shows several objects.
    By the cosine similarity of `features`; by the distance of mean colours where that is None.
    """

    def similarity(ours: Tensor, theirs: Tensor) -> np.ndarray:
        if features is None:
            return -torch.cdist(ours, theirs).numpy()
        return (F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T).numpy()

    known = [
        frame.pixels.float().mean((2, 3)) if features is None else features(frame.pixels)
        for frame in tiles
    ]
    frames = list(zip(known, tiles, strict=True))
    alike = [similarity(ours, ours) for ours in known]
    here = [scores(how, frame, frame) for how, frame in zip(alike, tiles, strict=True)]
    apart = [things(how, frame) for how, frame in zip(alike, tiles, strict=True)]
    later = [
        scores(similarity(ours, theirs), frame, after)
        for (ours, frame), (theirs, after) in pairwise(frames)
    ]
    measured = {
        "auc": [found[0] for found in here if found],
        "things": [found for found in apart if found is not None],
        "same_frame": [found[1] for found in here if found],
        "later_frame": [found[1] for found in later if found],
    }
    return {name: float(np.mean(values)) for name, values in measured.items() if values}


def patches_to_test(config: VideoConfig, store: Path | None = None) -> Tested:
    """`kept_back` of all videos: split → video → its tested frames.

    `store`: a folder in which the runs of a grid share them. To decode the videos takes longer than
    to evaluate a run.
    """
    if store is None:
        return {
            split: {
                clip.name: kept_back(clip, config.stop_fraction if split == "seen" else 0.0, config)
                for clip in clips
            }
            for split, clips in split_clips(config).items()
        }
    file = store / f"video-{config.digest}.pt"
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            with new_file(file, "out") as fresh:
                torch.save(patches_to_test(config), fresh)
    # ours: another program has no reason to write into the folder of a grid
    tested: Tested = torch.load(file, weights_only=False)
    return tested


def evaluate_clips(tested: Tested, models: Mapping[str, Features | None]) -> dict[str, Any]:
    """What each model is worth: model → `SPLIT_METRIC` → video → per cent."""
    measured: dict[str, Any] = {name: {} for name in models}
    for split, videos in tested.items():
        for video, tiles in videos.items():
            for name, features in models.items():
                for metric, value in evaluate_sequence(tiles, features).items():
                    measured[name].setdefault(f"{split}_{metric}", {})[video] = value
    return measured


def propagate_clips(config: VideoConfig, models: Mapping[str, FeatureMap]) -> dict[str, Any]:
    """J and F of each model: model → `unseen_j`, `unseen_f`, `unseen_jf` → video → per cent.

    Held-out videos whose first mask shows no object are left out.
    """
    how = config.propagation
    assert how is not None
    measured: dict[str, Any] = {name: {} for name in models}
    for clip in split_clips(config)["unseen"]:
        if not clip.starts_with_an_object():
            continue
        for name, features in models.items():
            found = segment(clip, features, how.frames)
            found["jf"] = (found["j"] + found["f"]) / 2
            for metric, value in found.items():
                measured[name].setdefault(f"unseen_{metric}", {})[clip.name] = value
    return measured
