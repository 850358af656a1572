"""Kornia views from solo-learn's augmentation configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from solo_infoaug.augment import build_pipeline, make_views, own_randomness
from solo_infoaug.errors import ConfigError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def _plain(**changes: Any) -> Any:
    """No operation but the crop, which takes the whole image."""
    return OmegaConf.create(
        {
            "rrc": {"enabled": False},
            "color_jitter": {"prob": 0.0},
            "grayscale": {"prob": 0.0},
            "gaussian_blur": {"prob": 0.0},
            "solarization": {"prob": 0.0},
            "equalization": {"prob": 0.0},
            "horizontal_flip": {"prob": 0.0},
            "crop_size": 24,
            "num_crops": 1,
            **changes,
        }
    )


@pytest.fixture
def images() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (16, 3, 24, 24), dtype=torch.uint8, generator=random)


def _views(augmentation: Any, patch: torch.Tensor, twin: torch.Tensor | None = None, seed: int = 0):
    pipeline = build_pipeline(augmentation, MEAN, STD)
    with own_randomness(seed, torch.device("cpu")):
        return make_views([pipeline], patch, patch if twin is None else twin)


def _raw(view: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return view * std + mean


def test_without_operations_the_image_is_normalised(images: torch.Tensor) -> None:
    (view,) = _views(_plain(), images)
    torch.testing.assert_close(_raw(view), images / 255, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"horizontal_flip": {"prob": 1.0}}, lambda x: x.flip(-1)),
        ({"solarization": {"prob": 1.0}}, lambda x: torch.where(x >= 128 / 255, 1 - x, x)),
        (
            {"grayscale": {"prob": 1.0}},
            lambda x: (0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).expand(
                -1, 3, -1, -1
            ),
        ),
    ],
)
def test_operations_are_pils(
    images: torch.Tensor,
    change: dict[str, Any],
    expected: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    (view,) = _views(_plain(**change), images)
    torch.testing.assert_close(_raw(view), expected(images / 255), atol=2e-3, rtol=0)


def test_probability_is_a_share_of_the_images() -> None:
    images = torch.zeros(2000, 3, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    (view,) = _views(_plain(horizontal_flip={"prob": 0.3}, crop_size=8), images)
    flipped = _raw(view)[:, 0, 0, 0] < 0.5
    assert float(flipped.float().mean()) == pytest.approx(0.3, abs=0.04)


def test_views_take_turns_and_have_their_sizes(images: torch.Tensor) -> None:
    large = build_pipeline(_plain(num_crops=2), MEAN, STD)
    small = build_pipeline(_plain(crop_size=12, num_crops=2), MEAN, STD)
    white = torch.full_like(images, 255)
    black = torch.zeros_like(images)
    views = make_views([large, small], white, black)
    assert [view.shape[-1] for view in views] == [24, 24, 12, 12]
    assert [round(float(_raw(view).mean())) for view in views] == [1, 0, 1, 0]
    views = make_views([small], white, black, both=True)
    assert [round(float(_raw(view).mean())) for view in views] == [1, 0, 1, 0]


def test_a_seed_repeats_and_leaves_torchs_state(images: torch.Tensor) -> None:
    augmentation = _plain(
        rrc={"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
        color_jitter={
            "prob": 0.8,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.2,
            "hue": 0.1,
        },
        gaussian_blur={"prob": 0.5},
        equalization={"prob": 0.2},
    )
    state = torch.get_rng_state()
    (one,), (same,), (other,) = (_views(augmentation, images, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())
    assert one.isfinite().all()
    per_image = (one[0] - one[1]).abs().sum()
    assert per_image > 0


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'rotate'.*horizontal_flip"):
        build_pipeline(_plain(rotate={"prob": 1.0}), MEAN, STD)
