"""The `fmicl:` key."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from solo_infoaug.errors import ConfigError
from solo_infoaug.objectives import VISION, FMICLConfig


def test_off() -> None:
    assert FMICLConfig.parse(None) is None
    assert FMICLConfig.parse(False) is None


@pytest.mark.parametrize("name", ["kl", "js", "pearson", "hellinger", "tsallis", "vlc"])
def test_name_alone(name: str) -> None:
    assert FMICLConfig.parse(name) == FMICLConfig(divergence=name)


def test_true_is_the_papers_default() -> None:
    config = FMICLConfig.parse(True)
    assert config == FMICLConfig("kl", "gaussian", VISION.alpha, VISION.sigma)


def test_mapping() -> None:
    written = {
        "divergence": "tsallis",
        "similarity": "cosine",
        "alpha": 7,
        "sigma": 0.5,
        "order": 2,
    }
    expected = FMICLConfig("tsallis", "cosine", 7, 0.5, 2)
    assert FMICLConfig.parse(written) == expected
    assert FMICLConfig.parse(OmegaConf.create(written)) == expected
    loss = expected.loss(negatives="keys", gather=True)
    assert loss.alpha == 7
    assert loss.options["sigma"] == 0.5
    assert loss.options["negatives"] == "keys"
    assert loss.options["gather"] is True


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"divergance": "js"}, r"^fmicl.divergance: unknown key; known keys are divergence, simil"),
        ("jss", r"^fmicl.divergence: expected one of kl, js.*got 'jss'"),
        ("reverse_kl", r"^fmicl.divergence: 'reverse_kl' .* is refused"),
        ({"alpha": -1}, r"^fmicl.alpha: expected a finite number above 0, got -1"),
        ({"sigma": "wide"}, r"^fmicl.sigma: expected a finite number above 0, got 'wide'"),
        ({"divergence": "tsallis", "order": 1}, r"^fmicl.order: expected a finite number"),
        ({"divergence": "js", "order": 2}, r"^fmicl.order: expected None with divergence 'js'"),
        ({"similarity": None}, r"^fmicl.similarity: expected a name, got None"),
        ({"divergence": ["js"]}, r"^fmicl.divergence: expected a name, got \['js'\]"),
        (40, r"^fmicl: expected a divergence's name or a mapping, got int 40"),
        (["js"], r"^fmicl: expected a divergence's name or a mapping, got list"),
    ],
)
def test_errors_name_the_key(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FMICLConfig.parse(value)


def test_another_key_is_named_in_errors() -> None:
    with pytest.raises(ConfigError, match=r"^infoaug.objective.alpha: expected"):
        FMICLConfig.parse({"alpha": 0}, key="infoaug.objective")
