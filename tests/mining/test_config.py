from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

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
        ("temporal_crops", 0),
        ("top_k", 0),
        ("crop_size", 0),
        ("min_mi", -1.0),
        ("max_error_ratio", 1.5),
        ("min_support", -1),
        ("min_distance", -0.5),
        ("max_difference", 0.0),
        ("max_difference", 4.5),
        ("max_colour_difference", 0.0),
        ("max_colour_difference", 4.5),
        ("parallax", -1),
        ("extra_patches", -1),
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
        extra_patches=0,
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
        ("gate.k=4", "^gate.k: k is in the group information; write k=VALUE$"),
        ("gate.window=48", "^gate.window: window is in no group; write window=VALUE$"),
        ("moments=2", "^moments: is now called temporal_crops; write temporal_crops=VALUE$"),
        ("patches.others=9", "^others: is now called extra_patches"),
        ("k=three", "k: expected int, got 'three'"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MineConfig.parse([text])


def test_groups_may_be_written() -> None:
    assert MineConfig.parse(["gate.max_drift=0.2", "fdr=0.1", "significance.surrogates=30"]) == (
        MineConfig(max_drift=0.2, fdr=0.1, surrogates=30)
    )
    first = [name for name, field in MineConfig.__dataclass_fields__.items() if not field.metadata]
    assert first == list(MineConfig.__dataclass_fields__)[:15]


def test_a_file_holds_settings_and_texts_count_more(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "window: 48\nmin_mi: 1e-1\ncamera: affine\ngate:\n  max_drift: 0.2\n  min_support: 1\n"
        "camera.parallax: 1\ntracks_folder: ''\n"
    )
    in_file = MineConfig(
        window=48, min_mi=0.1, camera="affine", max_drift=0.2, min_support=1, parallax=1
    )
    assert MineConfig.parse(file=file) == in_file
    assert MineConfig.parse(["window=30", "window=32"], file) == dataclasses.replace(
        in_file, window=32
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windw: 48", "unknown setting 'windw'; did you mean window"),
        ("others: 3", "others: is now called extra_patches"),
        ("gate:\n  k: 3", "gate.k: k is in the group information"),
        ("gate:\n  max_drift: 0.1\nmax_drift: 0.2", "max_drift is set twice"),
        ("k: three", "k: expected int, got 'three'"),
        ("k: {", "mine.yaml: not a YAML file of settings: .*"),
        ("[k]", "mine.yaml: expected settings"),
    ],
)
def test_errors_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        MineConfig.parse(file=tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: No such file"):
        MineConfig.parse(file=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("former", "name"),
    [
        ("moments", "temporal_crops"),
        ("others", "extra_patches"),
        ("max_roundtrip", "max_forward_backward_error"),
    ],
)
def test_a_former_name_is_an_error_that_names_the_new_one(former: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{former}: is now called {name}; write {name}=VALUE$"):
        MineConfig(**{former: 2})


def test_settings_can_be_copied_to_another_process() -> None:
    config = MineConfig(k=4, max_drift=0.1)
    assert pickle.loads(pickle.dumps(config)) == config


def test_digests_of_earlier_versions_stay() -> None:
    """They name the videos of a dictionary: these are of the version before names changed."""
    assert MineConfig(context=1.0).digest == "04b2807312e1"
    changed = MineConfig(
        extra_patches=5, temporal_crops=2, max_forward_backward_error=1.5, k=4, context=1.0
    )
    assert changed.digest == "4f9b847cc163"


def test_digest_depends_on_settings_of_colour_only_where_they_count() -> None:
    assert MineConfig(max_colour_difference=1.0).digest == MineConfig().digest
    colour = MineConfig(signal="colour")
    assert MineConfig(signal="colour", max_colour_difference=1.0).digest != colour.digest


def test_digest_depends_on_the_settings_alone() -> None:
    assert MineConfig().digest == MineConfig(k=3).digest
    assert MineConfig().digest != MineConfig(k=4).digest
