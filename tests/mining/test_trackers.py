from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from videos import path_of, texture

from solo_infoaug.errors import ConfigError, VideoError
from solo_infoaug.mining import MineConfig, mine, register_tracker, registry, trackers
from solo_infoaug.mining.content import in_memory
from solo_infoaug.mining.flow import follow_patches
from solo_infoaug.mining.patch_grid import grid
from solo_infoaug.mining.trackers import make_tracker
from solo_infoaug.mining.windows import Window


def _window(frames: int = 12, height: int = 64, width: int = 96, seed: int = 5) -> Window:
    """Noise in colour, of which the middle is the seed."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (height, width, 3), np.uint8) for _ in range(frames)]
    return Window(
        0, seed, images[seed].shape[:2], images, {seed: images[seed]}, list(range(frames))
    )


def _tracker(name: str, video: Path = Path("x.mp4"), **settings: Any) -> trackers.Tracker:
    return make_tracker(video, MineConfig(tracker=name, **settings))


def _follow(tracker: trackers.Tracker, window: Window | None = None) -> trackers.Tracks:
    return tracker.follow(window or _window(), 16, 1.0, "none")


# --- dense flow


def _panned(first: int = 0, frames: int = 8, factor: int = 1) -> Window:
    """A camera that pans by 3 pixels a frame over a texture; frames are `factor` times larger."""
    wide = texture(96, 300, 3)
    images = [np.ascontiguousarray(wide[:, 3 * t : 3 * t + 160]) for t in range(40)]
    images = images[first : first + frames]
    full = images[4].repeat(factor, axis=0).repeat(factor, axis=1)
    grey = [image.mean(axis=2).astype(np.uint8) for image in images]
    return Window(0, 4, full.shape[:2], grey, {4: full}, list(range(first, first + frames)))


def test_flow_follows_a_pan_and_finds_the_camera() -> None:
    found = _tracker("flow").follow(_panned(), 16, 0.5, "homography")
    centres = grid(96, 160, 16, 0.5)
    assert found.path.shape == (8, len(centres), 2)
    assert np.allclose(found.path[4], centres)
    assert found.visible[4].all()
    truth = centres - np.array([3.0, 0.0]) * (np.arange(8) - 4)[:, None, None]
    inner = np.abs(centres - [80, 48]).max(axis=1) < 30
    assert found.visible[:, inner].all()
    assert np.abs(found.path - truth)[:, inner].mean() < 0.3
    assert len(found.camera) == 7
    for step in found.camera:
        assert step is not None
        assert np.allclose(step.apply(centres[inner]), centres[inner] - [3, 0], atol=0.4)


def test_flow_is_in_source_pixels() -> None:
    small = _tracker("flow").follow(_panned(), 16, 1.0, "affine")
    large = _tracker("flow").follow(_panned(factor=3), 48, 1.0, "affine")
    assert np.allclose(large.path, 3 * small.path, atol=1e-3)
    assert np.array_equal(large.visible, small.visible)
    for one, two in zip(small.camera, large.camera, strict=True):
        assert one is not None
        assert two is not None
        assert np.allclose(two.apply(np.array([[30.0, 60.0]])), 3 * one.apply([[10.0, 20.0]]))


def test_overlapping_windows_share_their_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair of frames is computed once, and what no window needs any more is let go."""
    tracker = _tracker("flow")
    real, computed = tracker._estimate, []  # type: ignore[attr-defined]

    def counted(before: np.ndarray, after: np.ndarray):
        computed.append(1)
        return real(before, after)

    monkeypatch.setattr(tracker, "_estimate", counted)
    whole = [tracker.follow(_panned(first), 16, 1.0, "affine") for first in (0, 4, 8)]
    assert len(computed) == 7 + 4 + 4
    assert set(tracker._steps) == {(t, t + 1) for t in range(8, 15)}  # type: ignore[attr-defined]
    alone = _tracker("flow").follow(_panned(8), 16, 1.0, "affine")
    assert np.array_equal(whole[2].path, alone.path)
    assert np.array_equal(whole[2].visible, alone.visible)


