from __future__ import annotations

import pytest

from solo_infoaug.errors import ConfigError
from solo_infoaug.mining import MineConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", 0),
        ("k", 15),
        ("k", 2.5),
        ("k", True),
        ("start_fraction", -0.1),
        ("stop_fraction", 0.0),
        ("stop_fraction", float("nan")),
        ("frame_step", 0),
        ("patch_fraction", 0.0),
        ("patch_fraction", "big"),
        ("min_patch", 1),
        ("min_frames", 3),
        ("window", 15),
        ("stride", 0),
        ("stride", 25),
        ("max_error_ratio", 0.0),
        ("estimator", "4kl"),
        ("representation", "acceleration"),
        ("moments", 0),
        ("top_k", 0),
        ("crop_size", 0),
        ("min_mi", -1.0),
        ("max_error_ratio", 1.5),
        ("min_support", -1),
        ("min_distance", -0.5),
        ("max_difference", 0.0),
        ("max_difference", 4.5),
        ("parallax", -1),
        ("others", -1),
        ("min_colour", -0.1),
        ("grid_step", 0.05),
        ("surrogates", 3),
        ("fdr", 0.0),
        ("flow", "slow"),
        ("signal", "sound"),
        ("camera", "drone"),
        ("camera", True),
        ("seed", -1),
        ("device", "gpu"),
        ("device", ""),
        ("tracks_folder", "tracks"),
        ("tracker_checkpoint", "weights.pth"),
        ("min_mi", float("inf")),
        ("fps", float("nan")),
        ("min_motion", float("inf")),
        ("top_k", 10**30),
    ],
)
def test_errors_name_the_setting(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: expected .*, got "):
        MineConfig(**{name: value})


def test_what_a_setting_may_be_depends_on_others() -> None:
    with pytest.raises(ConfigError, match=r"^window: expected at least min_frames=30, got 24"):
        MineConfig(min_frames=30)
    with pytest.raises(ConfigError, match=r"^stride: expected at most window=20, got 21"):
        MineConfig(window=20, stride=21)
    with pytest.raises(ConfigError, match=r"^k: expected less than min_frames - 1 = 3, got 3"):
        MineConfig(min_frames=4)
    assert MineConfig(min_frames=4, window=4, stride=4, k=2).k == 2
    assert MineConfig(window=30, min_frames=30, stride=30).window == 30


def test_settings_of_one_tracker_are_not_for_another() -> None:
    with pytest.raises(
        ConfigError, match=r"^tracks_folder: expected empty with tracker=flow: .*file"
    ):
        MineConfig(tracks_folder="tracks")
    assert MineConfig(tracker="file", tracks_folder="tracks").tracks_folder == "tracks"
    assert MineConfig(tracker="cotracker3", tracker_checkpoint="w.pth", device="cuda:1").k == 3


def test_what_does_without_a_test_is_allowed() -> None:
    config = MineConfig(
        max_error_ratio=1.0,
        max_difference=4.0,
        fdr=1.0,
        min_support=0,
        min_motion=0.0,
        motion_over_noise=0.0,
        parallax=0,
        others=0,
        min_distance=0.0,
    )
    assert config.fdr == config.max_error_ratio == 1.0


def test_parse() -> None:
    config = MineConfig.parse(["k=4", "patch_fraction=0.2", "estimator=ksg1"])
    assert config == MineConfig(k=4, patch_fraction=0.2, estimator="ksg1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("estimatr=ksg1", "unknown setting 'estimatr'; did you mean estimator"),
        ("max_frames=96", "unknown setting 'max_frames'; did you mean min_frames"),
        ("min_agreement=0.5", "unknown setting 'min_agreement'"),
        ("k", "k needs a value"),
        ("k=three", "k: expected int, got 'three'"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MineConfig.parse([text])


def test_digest_depends_on_the_settings_alone() -> None:
    assert MineConfig().digest == MineConfig(k=3).digest
    assert MineConfig().digest != MineConfig(k=4).digest
