"""What can be chosen when mining."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from solo_infoaug._checks import require
from solo_infoaug._files import digest
from solo_infoaug._renamed import FORMER, first_named
from solo_infoaug.errors import ConfigError
from solo_infoaug.mining.registry import TRACKERS

T = TypeVar("T")

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
    (("frame_step", "temporal_crops", "top_k", "k", "stride"), 1, ""),
    (("min_motion", "min_colour", "motion_over_noise", "extra_patches"), 0, ""),
    (("min_mi", "mi_of_distance", "mi_tolerance"), 0, " nats"),
    (("parallax", "min_support", "min_distance", "seed"), 0, ""),
    (("surrogates", "min_frames"), 4, ""),
    (("min_patch",), 4, " pixels"),
    (("track_size",), 64, " pixels"),
)


def _in(group: str, default: T) -> T:
    """A setting of a group."""
    setting: T = dataclasses.field(default=default, metadata={"group": group})
    return setting


def _refusing_former_names(config: type[T]) -> type[T]:
    """Python's own error for a former name would not say the new one."""
    real = config.__init__

    @functools.wraps(real)
    def init(self: T, *args: Any, **settings: Any) -> None:
        for name in settings:
            _check_current(name)
        real(self, *args, **settings)

    config.__init__ = init  # type: ignore[assignment]
    return config


def _check_current(name: str) -> None:
    if name in FORMER:
        raise ConfigError(f"{name}: is now called {FORMER[name]}; write {FORMER[name]}=VALUE")