def test_flow_and_its_patches_agree() -> None:
    """What the tracker does to a window is `follow_patches` over its pairs."""
    window, tracker = (
        _panned(),
        _tracker("flow", max_forward_backward_error=0.7),
    )
    found = tracker.follow(window, 16, 1.0, "none")
    steps = tracker._steps  # type: ignore[attr-defined]
    flows = [steps[pair][0] for pair in zip(range(7), range(1, 8), strict=True)]
    path, visible = follow_patches(flows, grid(96, 160, 16), 16, 4, 0.7)
    assert np.array_equal(found.path, path)
    assert np.array_equal(found.visible, visible)


# --- points on a grid, and trackers of one's own


def _pan(frames: list[np.ndarray], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The truth of `_panned`, forward from its seed; backward it is told that time runs back."""
    steps = np.arange(len(frames))[:, None, None] * np.array([3.0, 0.0], np.float32)
    later = frames[1][:, :-3] if len(frames) > 1 else frames[0]
    way = -1 if np.array_equal(later, frames[0][:, 3:]) else 1
    return points + way * steps, np.ones((len(frames), len(points)), bool)


def test_a_tracker_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.TRACKERS, "pan", None)  # gone after the test

    @register_tracker("pan", neural=True)
    def pan(video: Path, config: MineConfig) -> trackers.Tracker:
        assert config.tracker_checkpoint == "weights"
        return trackers.GridTracker(f"of {video}", "mine alone", colour=False, track=_pan)

    tracker = _tracker("pan", tracker_checkpoint="weights")
    assert (tracker.name, tracker.licence) == ("of x.mp4", "mine alone")
    found = tracker.follow(_panned(), 16, 1.0, "affine")
    centres = grid(96, 160, 16)
    inner = np.abs(centres - [80, 48]).max(axis=1) < 30
    truth = centres - np.array([3.0, 0.0]) * (np.arange(8) - 4)[:, None, None]
    assert found.visible[:, inner].all()
    assert np.allclose(found.path[:, inner], truth[:, inner], atol=1e-3)
    for step in found.camera:
        assert step is not None
        assert np.allclose(step.apply(centres), centres - [3, 0], atol=1e-3)


def test_a_tracker_that_is_not_registered() -> None:
    with pytest.raises(
        ConfigError, match="tracker: expected one of flow, file, cotracker3, got 'lk'"
    ):
        MineConfig(tracker="lk")


def test_a_tracker_that_a_worker_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MineConfig(tracker="flow")
    monkeypatch.delitem(registry.TRACKERS, "flow")
    with pytest.raises(ConfigError, match=r"tracker: expected .* workers import, got 'flow'"):
        make_tracker(Path("x.mp4"), config)


# --- tracks from a file


def _npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def _drifting(frames: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Tracks [3, T, 2] in pixels of a 96×64 frame; the last leaves it, the second is hidden."""
    start = np.array([[20.0, 20.0], [50.0, 40.0], [70.0, 30.0]])
    step = np.array([[0.5, 0.0], [0.0, 0.5], [3.0, 0.0]])
    tracks = start[:, None] + step[:, None] * np.arange(frames)[None, :, None]
    visible = np.ones((3, frames), bool)
    visible[1, 6:9] = False
    return tracks, visible


def test_file_tracker(tmp_path: Path) -> None:
    tracks, visible = _drifting()
    _npz(tmp_path / "clip.npz", tracks=tracks, visibility=visible)
    found = _follow(_tracker("file", tmp_path / "clip.mp4"))
    assert np.allclose(found.path[5], tracks[:, 5])  # in the seed frame
    assert np.allclose(found.path[:, 0], tracks[0], atol=1e-3)
    # Hidden from frame 6 on, and lost for good; the last one leaves the frame in frame 8
    assert found.visible[:, 1].tolist() == [True] * 6 + [False] * 6
    assert found.visible[:, 2].tolist() == [True] * 8 + [False] * 4
    assert np.allclose(found.path[:6, 1], tracks[1, :6], atol=1e-3)
    assert np.allclose(found.path[6:9, 1], tracks[1, 5], atol=1e-3)


def test_file_tracker_is_asked_for_the_frames_of_the_window(tmp_path: Path) -> None:
    tracks, _ = _drifting()
    _npz(tmp_path / "clip.npz", tracks=tracks, visibility=np.ones((3, 12), bool))
    window = _window(6, seed=3)
    window.numbers = list(range(0, 12, 2))
    found = _follow(_tracker("file", tmp_path / "clip.mp4"), window)
    assert np.allclose(found.path[:, 0], tracks[0, ::2], atol=1e-3)


def test_file_tracker_in_the_layout_of_tap_vid(tmp_path: Path) -> None:
    tracks, visible = _drifting()
    (tmp_path / "made").mkdir()
    _npz(
        tmp_path / "made" / "clip.npz",
        points=(tracks / [96, 64]).astype(np.float32),
        occluded=~visible,
    )
    tracker = make_tracker(
        tmp_path / "clip.mp4", MineConfig(tracker="file", tracks_folder=str(tmp_path / "made"))
    )
    assert np.allclose(_follow(tracker).path[:, 0], tracks[0], atol=1e-3)


def test_file_tracker_of_a_video_that_is_not_on_this_disk(tmp_path: Path) -> None:
    """There is no folder next to it: one is named, or the error says so."""
    video = in_memory("s3://bucket/deep/clip.mp4", b"")
    tracks, visible = _drifting()
    _npz(tmp_path / "clip.npz", tracks=tracks, visibility=visible)
    tracker = make_tracker(video, MineConfig(tracker="file", tracks_folder=str(tmp_path)))
    assert np.allclose(_follow(tracker).path[:, 0], tracks[0], atol=1e-3)
    told = "tracks_folder: expected a folder on this disk, because s3://bucket/deep/clip.mp4 is not"
    with pytest.raises(ConfigError, match=told):
        make_tracker(video, MineConfig(tracker="file"))


def test_file_tracker_fits_the_camera(tmp_path: Path) -> None:
    """Tracks all over the frame that drift alike: the background's motion, and nothing else."""
    start = np.random.default_rng(0).uniform(12, [84, 52], (200, 2))
    tracks = start[:, None] + np.array([1.0, -0.5]) * (np.arange(12) - 5)[None, :, None]
    _npz(tmp_path / "clip.npz", tracks=tracks, visibility=np.ones((200, 12), bool))
    tracker = _tracker("file", tmp_path / "clip.mp4")
    found = tracker.follow(_window(), 4, 0.5, "similarity")
    assert found.path.shape[1] > 60
    for step in found.camera:
        assert step is not None
        assert np.allclose(step.apply(start), start + np.array([1.0, -0.5]), atol=1e-3)


def test_file_tracker_takes_patches_apart_and_inside(tmp_path: Path) -> None:
    start = np.array([[20.0, 20.0], [24.0, 20.0], [40.0, 20.0], [3.0, 3.0]])
    tracks = np.repeat(start[:, None], 12, axis=1)
    _npz(tmp_path / "clip.npz", tracks=tracks, visibility=np.ones((4, 12), bool))
    found = _follow(_tracker("file", tmp_path / "clip.mp4"))
    assert found.path[5].tolist() == [[20, 20], [40, 20]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tracks": np.zeros((3, 12, 3)), "visibility": np.ones((3, 12))}, "expected `tracks`"),
        ({"tracks": np.zeros((3, 12, 2))}, "expected `tracks`"),
        ({"other": np.zeros(3)}, r"it holds other \[3\]"),
        ({"tracks": np.zeros((3, 5, 2)), "visibility": np.ones((3, 5))}, "tracks of 5 frames"),
        ({"tracks": np.array([object()])}, "cannot be read"),
    ],
)
def test_file_tracker_errors(tmp_path: Path, arrays: dict, message: str) -> None:
    _npz(tmp_path / "clip.npz", **arrays)
    with pytest.raises(VideoError, match=message):
        _follow(_tracker("file", tmp_path / "clip.mp4"))


