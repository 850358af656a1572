from __future__ import annotations

import pytest

from solo_infoaug.errors import ConfigError
from solo_infoaug.mining import MineConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", 0),
        ("k", 31),
        ("k", 2.5),
        ("k", True),
        ("start_fraction", -0.1),
        ("stop_fraction", 0.0),
        ("stop_fraction", float("nan")),
        ("frame_step", 0),
        ("patch_fraction", 0.0),
        ("patch_fraction", "big"),
        ("min_patch", 1),
        ("max_frames", 8),
        ("estimator", "4kl"),
        ("representation", "acceleration"),
        ("moments", 0),
        ("top_k", 0),
        ("crop_size", 0),
        ("min_mi", -1.0),
    ],
)
def test_errors_name_the_setting(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be .*, not "):
        MineConfig(**{name: value})


def test_parse() -> None:
    config = MineConfig.parse(["k=4", "patch_fraction=0.2", "estimator=ksg1"])
    assert config == MineConfig(k=4, patch_fraction=0.2, estimator="ksg1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("estimatr=ksg1", "unknown setting 'estimatr'; did you mean estimator"),
        ("k", "k needs a value"),
        ("k=three", "k must be int, not 'three'"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MineConfig.parse([text])


def test_digest_depends_on_the_settings_alone() -> None:
    assert MineConfig().digest == MineConfig(k=3).digest
    assert MineConfig().digest != MineConfig(k=4).digest
