from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from solo_infoaug.errors import ConfigError
from solo_infoaug.mining import MineConfig, depth, mine
from solo_infoaug.mining.depth import align, depth_along


def test_flicker_is_removed_and_motion_in_depth_is_not() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.uniform(1, 5, (1, 50)), 30, axis=0)
    truth[:, :8] += np.cumsum(rng.normal(0, 0.1, (30, 1)), axis=0)  # these come nearer and go
    truth -= np.r_[truth[0, :8], np.zeros(42)] * 0
    flicker = rng.uniform(0.7, 1.4, (30, 1)), rng.normal(0, 0.5, (30, 1))
    flicker[0][0], flicker[1][0] = 1.0, 0.0
    aligned = align(truth * flicker[0] + flicker[1], np.ones((30, 50), bool))
    assert np.abs(aligned - truth).max() < 0.05
    raw = truth * flicker[0] + flicker[1]
    assert np.abs(raw - truth).max() > 0.5


def test_points_that_are_lost_do_not_spoil_the_alignment() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat(rng.uniform(1, 5, (1, 40)), 10, axis=0)
    seen = np.ones((10, 40), bool)
    seen[5:, :25] = False
    raw = 1.3 * truth + 0.2
    raw[0] = truth[0]
    raw[5:, :25] = 99.0
    assert np.abs(align(raw, seen) - truth)[:, 25:].max() < 1e-6


def test_depth_along_tracks(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.tile(np.linspace(0, 10, 101, dtype=np.float32), (60, 1))
    monkeypatch.setattr(depth, "_estimator", lambda model, device: lambda frame: ramp)
    frames = [np.zeros((60, 101, 3), np.uint8)] * 5
    points = np.zeros((5, 20, 2))
    points[..., 0] = np.linspace(10, 90, 20)
    points[..., 1] = 30
    points[:, 0, 0] = [10, 11, 12, 13, 14]
    found = depth_along(frames, points, np.ones((5, 20), bool), "any", "cpu")
    # The range of the ramp between its 2nd and 98th percentile, 9.6, is 60 pixels.
    assert found[0, 1:] == pytest.approx(points[0, 1:, 0] / 10 / 9.6 * 60, rel=1e-3)
    assert np.diff(found[:, 0]) == pytest.approx(0.1 / 9.6 * 60, rel=0.1)


def test_depth_at_more_points_than_opencv_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    depths = rng.uniform(0, 10, (60, 101)).astype(np.float32)
    monkeypatch.setattr(depth, "_estimator", lambda model, device: lambda frame: depths)
    points = rng.integers([0, 0], [101, 60], (1, 40_000, 2))
    frames = [np.zeros((60, 101, 3), np.uint8)]
    found = depth_along(frames, points, np.ones((1, 40_000), bool), "any", "cpu")[0]
    spread = np.subtract(*np.percentile(depths, [98, 2]))
    x, y = points[0].T
    assert np.allclose(found, depths[y, x] / spread * 60, rtol=1e-4)


def test_transformers_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    depth._estimator.cache_clear()
    with pytest.raises(ConfigError, match=r'pip install "solo-infoaug\[depth\]"'):
        depth._estimator("any", "cpu")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A depth model of random weights, in a folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    backbone = transformers.Dinov2Config(
        image_size=56,
        patch_size=14,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        out_indices=[1, 2],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=8,
        reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    transformers.DPTImageProcessor(
        size={"height": 56, "width": 56}, ensure_multiple_of=14
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_mining_with_depth(tmp_path: Path, video: Path, tiny_model: Path) -> None:
    settings = {"min_frames": 24, "window": 64, "stride": 64, "camera": "none", "parallax": 0}
    deep = MineConfig(depth=str(tiny_model), device="cpu", **settings)
    dictionary = mine(video, tmp_path / "twins", deep, progress=False)
    assert len(dictionary.anchors) > 10
    flat = mine(video, tmp_path / "flat", MineConfig(**settings), progress=False)
    # A third coordinate changes what is estimated, and nothing else
    assert dictionary.windows[0].record["least_motion"] == flat.windows[0].record["least_motion"]
    assert not torch.equal(dictionary.mi, flat.mi)


def test_no_such_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    depth._estimator.cache_clear()
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*local folder"):
        depth._estimator(str(tmp_path), "cpu")
