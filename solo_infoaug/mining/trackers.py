"""Trackers: they follow the patches of a window through its frames."""

from __future__ import annotations

import functools
import importlib
import itertools
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from solo_infoaug._checks import require
from solo_infoaug.errors import ConfigError, VideoError
from solo_infoaug.mining.camera import CameraStep, fit_camera
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.content import Content
from solo_infoaug.mining.flow import Flow, flow_maker, follow_patches
from solo_infoaug.mining.frame_folder import folder_name
from solo_infoaug.mining.overlay import covered, find_overlay
from solo_infoaug.mining.patch_grid import corners, grid, inside, patch_tracks
from solo_infoaug.mining.picture import Rectangle
from solo_infoaug.mining.registry import TRACKERS, register_tracker
from solo_infoaug.mining.windows import Window


@dataclass(frozen=True)
class Tracks:
    """The tracks of the P patches of a window, and the camera's motion; source pixels.

    `path` float64 [T, P, 2], (x, y), and `visible` bool [T, P]; all are visible in the window's
    seed frame. (`known`, elsewhere, is about steps between frames: whether their motion is known.)
    `camera` is the background's motion in each of the T − 1 steps, None if unknown. `overlay` is
    the result of `find_overlay` for the window: no patch lies there.
    """

    path: np.ndarray
    visible: np.ndarray
    camera: list[CameraStep | None]
    overlay: np.ndarray | None = None


class Tracker(Protocol):
    """Chooses the patches of a window and follows them.

    The dictionary records `name`, and `licence` of the weights, if any. `colour` says whether the
    tracker needs frames in colour.
    """

    name: str
    licence: str
    colour: bool

    def follow(self, window: Window, size: int, step: float, model: str) -> Tracks:
        """Track patches of `size` source pixels, `step` patches apart or more.

        `model` is the camera's: see `fit_camera`.

        Raises:
            VideoError: this window cannot be tracked.
        """
        ...


@register_tracker("flow")
class FlowTracker:
    """A regular grid of patches that follow the dense flow between successive frames.

    Windows may overlap, so the flow between two frames and the camera's motion in it are kept until
    no window needs them any more.
    """

    licence = ""
    colour = False

    def __init__(self, video: Path | Content, config: MineConfig) -> None:
        self.name = f"flow (DIS, {config.flow})"
        self._max_error = config.max_forward_backward_error
        self._estimate = flow_maker(config.flow)
        self._steps: dict[tuple[int, int], tuple[Flow, CameraStep | None]] = {}
        # Their part of the frames, and whether there was no overlay to leave out
        self._of: tuple[Rectangle | None, bool] = (None, True)

    def follow(self, window: Window, size: int, step: float, model: str) -> Tracks:
        """See `Tracker`."""
        images, numbers = window.grey, window.numbers
        pairs = list(itertools.pairwise(numbers))
        overlay = _overlay(images, model)
        picture, plain = self._of
        known, self._steps = self._steps if window.picture == picture else {}, {}
        self._of = window.picture, overlay is None
        cameras = []
        for place, pair in enumerate(pairs):
            if pair in known:
                flow, camera = known[pair]
            else:
                flow = self._estimate(images[place], images[place + 1])
            if pair not in known or overlay is not None or not plain:
                source, target = flow.matches(self._max_error, overlay)
                camera = fit_camera(source, target, images[place].shape[:2], model)
            self._steps[pair] = flow, camera
            cameras.append(camera)
        scale = window.scale
        centres = _uncovered(grid(*window.size, size, step), overlay, window.size, size)
        path, visible = follow_patches(
            [self._steps[pair][0] for pair in pairs],
            (centres / scale).astype(np.float32),
            size / float(scale.mean()),
            window.seed,
            self._max_error,
            overlay,
        )
        return Tracks(
            path.astype(np.float64) * scale,
            visible,
            [None if camera is None else camera.scaled(scale) for camera in cameras],
            overlay,
        )


def _overlay(images: Sequence[np.ndarray], model: str) -> np.ndarray | None:
    """What rests in front of the scene while the camera moves; None if the camera stands still."""
    return None if model == "none" else find_overlay(images)


def _uncovered(
    centres: np.ndarray, overlay: np.ndarray | None, size: tuple[int, int], side: int
) -> np.ndarray:
    """The `centres` [P, 2] of patches that are not on an overlay."""
    return centres[~covered(overlay, size, centres, side)]