# numpy leaves a file open that is no archive
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_file_tracker_without_or_with_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"cannot be read from .*clip\.npz"):
        _tracker("file", tmp_path / "clip.mp4")
    (tmp_path / "clip.npz").write_bytes(b"PK\x03\x04 this is no archive")
    with pytest.raises(VideoError, match="cannot be read"):
        _tracker("file", tmp_path / "clip.mp4")


def test_mining_with_tracks_from_a_file(tmp_path: Path, video: Path, scene) -> None:
    """True tracks of the two objects give twins on the same object."""
    frames = len(scene[0])
    starts, owners = [], []
    for number, (x0, y0, _, _) in enumerate(scene[1]):
        starts += [(x0 + dx, y0 + dy) for dx in (15, 40, 65) for dy in (15, 40, 65)]
        owners += [number] * 9
    paths = np.stack([path_of(frames, 10 + number) for number in owners])
    tracks = np.array(starts)[:, None] + paths
    rng = np.random.default_rng(0)
    _npz(
        tmp_path / "two.npz",
        tracks=tracks + rng.normal(0, 0.05, tracks.shape),
        visibility=np.ones(tracks.shape[:2], bool),
    )
    # 18 points, all of them on objects: there is no background, and they are far apart
    config = MineConfig(
        tracker="file",
        tracks_folder=str(tmp_path),
        min_frames=24,
        window=64,
        stride=64,
        camera="none",
        parallax=0,
        motion_over_noise=0.0,
        min_support=0,
    )
    dictionary = mine(video, tmp_path / "twins", config, progress=False)
    assert len(dictionary) == 18
    twins = dictionary.twins[:, 0].numpy()
    assert (twins >= 0).mean() > 0.9
    same = np.array(owners)[twins] == np.array(owners)
    assert same[twins >= 0].all()


