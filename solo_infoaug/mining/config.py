"""What can be chosen when mining."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from solo_infoaug.errors import ConfigError

ESTIMATORS = ("3kl", "ksg1", "ksg2")
CAMERA_MODELS = ("none", "similarity", "affine", "homography")
REPRESENTATIONS = ("position", "velocity", "both")
TRACKERS = ("lk", "cotracker3", "bootstapir", "file")


@dataclass(frozen=True)
class MineConfig:
    """Settings of `mine`; every one is checked when the object is made.

    Raises:
        ConfigError: a value cannot be used; the message names the setting.
    """

    # --- which part of each video, as fractions of its duration
    start_fraction: float = 0.0
    stop_fraction: float = 1.0
    # Take every n-th frame.
    frame_step: int = 1
    # Frames a second of a folder of numbered images, which do not say it themselves.
    fps: float = 25.0

    # --- shots
    # Sensitivity of the cut detector: a cut's content score over the mean of its neighbours'.
    cut_threshold: float = 3.0
    # Shots and tracks with fewer frames are skipped; shots longer than `max_frames` are mined in
    # stretches.
    min_frames: int = 32
    max_frames: int = 96

    # --- patches: a grid over the first frame of each shot
    # Side of a patch, as a fraction of the frame's shorter side, and its least side in pixels.
    patch_fraction: float = 0.1
    min_patch: int = 16
    # Distance of neighbours in the grid, in patches: 1 leaves no overlap.
    grid_step: float = 1.0
    # Side of the stored crops in pixels.
    crop_size: int = 32
    # How many crops of each patch are stored, spread evenly along its track, the first frame first.
    moments: int = 4

    # --- tracking
    # "lk" (Lucas-Kanade), "cotracker3", "bootstapir", or "file": tracks that another tool made.
    tracker: str = "lk"
    # Local weights of a neural tracker; empty for what its package downloads.
    tracker_checkpoint: str = ""
    # Where "file" finds VIDEO.npz; empty for beside the video.
    tracks_folder: str = ""
    # "auto", "cpu", "cuda": for neural trackers and depth.
    device: str = "auto"
    # Frames are shrunk for tracking until their shorter side has this many pixels.
    track_size: int = 480
    # A point is lost when tracking it forth and back misses its start by more (pixels of the
    # shrunk frame).
    max_roundtrip: float = 1.0

    # Global motion that is fitted to each frame pair and removed: "none", "similarity", "affine" or
    # "homography".
    camera: str = "affine"

    # --- trajectories and mutual information
    # What enters the estimator: "velocity" (pixels a frame), "position" (pixels) or "both".
    representation: str = "velocity"
    # A depth-estimation model of transformers, by name or folder, makes trajectories 3-D; empty for
    # 2-D. "default" is Depth-Anything-V2-Small.
    depth: str = ""
    # "3kl", "ksg1" or "ksg2".
    estimator: str = "3kl"
    # The k of the nearest-neighbour estimators.
    k: int = 3
    # The entropy gate: patches whose velocity varies less carry no information and have no twin.
    # RMS about its mean, a frame, as a fraction of the frame's shorter side; and as a multiple of
    # the miss of the background's points from the camera's motion, which is the tracker's noise.
    # Both are above what 99.9 % of resting patches reach in generated scenes.
    min_motion: float = 0.0005
    motion_over_noise: float = 2.0
    # Patches of whose points fewer move together lie on the border of an object: no twin.
    min_agreement: float = 0.75
    # Pairs with less mutual information (nats) are no twins.
    min_mi: float = 0.05
    # The share of false pairs that is accepted among twins: pairs are tested against time-shifted
    # surrogates of themselves, so many a pair. 1 does without the test.
    fdr: float = 0.05
    surrogates: int = 24
    # How many twins of each patch are kept, best first.
    top_k: int = 5

    # Draws the shifts of the surrogates.
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        _check(0.0 <= self.start_fraction < 1.0, self, "start_fraction", "in [0, 1)")
        _check(
            self.start_fraction < self.stop_fraction <= 1.0,
            self,
            "stop_fraction",
            f"in (start_fraction={self.start_fraction:g}, 1]",
        )
        for name in ("frame_step", "moments", "top_k", "k"):
            _check(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("fps", "cut_threshold", "max_roundtrip"):
            _check(getattr(self, name) > 0, self, name, "greater than 0")
        for name in ("min_motion", "motion_over_noise", "min_agreement", "min_mi"):
            _check(getattr(self, name) >= 0, self, name, "at least 0")
        _check(0.0 < self.fdr <= 1.0, self, "fdr", "in (0, 1]")
        _check(self.surrogates >= 4, self, "surrogates", "at least 4")
        _check(self.tracker in TRACKERS, self, "tracker", f"one of {', '.join(TRACKERS)}")
        _check(self.min_frames >= 4, self, "min_frames", "at least 4")
        _check(
            self.max_frames >= self.min_frames,
            self,
            "max_frames",
            f"at least min_frames={self.min_frames}",
        )
        _check(
            self.k < self.min_frames - 1,
            self,
            "k",
            f"smaller than the shortest track: less than min_frames - 1 = {self.min_frames - 1}",
        )
        _check(0.0 < self.patch_fraction <= 0.5, self, "patch_fraction", "in (0, 0.5]")
        _check(self.min_patch >= 4, self, "min_patch", "at least 4 pixels")
        _check(0.1 <= self.grid_step <= 10, self, "grid_step", "in [0.1, 10] patches")
        _check(4 <= self.crop_size <= 1024, self, "crop_size", "in [4, 1024] pixels")
        _check(self.track_size >= 64, self, "track_size", "at least 64 pixels")
        _check(self.estimator in ESTIMATORS, self, "estimator", f"one of {', '.join(ESTIMATORS)}")
        _check(self.camera in CAMERA_MODELS, self, "camera", f"one of {', '.join(CAMERA_MODELS)}")
        _check(
            self.representation in REPRESENTATIONS,
            self,
            "representation",
            f"one of {', '.join(REPRESENTATIONS)}",
        )

    def to_json(self) -> dict[str, Any]:
        """All settings, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def parse(cls, settings: Iterable[str]) -> MineConfig:
        """Settings from `name=value` texts, as the command line has them.

        Raises:
            ConfigError: a name is unknown or a value cannot be used.
        """
        kinds = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if name not in kinds:
                close = difflib.get_close_matches(name, kinds, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ConfigError(f"unknown setting {name!r}{hint} (known: {', '.join(kinds)})")
            if not equals:
                raise ConfigError(f"{name} needs a value: {name}=VALUE")
            values[name] = _parse(name, text, kinds[name])
        return cls(**values)

    @property
    def digest(self) -> str:
        """A short hash of the settings: the same for equal settings on any machine."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _parse(name: str, text: str, annotation: str) -> object:
    if annotation == "bool":
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise ConfigError(f"{name} must be true or false, not {text!r}")
        return words[text.lower()]
    try:
        return {"int": int, "float": float, "str": str}[annotation](text)
    except ValueError as error:
        raise ConfigError(f"{name} must be {annotation}, not {text!r}") from error


def _check(good: bool, config: MineConfig, name: str, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name} must be {expected}, not {getattr(config, name)!r}")


def _check_type(name: str, value: object, annotation: str) -> None:
    expected: tuple[type, ...] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "bool": (bool,),
    }[annotation]
    if not isinstance(value, expected) or (isinstance(value, bool) and annotation != "bool"):
        raise ConfigError(f"{name} must be {annotation}, not {value!r}")