# A function from frames uint8 [T, h, w] or [T, h, w, 3] and points float32 [N, 2] of the first one
# to tracks float32 [T, N, 2] and visibility bool [T, N].
PointTracker = Callable[[list[np.ndarray], np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass
class GridTracker:
    """A regular grid of patches with four corners in each, which any point tracker follows."""

    name: str
    licence: str
    colour: bool
    track: PointTracker

    def follow(self, window: Window, size: int, step: float, model: str) -> Tracks:
        """See `Tracker`."""
        scale, seed, overlay = window.scale, window.seed, _overlay(window.grey, model)
        centres = _uncovered(grid(*window.size, size, step), overlay, window.size, size) / scale
        points = corners(window.small[seed], centres, size / scale).reshape(-1, 2)
        after, visible_after = self.track(window.small[seed:], points)
        before, visible_before = self.track(window.small[seed::-1], points)
        tracks = np.concatenate([before[:0:-1], after])
        visible = np.concatenate([visible_before[:0:-1], visible_after]) & inside(
            tracks, window.small[0].shape
        )
        shape = (len(window), len(centres), -1)
        placed = tracks.reshape(*shape, 2)
        return _patches(centres, placed, visible.reshape(shape), window, model, overlay)


def _patches(
    centres: np.ndarray,
    points: np.ndarray,
    visible: np.ndarray,
    window: Window,
    model: str,
    overlay: np.ndarray | None,
) -> Tracks:
    """From points [T, P, Q, 2] of small frames to patches at `centres` [P, 2] in the seed frame."""
    size = window.small[0].shape[:2]
    visible = np.asarray(visible & ~covered(overlay, size, points))
    camera = []
    for t in range(len(points) - 1):
        both = visible[t] & visible[t + 1]
        camera.append(fit_camera(points[t][both], points[t + 1][both], size, model))
    seed, scale = window.seed, window.scale
    after, visible_after = patch_tracks(centres, points[seed:], visible[seed:])
    before, visible_before = patch_tracks(centres, points[seed::-1], visible[seed::-1])
    return Tracks(
        np.concatenate([before[:0:-1], after]).astype(np.float64) * scale,
        np.concatenate([visible_before[:0:-1], visible_after]),
        [None if step is None else step.scaled(scale) for step in camera],
        overlay,
    )


@register_tracker("file")
class FileTracker:
    """Tracks that another tool made: an npz file for each video, in the layout of TAP-Vid.

    The file is next to the video or in `folder`, and is called NAME.npz for a video file NAME.mp4
    and for a folder of frames NAME or NAME/img1.

    Each track is one patch, centred on it in the middle frame of a window. The file holds either
    `tracks` [N, T, 2], (x, y) in pixels, and `visibility` bool [N, T]; or, as TAP-Vid itself,
    `points` [N, T, 2] as fractions of the frame's width and height, and `occluded` bool [N, T]. T
    is the number of the video's frames.

    Raises:
        VideoError: there is no such file, or it holds something else.
        ConfigError: the video is in a store or in a tar shard, and no folder is named.
    """

    name = "file"
    licence = ""
    colour = False

    def __init__(self, video: Path | Content, config: MineConfig) -> None:
        self.path = _tracks_file(video, config.tracks_folder)
        try:
            with np.load(self.path, allow_pickle=False) as file:
                content = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise VideoError(
                f"{video}: its tracks cannot be read from {self.path}: {error}"
            ) from error
        self._relative = "points" in content
        names = ("points", "occluded") if self._relative else ("tracks", "visibility")
        tracks, visible = (content.get(name) for name in names)
        if (
            tracks is None
            or visible is None
            or tracks.shape != (*visible.shape, 2)
            or visible.ndim != 2
            or tracks.dtype.kind not in "fiu"
        ):
            held = ", ".join(f"{key} {list(array.shape)}" for key, array in content.items())
            raise VideoError(
                f"{self.path}: expected `tracks` [N, T, 2] and `visibility` [N, T], or `points` "
                f"and `occluded`, but it holds {held or 'nothing'}"
            )
        # `occluded` is the opposite of `visibility`
        visible = (visible.astype(bool) ^ self._relative) & np.isfinite(tracks).all(axis=2)
        self._tracks = np.where(visible[..., None], tracks, 0).astype(np.float32).swapaxes(0, 1)
        self._visible = visible.T

    def follow(self, window: Window, size: int, step: float, model: str) -> Tracks:
        """See `Tracker`."""
        if window.numbers[-1] >= len(self._tracks):
            raise VideoError(
                f"{self.path}: has tracks of {len(self._tracks)} frames, but the video has more"
            )
        unit = np.array(window.frame_size[::-1]) if self._relative else np.ones(2)
        points = self._tracks[window.numbers] * unit - window.corner
        height, width = window.size
        visible = self._visible[window.numbers]
        half, seed = size / 2, window.seed
        whole = (points[seed] >= half) & (points[seed] <= np.array([width, height]) - half)
        overlay = _overlay(window.grey, model)
        allowed = visible[seed] & whole.all(axis=1)
        allowed &= ~covered(overlay, window.size, points[seed], size)
        chosen = _non_overlapping(points[seed], allowed, size * step)
        small = points[:, chosen] / window.scale
        visible = visible[:, chosen] & inside(small, window.small[0].shape)
        return _patches(small[seed], small[:, :, None], visible[:, :, None], window, model, overlay)


def _tracks_file(video: Path | Content, folder: str) -> Path:
    if not isinstance(video, Path):
        expected = f"a folder on this disk, because {video} is not on it"
        require(folder, "tracks_folder", expected, folder)
        return Path(folder) / f"{video.stem}.npz"
    if not video.is_dir():
        return (Path(folder) if folder else video.parent) / f"{video.stem}.npz"
    name = folder_name(video)
    if folder:
        return Path(folder) / f"{name}.npz"
    own = video.absolute()
    return (own if own.name == name else own.parent).parent / f"{name}.npz"


def make_tracker(video: Path | Content, config: MineConfig) -> Tracker:
    """The tracker that the settings name, for a video.

    Raises:
        ConfigError: the tracker's package or weights are missing, or it is not registered here.
        VideoError: the video has no usable tracks file.
    """
    expected = "a tracker that is registered in this process too, by a module that workers import"
    require(config.tracker in TRACKERS, "tracker", expected, config.tracker)
    return TRACKERS[config.tracker].make(video, config)


@register_tracker("cotracker3", neural=True)
def _cotracker3(video: Path | Content, config: MineConfig) -> Tracker:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    track, licence = _cotracker(config.tracker_checkpoint, device), "weights: CC-BY-NC-4.0"
    return GridTracker("cotracker3", licence, colour=True, track=track)


@functools.cache
def _cotracker(checkpoint: str, device: str) -> PointTracker:
    warnings.warn(
        "CoTracker3's weights are licensed CC-BY-NC-4.0: not for commercial use", stacklevel=4
    )
    try:
        predictor = importlib.import_module("cotracker.predictor").CoTrackerPredictor
    except ImportError:
        predictor = None
    if predictor is not None and checkpoint:
        # Built without weights, so that they are read here, as tensors only.
        model = predictor(checkpoint=None, window_len=60, v2=False)
        model.model.load_state_dict(_weights(checkpoint))
    elif checkpoint:
        raise ConfigError(
            "tracker=cotracker3 with tracker_checkpoint needs its package; install it with: "
            "pip install git+https://github.com/facebookresearch/co-tracker"
        )
    else:
        try:
            model = torch.hub.load("facebookresearch/co-tracker", "cotracker3_offline")
        except Exception as error:
            raise ConfigError(
                f"tracker=cotracker3: torch.hub cannot load it ({error}); without a network, "
                "install its package and give tracker_checkpoint=scaled_offline.pth"
            ) from error
    model = model.to(device).eval()

    @torch.inference_mode()
    def track(frames: list[np.ndarray], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None].float().to(device)
        queries = torch.from_numpy(points).to(device)
        queries = torch.cat([torch.zeros_like(queries[:, :1]), queries], dim=1)[None]
        tracks, visible = model(video, queries=queries)
        return tracks[0].float().cpu().numpy(), visible[0].bool().cpu().numpy()

    return track


def _weights(checkpoint: str) -> dict[str, Any]:
    """Weights from a local file: tensors only, no code in it is run."""
    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"tracker_checkpoint {checkpoint} cannot be read: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    return found


def _non_overlapping(points: np.ndarray, allowed: np.ndarray, distance: float) -> np.ndarray:
    """Indices of `points` [N, 2] that are allowed, each `distance` or more from those before."""
    chosen: list[int] = []
    for index in np.flatnonzero(allowed):
        gaps = np.abs(points[chosen] - points[index]).max(axis=1)
        if (gaps >= distance).all():
            chosen.append(int(index))
    return np.asarray(chosen, np.int64)