# --- neural trackers: the loading code and the calls, with stand-ins for the networks


class _Still(torch.nn.Module):
    """Says that all points rest; notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


class _CoTracker(_Still):
    def __init__(self, checkpoint: object, window_len: int, v2: bool) -> None:
        super().__init__()
        assert checkpoint is None
        self.model = _Still()

    def forward(self, video: torch.Tensor, queries: torch.Tensor):
        assert video.dtype == torch.float32
        assert video.shape[2] == 3
        assert float(video.max()) > 1.5  # 0 to 255
        assert (queries[..., 0] == 0).all()
        assert float(self.model.weight) == 7.0
        tracks = queries[:, None, :, 1:].expand(-1, video.shape[1], -1, -1).clone()
        return tracks, torch.ones(tracks.shape[:-1], dtype=torch.bool)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    module = types.ModuleType("cotracker.predictor")
    module.CoTrackerPredictor = _CoTracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cotracker.predictor", module)
    trackers._cotracker.cache_clear()
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.tensor([7.0])}, path)
    return {"tracker_checkpoint": str(path)}


def test_cotracker(networks: dict[str, str]) -> None:
    with pytest.warns(UserWarning, match="CC-BY-NC-4.0"):
        tracker = make_tracker(
            Path("x.mp4"), MineConfig(tracker="cotracker3", device="cpu", **networks)
        )
    assert "CC-BY-NC" in tracker.licence
    assert tracker.colour
    found = _follow(tracker)
    assert found.path.shape == (12, 24, 2)
    assert found.visible.all()
    assert np.allclose(found.path, grid(64, 96, 16), atol=1e-3)


def test_neural_trackers_say_what_is_missing(tmp_path: Path) -> None:
    trackers._cotracker.cache_clear()
    with (
        pytest.warns(UserWarning, match="CC-BY-NC"),
        pytest.raises(ConfigError, match=r"needs its package; install it with: pip install"),
    ):
        make_tracker(
            Path("x.mp4"), MineConfig(tracker="cotracker3", tracker_checkpoint="weights.pth")
        )


def test_weights_that_are_code_are_refused(networks: dict[str, str], tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"weight": Hostile()}, tmp_path / "bad.pth")
    with (
        pytest.warns(UserWarning, match="CC-BY-NC"),
        pytest.raises(ConfigError, match=r"bad\.pth cannot be read"),
    ):
        _tracker("cotracker3", tracker_checkpoint=str(tmp_path / "bad.pth"))
    assert not (tmp_path / "owned").exists()
