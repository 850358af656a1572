from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from solo_infoaug.mining.shots import Shot

from solo_infoaug.errors import ConfigError, VideoError
from solo_infoaug.mining import MineConfig, mine, trackers
from solo_infoaug.mining.trackers import make_tracker


def _shot(frames: int = 12, height: int = 64, width: int = 96) -> Shot:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (height, width, 3), np.uint8) for _ in range(frames)]
    return Shot(0, images, {0: images[0]}, list(range(frames)))


def _npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def _drifting(frames: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Tracks [3, T, 2] in pixels of a 96×64 frame; the last leaves it, the second is hidden."""
    start = np.array([[20.0, 20.0], [50.0, 40.0], [80.0, 30.0]])
    step = np.array([[0.5, 0.0], [0.0, 0.5], [2.0, 0.0]])
    tracks = start[:, None] + step[:, None] * np.arange(frames)[None, :, None]
    visible = np.ones((3, frames), bool)
    visible[1, 6:9] = False
    return tracks, visible


def test_file_tracker(tmp_path: Path) -> None:
    tracks, visible = _drifting()
    _npz(tmp_path / "clip.npz", tracks=tracks, visibility=visible)
    found = make_tracker("file", tmp_path / "clip.mp4").follow(_shot(), 16, 1.0)
    assert np.allclose(found.centres, tracks[:, 0])
    assert np.allclose(found.points[:, 0, 0], tracks[0])
    assert found.visible[:, 1, 0].tolist() == visible[1].tolist()
    assert found.visible[:6, 2, 0].all()
    assert not found.visible[7:, 2, 0].any()  # outside the frame, whatever the file says
    assert np.allclose(found.points[6:9, 1, 0], tracks[1, 5])


def test_file_tracker_in_the_layout_of_tap_vid(tmp_path: Path) -> None:
    tracks, visible = _drifting()
    (tmp_path / "made").mkdir()
    _npz(
        tmp_path / "made" / "clip.npz",
        points=(tracks / [96, 64]).astype(np.float32),
        occluded=~visible,
    )
    tracker = make_tracker("file", tmp_path / "clip.mp4", folder=str(tmp_path / "made"))
    found = tracker.follow(_shot(), 16, 1.0)
    assert np.allclose(found.points[:, 0, 0], tracks[0], atol=1e-4)


def test_file_tracker_takes_patches_apart_and_inside(tmp_path: Path) -> None:
    start = np.array([[20.0, 20.0], [24.0, 20.0], [40.0, 20.0], [3.0, 3.0]])
    tracks = np.repeat(start[:, None], 12, axis=1)
    _npz(tmp_path / "clip.npz", tracks=tracks, visibility=np.ones((4, 12), bool))
    found = make_tracker("file", tmp_path / "clip.mp4").follow(_shot(), 16, 1.0)
    assert found.centres.tolist() == [[20, 20], [40, 20]]


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
        make_tracker("file", tmp_path / "clip.mp4").follow(_shot(), 16, 1.0)


def test_file_tracker_without_or_with_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"cannot be read from .*clip\.npz"):
        make_tracker("file", tmp_path / "clip.mp4")
    (tmp_path / "clip.npz").write_bytes(b"PK\x03\x04 this is no archive")
    with pytest.raises(VideoError, match="cannot be read"):
        make_tracker("file", tmp_path / "clip.mp4")


def test_mining_with_tracks_from_a_file(tmp_path: Path, video: Path, scene) -> None:
    """True tracks of the two objects give twins on the same object."""
    from .conftest import path_of

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
    config = MineConfig(tracker="file", tracks_folder=str(tmp_path), min_frames=24)
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


class _Tapir(_Still):
    def __init__(self, pyramid_level: int) -> None:
        super().__init__()
        assert pyramid_level == 1

    def forward(self, video: torch.Tensor, queries: torch.Tensor) -> dict[str, torch.Tensor]:
        assert video.shape[2:] == (256, 256, 3)
        assert -1.01 <= float(video.min()) < 0 < float(video.max()) <= 1.01
        assert float(self.weight) == 7.0
        frames, points = video.shape[1], queries.shape[1]
        tracks = queries[..., [2, 1]][:, :, None].expand(-1, -1, frames, -1).clone()
        occlusion = torch.full((1, points, frames), -9.0)
        occlusion[:, 0, 5:] = 9.0
        return {"tracks": tracks, "occlusion": occlusion, "expected_dist": occlusion * 0 - 9}


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    for name, attribute, network in (
        ("cotracker.predictor", "CoTrackerPredictor", _CoTracker),
        ("tapnet.torch.tapir_model", "TAPIR", _Tapir),
    ):
        module = types.ModuleType(name)
        setattr(module, attribute, network)
        monkeypatch.setitem(sys.modules, name, module)
    trackers._cotracker.cache_clear()
    trackers._bootstapir.cache_clear()
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.tensor([7.0])}, path)
    return {"checkpoint": str(path)}


def test_cotracker(networks: dict[str, str]) -> None:
    with pytest.warns(UserWarning, match="CC-BY-NC-4.0"):
        tracker = make_tracker("cotracker3", Path("x.mp4"), device="cpu", **networks)
    assert "CC-BY-NC" in tracker.licence
    found = tracker.follow(_shot(), 16, 1.0)
    assert found.points.shape == (12, 24, 4, 2)
    assert np.allclose(found.points, found.points[:1], atol=1e-3)


def test_bootstapir(networks: dict[str, str]) -> None:
    tracker = make_tracker("bootstapir", Path("x.mp4"), device="cpu", **networks)
    found = tracker.follow(_shot(), 16, 1.0)
    assert np.allclose(found.points, found.points[:1], atol=1e-3)
    assert not found.visible[5:, 0, 0].any()
    assert found.visible[:, 8:16, :].all()


def test_neural_trackers_say_what_is_missing(tmp_path: Path) -> None:
    trackers._cotracker.cache_clear()
    with (
        pytest.warns(UserWarning, match="CC-BY-NC"),
        pytest.raises(ConfigError, match=r"needs its package; install it with: pip install"),
    ):
        make_tracker("cotracker3", Path("x.mp4"), checkpoint="weights.pth")
    with pytest.raises(ConfigError, match=r"bootstapir needs its package; .*pip install"):
        make_tracker("bootstapir", Path("x.mp4"))


def test_weights_that_are_code_are_refused(networks: dict[str, str], tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"weight": Hostile()}, tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match=r"bad\.pth cannot be read"):
        make_tracker("bootstapir", Path("x.mp4"), checkpoint=str(tmp_path / "bad.pth"))
    assert not (tmp_path / "owned").exists()