@_refusing_former_names
@dataclass(frozen=True)
class MineConfig:
    """Settings of `mine`. Each is checked when the object is made.

    The first fifteen are those that most people change. The others belong to groups, which are
    shown in tables and may be written in front of the name: `gate.max_drift` is `max_drift`.

    >>> MineConfig.parse(["window=48", "gate.max_drift=0.2"]) == MineConfig(
    ...     window=48, max_drift=0.2
    ... )
    True

    Raises:
        ConfigError: a value cannot be used; the message names the setting.
    """

    # --- the settings that most people change first

    frame_step: int = 1
    """Take every n-th frame."""

    window: int = 24
    """Length in frames of the windows through which patches are followed."""

    stride: int = 24
    """Distance in frames from the beginning of one window to that of the next."""

    min_frames: int = 16
    """Minimum frames of a shot, and minimum frames of its window in which a patch must be seen."""

    patch_fraction: float = 0.04
    """Side of a patch, as a fraction of the frame's shorter side."""

    crop_size: int = 32
    """Side of the stored crops in pixels."""

    context: float = 4.0
    """Side of a stored crop, in sides of its patch. At 1 a crop shows the patch alone; it does not
    change tracks and twins."""

    temporal_crops: int = 4
    """Number of crops stored for each patch: one of the middle frame, the others of further frames
    along its track."""

    top_k: int = 5
    """Number of twins kept for each patch, best first."""

    tracker: str = "flow"
    """`flow` (dense optical flow), `cotracker3`, `file` (tracks that another tool made), or a name
    that you registered."""

    camera: str = "homography"
    """Model of the camera's motion, which is fitted to each frame pair and removed: `none` (the
    camera stands still), `similarity`, `affine` or `homography`. If a pair cannot be fitted, no
    patch has a known motion there."""

    signal: str = "motion"
    """What twins share: `motion`, `colour` (the change of their mean colour), or `both`: colour
    where no twin shares the motion."""

    min_mi: float = 0.35
    """Minimum mutual information of twins, in nats."""

    fdr: float = 0.05
    """Accepted share of false pairs among twins (false-discovery rate). Pairs are tested against
    time-shifted surrogates of themselves. 1 skips the test."""

    seed: int = 0
    """Seed of the surrogates' shifts."""

    # --- input: which part of each video, and where shots end

    start_fraction: float = _in("input", 0.0)
    """Where mining begins, as a fraction of the video's duration."""

    stop_fraction: float = _in("input", 1.0)
    """Where mining ends, as a fraction of the duration."""

    fps: float = _in("input", 25.0)
    """Frames a second of a folder of numbered images, which do not store their rate."""

    cut_threshold: float = _in("input", 3.0)
    """Sensitivity of the cut detector: a cut's content score over the mean of its neighbours'."""

    # --- patches: a grid over the middle frame of each window, and what is stored of it

    min_patch: int = _in("patches", 16)
    """Minimum side of a patch in pixels."""

    grid_step: float = _in("patches", 0.5)
    """Distance between neighbours in the grid, in patches; at 1 they do not overlap."""

    crop_format: str = _in("patches", "auto")
    """How crops are stored: `raw`, `jpeg` (a sixth of the size or less), or `auto` (raw up to a
    side of 48 pixels)."""

    extra_patches: int = _in("patches", 64)
    """Maximum number of patches without a twin kept of each window with twins, for random pairs."""

    # --- tracking: how patches are followed

    flow: str = _in("tracking", "fast")
    """Preset of the flow: `ultrafast`, `fast` or `medium` (takes seven times as long as `fast`)."""

    tracker_checkpoint: str = _in("tracking", "")
    """File with the weights of a neural tracker; empty to let its package download them."""

    tracks_folder: str = _in("tracking", "")
    """Folder in which the tracker `file` looks for VIDEO.npz; empty for the video's folder."""

    device: str = _in("tracking", "auto")
    """Device of neural trackers and depth: `auto`, `cpu` or `cuda`."""

    track_size: int = _in("tracking", 320)
    """Shorter side, in pixels, to which frames are shrunk for tracking."""

    max_forward_backward_error: float = _in("tracking", 2.0)
    """Maximum forward-backward error of a point, in pixels of the shrunk frame; beyond it the point
    is lost."""

    # --- camera: the background's motion

    parallax: int = _in("camera", 2)
    """Maximum number of parallax patterns to remove: motion that the background shares in different
    strength."""

    # --- information: the estimator of mutual information and its input

    representation: str = _in("information", "velocity")
    """Input of the estimator: `velocity` (steps), `position` (their sums) or `both`."""

    depth: str = _in("information", "")
    """Depth-estimation model of transformers, by name or folder, for 3-D trajectories; empty for
    2-D. `default` is Depth-Anything-V2-Small."""

    estimator: str = _in("information", "3kl")
    """Estimator of mutual information: `3kl`, `ksg1` or `ksg2`."""

    k: int = _in("information", 3)
    """k of the nearest-neighbour estimators."""

    # --- gate: patches without motion of their own carry no information; twins move as one

    min_motion: float = _in("gate", 0.0015)
    """Minimum RMS of a patch's own motion per frame, as a fraction of the frame's shorter side."""

    min_colour: float = _in("gate", 0.005)
    """Minimum RMS of the change of a patch's mean colour, as a fraction of the range."""

    motion_over_noise: float = _in("gate", 3.5)
    """Minimum of either, as a multiple of the noise."""

    max_error_ratio: float = _in("gate", 0.5)
    """Maximum ratio of the error that a patch's own motion leaves in its pixels to the error that
    the background's motion leaves; 0.9 if half of its neighbours pass. 1 skips the test."""

    max_twin_error_ratio: float = _in("gate", 0.4)
    """As `max_error_ratio`, for a patch that is the twin of another: patches on the outline of an
    object pass less easily. 1 skips the test."""

    max_along_background: float = _in("gate", 0.5)
    """Maximum share of a patch's own motion that a multiple of the background's motion at its place
    explains: near things at rest seem to move further in the same direction. 1 skips the test."""

    min_support: int = _in("gate", 2)
    """Minimum number of neighbours that move in the same way."""

    max_difference: float = _in("gate", 0.1)
    """Maximum difference between the steps of twins by motion, as a share of their energy. 4 skips
    the test."""

    max_colour_difference: float = _in("gate", 0.5)
    """As `max_difference`, of twins by colour: patches of one thing in one light are less alike
    than patches that move together."""

    max_drift: float = _in("gate", 0.25)
    """Maximum drift: how far twins by motion move relative to each other over a window, as a share
    of how far they move. 2 allows any."""

    min_distance: float = _in("gate", 1.0)
    """Minimum distance between twins, in patches; below 1 they overlap."""

    # --- significance: the test of twins

    mi_of_distance: float = _in("significance", 0.2)
    """Increase of `min_mi`, in nats, each time the distance doubles from that of touching
    patches: distant patches are less often parts of one thing."""

    mi_tolerance: float = _in("significance", 0.3)
    """Differences in mutual information, in nats, up to which twins count as equally good. The one
    that lies deepest in what moves then comes first."""

    surrogates: int = _in("significance", 24)
    """Number of surrogates of a pair."""

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
        for name in ("fps", "cut_threshold", "max_forward_backward_error"):
            require(values[name] > 0, name, "greater than 0", values[name])
        ratios = ("max_error_ratio", "max_along_background", "max_twin_error_ratio", "fdr")
        differences = {"max_difference": 4, "max_colour_difference": 4, "max_drift": 2}
        for name, most in {**dict.fromkeys(ratios, 1), **differences}.items():
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
    def parse(cls, settings: Iterable[str] = (), file: str | os.PathLike[str] = "") -> MineConfig:
        """Settings from `name=value` texts, as the command line has them, and from a YAML file.

        `group.name=value` is the same as `name=value`. Texts count more than the file, and of two
        texts the later one.

        Raises:
            ConfigError: a name is unknown, a value cannot be used, or the file cannot be read.
        """
        values = _from_file(Path(file)) if file else {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            name = _known(name)
            if not equals:
                raise ConfigError(f"{name} needs a value: {name}=VALUE")
            values[name] = _converted(name, text)
        return cls(**values)

    @property
    def jpeg(self) -> bool:
        """Whether crops are stored as JPEG."""
        return self.crop_format == "jpeg" or (
            self.crop_format == "auto" and self.crop_size > _RAW_UP_TO
        )

    @property
    def digest(self) -> str:
        """A short hash of the settings: the same for equal settings on any machine.

        Dictionaries name their videos by it. So it does not change when a setting is renamed.
        """
        return digest(self.hashed())

    def hashed(self) -> dict[str, Any]:
        """The settings that `digest` is of, by the first names they had. One that came later, and
        that the others leave unused, is not among them."""
        settings = first_named(self.to_json())
        if self.signal == "motion":
            del settings["max_colour_difference"]
        return settings


GROUPED = {
    field.name: str(field.metadata.get("group", "")) for field in dataclasses.fields(MineConfig)
}
"""The group of each setting; empty for those that most people change."""


def is_setting(given: str) -> bool:
    """Whether this is, or was, the name of a setting, with or without its group."""
    return given.rpartition(".")[2] in (*GROUPED, *FORMER)


def did_you_mean(given: str) -> str:
    """The end of an error: the setting whose name is close to this one, if there is one."""
    close = difflib.get_close_matches(given.rpartition(".")[2], GROUPED, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _known(given: str) -> str:
    """The name of a setting that is given with or without its group."""
    group, _, name = given.rpartition(".")
    _check_current(name)
    if name not in GROUPED:
        known = ", ".join(GROUPED)
        raise ConfigError(f"unknown setting {given!r}{did_you_mean(given)} (known: {known})")
    if group not in ("", GROUPED[name]):
        its = f"in the group {GROUPED[name]}" if GROUPED[name] else "in no group"
        raise ConfigError(f"{given}: {name} is {its}; write {name}=VALUE")
    return name


def _converted(name: str, text: str) -> Any:
    expected = MineConfig.__annotations__[name]
    try:
        return _TYPES[expected](text)
    except ValueError as error:
        raise ConfigError(f"{name}: expected {expected}, got {text!r}") from error


def _from_file(file: Path) -> dict[str, Any]:
    """The settings in a YAML file: `name: value`, or a mapping of these for each group."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: not a YAML file of settings: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file}: expected settings (name: value), got a {type(content).__name__}"
        )
    values: dict[str, Any] = {}
    for name, value in content.items():
        inside = value.items() if isinstance(value, dict) else ()
        given = {f"{name!s}.{key!s}": one for key, one in inside} or {str(name): value}
        for key, one in given.items():
            known = _known(key)
            if known in values:
                raise ConfigError(f"{file}: {known} is set twice")
            values[known] = one
    return values


def _check_type(name: str, value: object, annotation: str) -> None:
    expected = (int, float) if annotation == "float" else _TYPES[annotation]
    good = isinstance(value, expected) and not isinstance(value, bool)
    require(good, name, annotation, value)
    if isinstance(value, (int, float)):
        require(math.isfinite(value), name, "a finite number", value)
        require(annotation != "int" or value < _LARGE, name, f"less than {_LARGE}", value)
