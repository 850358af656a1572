"""What can be chosen when mining."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from solo_infoaug._checks import require
from solo_infoaug._files import digest
from solo_infoaug.errors import ConfigError
from solo_infoaug.mining.registry import TRACKERS

_TYPES: dict[str, type] = {"int": int, "float": float, "str": str}
# Larger whole numbers are typing errors; no array is that long.
_LARGE = 1 << 31
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_CHOICES: dict[str, Collection[str]] = {
    "tracker": TRACKERS,
    "flow": ("ultrafast", "fast", "medium"),
    "camera": ("none", "similarity", "affine", "homography"),
    "signal": ("motion", "colour", "both"),
    "representation": ("position", "velocity", "both"),
    "estimator": ("3kl", "ksg1", "ksg2"),
    "crop_format": ("auto", "raw", "jpeg"),
}
# Up to here JPEG saves little and is read several times as slowly: benchmarks/dictionary_scale.py
_RAW_UP_TO = 48
_MINIMA = (
    (("frame_step", "moments", "top_k", "k", "stride"), 1, ""),
    (("min_motion", "min_colour", "motion_over_noise", "others"), 0, ""),
    (("min_mi", "mi_of_distance", "mi_tolerance"), 0, " nats"),
    (("parallax", "min_support", "min_distance", "seed"), 0, ""),
    (("surrogates", "min_frames"), 4, ""),
    (("min_patch",), 4, " pixels"),
    (("track_size",), 64, " pixels"),
)


@dataclass(frozen=True)
class MineConfig:
    """Settings of `mine`. Each is checked when the object is made.

    Raises:
        ConfigError: a value cannot be used; the message names the setting.
    """

    # --- which part of each video

    start_fraction: float = 0.0
    """Where mining begins, as a fraction of the video's duration."""

    stop_fraction: float = 1.0
    """Where mining ends, as a fraction of the duration."""

    frame_step: int = 1
    """Take every n-th frame."""

    fps: float = 25.0
    """Frames a second of a folder of numbered images, which do not store their rate."""

    # --- shots, and windows through them

    cut_threshold: float = 3.0
    """Sensitivity of the cut detector: a cut's content score over the mean of its neighbours'."""

    window: int = 24
    """Length in frames of the windows through which patches are followed."""

    stride: int = 24
    """Distance in frames from the beginning of one window to that of the next."""

    min_frames: int = 16
    """Minimum frames of a shot, and minimum frames of its window in which a patch must be seen."""

    # --- patches: a grid over the middle frame of each window

    patch_fraction: float = 0.04
    """Side of a patch, as a fraction of the frame's shorter side."""

    min_patch: int = 16
    """Minimum side of a patch in pixels."""

    grid_step: float = 0.5
    """Distance between neighbours in the grid, in patches; at 1 they do not overlap."""

    context: float = 1.0
    """Side of a stored crop, in sides of its patch. It does not change tracks and twins."""

    crop_size: int = 32
    """Side of the stored crops in pixels."""

    crop_format: str = "auto"
    """How crops are stored: `raw`, `jpeg` (a sixth of the size or less), or `auto` (raw up to a
    side of 48 pixels)."""

    moments: int = 4
    """Number of crops stored for each patch: the middle frame's, and others along its track."""

    others: int = 64
    """Maximum number of patches without a twin kept of a window with twins, for the random arm."""

    # --- tracking

    tracker: str = "flow"
    """`flow` (dense optical flow), `cotracker3`, `file` (tracks that another tool made), or a name
    that you registered."""

    flow: str = "fast"
    """Preset of the flow: `ultrafast`, `fast` or `medium` (takes seven times as long as `fast`)."""

    tracker_checkpoint: str = ""
    """File with the weights of a neural tracker; empty to let its package download them."""

    tracks_folder: str = ""
    """Folder in which the tracker `file` looks for VIDEO.npz; empty for the video's folder."""

    device: str = "auto"
    """Device of neural trackers and depth: `auto`, `cpu` or `cuda`."""

    track_size: int = 320
    """Shorter side, in pixels, to which frames are shrunk for tracking."""

    max_roundtrip: float = 2.0
    """Maximum forward-backward error of a point, in pixels of the shrunk frame; beyond it the point
    is lost."""

    # --- the background

    camera: str = "homography"
    """Model of the camera's motion, which is fitted to each frame pair and removed: `none` (the
    camera stands still), `similarity`, `affine` or `homography`. If a pair cannot be fitted, no
    patch has a known motion there."""

    parallax: int = 2
    """Maximum number of parallax patterns to remove: motion that the background shares in different
    strength."""

    # --- signals and mutual information

    signal: str = "motion"
    """What twins share: `motion`, `colour` (the change of their mean colour), or `both`."""

    representation: str = "velocity"
    """Input of the estimator: `velocity` (steps), `position` (their sums) or `both`."""

    depth: str = ""
    """Depth-estimation model of transformers, by name or folder, for 3-D trajectories; empty for
    2-D. `default` is Depth-Anything-V2-Small."""

    estimator: str = "3kl"
    """Estimator of mutual information: `3kl`, `ksg1` or `ksg2`."""

    k: int = 3
    """k of the nearest-neighbour estimators."""

    # --- the entropy gate: patches without motion of their own carry no information

    min_motion: float = 0.0015
    """Minimum RMS of a patch's own motion per frame, as a fraction of the frame's shorter side."""

    min_colour: float = 0.005
    """Minimum RMS of the change of a patch's mean colour, as a fraction of the range."""

    motion_over_noise: float = 3.5
    """Minimum of either, as a multiple of the noise."""

    max_error_ratio: float = 0.5
    """Maximum ratio of the error that a patch's own motion leaves in its pixels to the error that
    the background's motion leaves; 0.9 if half of its neighbours pass. 1 skips the test."""

    min_support: int = 2
    """Minimum number of neighbours that move in the same way."""

    # --- the choice of twins

    max_difference: float = 0.1
    """Maximum difference between twins' steps, as a share of their energy. 4 skips the test."""

    max_drift: float = 0.25
    """Maximum drift: how far twins move relative to each other over a window, as a share of how far
    they move. 2 allows any. Used if the signal is `motion`."""

    max_along_background: float = 0.5
    """Maximum share of a patch's own motion that a multiple of the background's motion at its place
    explains: near things at rest seem to move further in the same direction. 1 skips the test."""

    max_twin_error_ratio: float = 0.4
    """As `max_error_ratio`, for a patch that is the twin of another: patches on the outline of an
    object pass less easily. 1 skips the test."""

    min_distance: float = 1.0
    """Minimum distance between twins, in patches; below 1 they overlap."""

    min_mi: float = 0.35
    """Minimum mutual information of twins, in nats."""

    mi_of_distance: float = 0.2
    """Increase of that minimum, in nats, each time the distance doubles from that of touching
    patches: distant patches are less often parts of one thing."""

    mi_tolerance: float = 0.3
    """Differences in mutual information, in nats, up to which twins count as equally good. The one
    that lies deepest in what moves then comes first."""

    fdr: float = 0.05
    """Accepted share of false pairs among twins (false-discovery rate). Pairs are tested against
    time-shifted surrogates of themselves. 1 skips the test."""

    surrogates: int = 24
    """Number of surrogates of a pair."""

    top_k: int = 5
    """Number of twins kept for each patch, best first."""

    seed: int = 0
    """Seed of the surrogates' shifts."""

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
            ("max_along_background", 1),
            ("max_twin_error_ratio", 1),
            ("max_difference", 4),
            ("max_drift", 2),
            ("fdr", 1),
        ):
            require(0 < values[name] <= most, name, f"in (0, {most}]", values[name])
        neural = [name for name, registered in TRACKERS.items() if registered.neural]
        for name, trackers in (("tracks_folder", ["file"]), ("tracker_checkpoint", neural)):
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
