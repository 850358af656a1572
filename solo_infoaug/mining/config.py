"""What can be chosen when mining."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from solo_infoaug._checks import require
from solo_infoaug._files import digest
from solo_infoaug.errors import ConfigError

_TYPES: dict[str, type] = {"int": int, "float": float, "str": str}
# Whole numbers beyond it are typing errors, and no array counts so far.
_LARGE = 1 << 31
_NEURAL = ("cotracker3", "bootstapir")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_CHOICES = {
    "tracker": ("flow", "lk", *_NEURAL, "file"),
    "flow": ("ultrafast", "fast", "medium"),
    "camera": ("none", "similarity", "affine", "homography"),
    "signal": ("motion", "colour", "both"),
    "representation": ("position", "velocity", "both"),
    "estimator": ("3kl", "ksg1", "ksg2"),
    "crop_format": ("auto", "raw", "jpeg"),
}
# Below it JPEG saves little and is read several times as slowly: benchmarks/dictionary_scale.py
_RAW_UP_TO = 48
_MINIMA = (
    (("frame_step", "moments", "top_k", "k", "stride"), 1, ""),
    (("min_motion", "min_colour", "motion_over_noise", "others"), 0, ""),
    (("min_mi", "mi_of_distance"), 0, " nats"),
    (("parallax", "min_support", "min_distance", "seed"), 0, ""),
    (("surrogates", "min_frames"), 4, ""),
    (("min_patch",), 4, " pixels"),
    (("track_size",), 64, " pixels"),
)


@dataclass(frozen=True)
class MineConfig:
    """Settings of `mine`; every one is checked when the object is made.

    Raises:
        ConfigError: a value cannot be used; the message names the setting.
    """

    # --- which part of each video

    start_fraction: float = 0.0
    """Where mining begins, as a fraction of the video's duration."""

    stop_fraction: float = 1.0
    """Where it ends, likewise."""

    frame_step: int = 1
    """Take every n-th frame."""

    fps: float = 25.0
    """Frames a second of a folder of numbered images, which do not say it themselves."""

    # --- shots, and windows through them

    cut_threshold: float = 3.0
    """Sensitivity of the cut detector: a cut's content score over the mean of its neighbours'."""

    window: int = 24
    """Patches are followed through windows of so many frames."""

    stride: int = 24
    """A window begins every so many frames."""

    min_frames: int = 16
    """Shorter shots are skipped, and a patch must be seen in so many frames of its window."""

    # --- patches: a grid over the middle frame of each window

    patch_fraction: float = 0.04
    """Side of a patch, as a fraction of the frame's shorter side."""

    min_patch: int = 16
    """The least side of a patch in pixels."""

    grid_step: float = 0.5
    """Distance of neighbours in the grid, in patches: 1 leaves no overlap."""

    context: float = 1.0
    """How many sides of a patch its stored crops span. Tracks and twins are the same with any."""

    crop_size: int = 32
    """Side of the stored crops in pixels."""

    crop_format: str = "auto"
    """How crops are stored: `raw`, `jpeg` (a sixth of the size or less), or `auto`: raw up to 48
    pixels a side."""

    moments: int = 4
    """How many crops of each patch are stored: the middle frame's, and others along its track."""

    others: int = 64
    """How many patches without a twin are kept of a window that has twins, for the random arm."""

    # --- tracking

    tracker: str = "flow"
    """`flow` (dense optical flow), `lk` (Lucas-Kanade), `cotracker3`, `bootstapir`, or `file`:
    tracks that another tool made."""

    flow: str = "fast"
    """The preset of the flow: `ultrafast`, `fast` or `medium` (seven times as slow as `fast`)."""

    tracker_checkpoint: str = ""
    """Local weights of a neural tracker; empty for what its package downloads."""

    tracks_folder: str = ""
    """Where the tracker `file` finds VIDEO.npz; empty for beside the video."""

    device: str = "auto"
    """`auto`, `cpu` or `cuda`: for neural trackers and depth."""

    track_size: int = 320
    """Frames are shrunk for tracking until their shorter side has this many pixels."""

    max_roundtrip: float = 2.0
    """A point is lost when tracking it forth and back misses its start by more pixels of the shrunk
    frame."""

    # --- the background

    camera: str = "homography"
    """The camera's motion, fitted to each frame pair and removed: `none` (it stands still),
    `similarity`, `affine` or `homography`. A pair that cannot be fitted is known of no patch."""

    parallax: int = 2
    """How many patterns of motion that the background shares in different strength are removed."""

    # --- signals and mutual information

    signal: str = "motion"
    """Patches are twins by `motion`, by `colour` (the change of their mean colour), or by
    `both`."""

    representation: str = "velocity"
    """What enters the estimator: `velocity` (steps), `position` (their sums) or `both`."""

    depth: str = ""
    """A depth-estimation model of transformers, by name or folder, makes trajectories 3-D; empty
    for 2-D. `default` is Depth-Anything-V2-Small."""

    estimator: str = "3kl"
    """The estimator of mutual information: `3kl`, `ksg1` or `ksg2`."""

    k: int = 3
    """The k of the nearest-neighbour estimators."""

    # --- the entropy gate: patches that do nothing of their own carry no information

    min_motion: float = 0.0015
    """Least RMS of a patch's own motion, a frame, as a fraction of the frame's shorter side."""

    min_colour: float = 0.005
    """Least RMS of the change of its mean colour, as a fraction of the range."""

    motion_over_noise: float = 3.0
    """Least of either, as a multiple of the noise."""

    max_error_ratio: float = 0.5
    """A patch's own motion must leave at most this share of the error of its pixels that the
    background's leaves, or up to 0.9 amid others that pass. 1 does without the test."""

    min_support: int = 2
    """So many neighbours must move alike."""

    # --- the choice of twins

    max_difference: float = 0.3
    """The steps of twins differ by less than this share of their energy; 4 does without."""

    max_drift: float = 0.25
    """Over a window twins move relative to each other by less than this share of how far they go;
    2 allows any drift. Not used where colour is a signal."""

    max_twin_error_ratio: float = 0.35
    """As `max_error_ratio`, for the patch that is the twin: outlines are followed by half of what
    a crop shows. 1 allows any."""

    min_distance: float = 1.0
    """Twins lie so many patches apart or more; below 1 they overlap."""

    min_mi: float = 0.35
    """Pairs with less mutual information (nats) are no twins."""

    mi_of_distance: float = 0.2
    """So much more it takes (nats) each time their distance doubles, from touching patches on: what
    lies far apart is less often one thing."""

    fdr: float = 0.05
    """The share of false pairs that is accepted among twins: pairs are tested against time-shifted
    surrogates of themselves. 1 does without the test."""

    surrogates: int = 24
    """How many surrogates a pair has."""

    top_k: int = 5
    """How many twins of each patch are kept, best first."""

    seed: int = 0
    """Draws the shifts of the surrogates."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        values, tracker, shortest = vars(self), self.tracker, self.min_frames
        for name, choices in _CHOICES.items():
            require(values[name] in choices, name, f"one of {', '.join(choices)}", values[name])
        for names, minimum, unit in _MINIMA:
            for name in names:
                expected = f"at least {minimum}{unit}"
                require(values[name] >= minimum, name, expected, values[name])
        for name in ("fps", "cut_threshold", "max_roundtrip"):
            require(values[name] > 0, name, "greater than 0", values[name])
        for name, most in (
            ("max_error_ratio", 1),
            ("max_twin_error_ratio", 1),
            ("max_difference", 4),
            ("max_drift", 2),
            ("fdr", 1),
        ):
            require(0 < values[name] <= most, name, f"in (0, {most}]", values[name])
        for name, trackers in (("tracks_folder", ("file",)), ("tracker_checkpoint", _NEURAL)):
            empty = f"empty with tracker={tracker}: it is for {' and '.join(trackers)}"
            require(not values[name] or tracker in trackers, name, empty, values[name])
        start, stop = self.start_fraction, self.stop_fraction
        for name, good, expected in (
            ("start_fraction", 0 <= start < 1, "in [0, 1)"),
            ("stop_fraction", start < stop <= 1, f"in (start_fraction={start:g}, 1]"),
            ("device", _DEVICE.fullmatch(self.device), "auto, cpu, cuda, cuda:NUMBER or mps"),
            ("window", self.window >= shortest, f"at least min_frames={shortest}"),
            ("stride", self.stride <= self.window, f"at most window={self.window}"),
            ("k", self.k < shortest - 1, f"less than min_frames - 1 = {shortest - 1}"),
            ("patch_fraction", 0 < self.patch_fraction <= 0.5, "in (0, 0.5]"),
            ("grid_step", 0.1 <= self.grid_step <= 10, "in [0.1, 10] patches"),
            ("crop_size", 4 <= self.crop_size <= 1024, "in [4, 1024] pixels"),
            ("context", 1 <= self.context <= 16, "in [1, 16] sides of a patch"),
        ):
            require(good, name, expected, values[name])

    def to_json(self) -> dict[str, Any]:
        """All settings, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def parse(cls, settings: Iterable[str]) -> MineConfig:
        """Settings from `name=value` texts, as the command line has them.

        Raises:
            ConfigError: a name is unknown or a value cannot be used.
        """
        types = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if name not in types:
                close = difflib.get_close_matches(name, types, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ConfigError(f"unknown setting {name!r}{hint} (known: {', '.join(types)})")
            if not equals:
                raise ConfigError(f"{name} needs a value: {name}=VALUE")
            try:
                values[name] = _TYPES[types[name]](text)
            except ValueError as error:
                raise ConfigError(f"{name}: expected {types[name]}, got {text!r}") from error
        return cls(**values)

    @property
    def jpeg(self) -> bool:
        """Whether crops are stored as JPEG."""
        return self.crop_format == "jpeg" or (
            self.crop_format == "auto" and self.crop_size > _RAW_UP_TO
        )

    @property
    def digest(self) -> str:
        """A short hash of the settings: the same for equal settings on any machine."""
        return digest(self.to_json())


def _check_type(name: str, value: object, annotation: str) -> None:
    expected = (int, float) if annotation == "float" else _TYPES[annotation]
    good = isinstance(value, expected) and not isinstance(value, bool)
    require(good, name, annotation, value)
    if isinstance(value, (int, float)):
        require(math.isfinite(value), name, "a finite number", value)
        require(annotation != "int" or value < _LARGE, name, f"less than {_LARGE}", value)
