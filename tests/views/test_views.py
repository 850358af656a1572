"""Kornia views from solo-learn's augmentation configuration."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import pytest
import torch
from augmentations import augmentation
from kornia.enhance import adjust_hue
from omegaconf import OmegaConf
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp, kstwo
from torch.overrides import TorchFunctionMode
from torchvision.transforms import RandomResizedCrop, functional

from solo_infoaug.errors import ConfigError
from solo_infoaug.twin.randomness import fork_rng
from solo_infoaug.views.functional import blur, draw_boxes, jitter, resized_crop, turn_hue
from solo_infoaug.views.pipeline import (
    apply_views,
    build_pipeline,
    draw_views,
    make_views,
    packed,
    sent,
    unpacked,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def _plain(**changes: Any) -> Any:
    """No operation but the crop, which takes the whole image."""
    off = ("color_jitter", "grayscale", "gaussian_blur", "solarization", "horizontal_flip")
    entry = augmentation(rrc={"enabled": False}, crop_size=24, num_crops=1)
    return OmegaConf.create({**entry, **{key: {"prob": 0.0} for key in off}, **changes})


@pytest.fixture
def images() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (16, 3, 24, 24), dtype=torch.uint8, generator=random)


def _views(augmentation: Any, patch: torch.Tensor, twin: torch.Tensor | None = None, seed: int = 0):
    pipeline = build_pipeline(augmentation, MEAN, STD)
    with fork_rng(seed, torch.device("cpu")):
        return make_views([pipeline], patch, patch if twin is None else twin)


def _raw(view: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return view * std + mean


def _tensors(drawn: list[dict[str, Any]]) -> list[torch.Tensor]:
    return [value for one in drawn for value in one.values() if isinstance(value, torch.Tensor)]


def test_without_operations_the_image_is_normalised(images: torch.Tensor) -> None:
    (view,) = _views(_plain(), images)
    torch.testing.assert_close(_raw(view), images / 255, atol=1e-4, rtol=0)


def _pillow(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def _levels(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([functional.pil_to_tensor(image) for image in images]).float()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"horizontal_flip": {"prob": 1.0}}, ImageOps.mirror),
        ({"solarization": {"prob": 1.0}}, ImageOps.solarize),
        ({"equalization": {"prob": 1.0}}, ImageOps.equalize),
        ({"grayscale": {"prob": 1.0}}, lambda image: functional.to_grayscale(image, 3)),
        ({"crop_size": 10}, lambda image: image.resize((10, 10), Image.Resampling.BICUBIC)),
    ],
)
def test_operations_are_pillows(
    images: torch.Tensor,
    change: dict[str, Any],
    expected: Callable[[Image.Image], Image.Image],
) -> None:
    images = images // 2 + 64  # nothing overshoots: the order of Pillow's two passes is its own
    (view,) = _views(_plain(**change), images)
    theirs = _levels([expected(image) for image in _pillow(images)])
    limit = 0.51 if "grayscale" in change else 1.01 if "crop_size" in change else 0.01
    assert float((255 * _raw(view) - theirs).abs().max()) < limit


@pytest.mark.parametrize(("side", "size"), [(32, 32), (96, 32), (20, 33), (71, 40)])
def test_crops_are_pillows(side: int, size: int) -> None:
    random = torch.Generator().manual_seed(side)
    images = torch.randint(64, 192, (24, 3, side, side), dtype=torch.uint8, generator=random)
    boxes = draw_boxes(len(images), side, side, (0.08, 1.0), torch.Generator().manual_seed(0))
    down_last = resized_crop(images / 255, boxes, size)
    across_last = resized_crop(images.mT / 255, boxes[:, [1, 0, 3, 2]], size).mT
    theirs = [
        functional.resized_crop(image, *box, [size, size], Image.Resampling.BICUBIC)
        for image, box in zip(_pillow(images), boxes.tolist(), strict=True)
    ]
    # which of its two passes Pillow makes first depends on its version and on the box
    largest = [
        (255 * ours - _levels(theirs)).abs().amax((1, 2, 3)) for ours in (down_last, across_last)
    ]
    assert float(torch.minimum(*largest).max()) < 1.5
    assert float((255 * down_last - _levels(theirs)).abs().mean()) < 0.05


def test_a_box_sees_nothing_outside_itself() -> None:
    image = torch.ones(1, 3, 40, 40)
    image[:, :, 8:30, 5:20] = 0.6
    crop = resized_crop(image, torch.tensor([[8, 5, 22, 15]]), 12)
    torch.testing.assert_close(crop, torch.full_like(crop, 0.6))


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 32, (0.08, 1.0)), (96, 96, (0.2, 1.0)), (40, 90, (0.5, 1))]
)
def test_boxes_are_drawn_like_torchvisions(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    count = 4000
    with fork_rng(1, torch.device("cpu")):
        ours = draw_boxes(count, height, width, scale, torch.default_generator)
        image = torch.empty(3, height, width)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)]
        )
    limit = kstwo.isf(1e-3, count // 2)
    for of in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        assert ks_2samp(of(ours), of(theirs)).statistic < limit
    assert bool((ours[:, :2] >= 0).all())
    assert bool((ours[:, :2] + ours[:, 2:] <= torch.tensor([height, width])).all())


def test_where_no_box_fits_it_is_torchvisions_middle() -> None:
    for height, width in ((10, 100), (100, 10)):
        theirs = RandomResizedCrop.get_params(
            torch.empty(3, height, width), (1.0, 1.0), (3 / 4, 4 / 3)
        )
        ours = draw_boxes(1, height, width, (1.0, 1.0), torch.Generator())
        assert ours.tolist() == [list(theirs)]


def test_blur_is_pillows_within_its_rounding(images: torch.Tensor) -> None:
    sigma = torch.linspace(0.1, 2.0, len(images))
    theirs = [
        image.filter(ImageFilter.GaussianBlur(radius))
        for image, radius in zip(_pillow(images), sigma.tolist(), strict=True)
    ]
    difference = 255 * blur(images / 255, sigma) - _levels(theirs)
    # Pillow rounds after each of six passes: half a level each
    assert float(difference.abs().max()) < 3.0
    assert abs(float(difference.mean())) < 0.1


def test_blur_has_the_variance_that_is_asked_for() -> None:
    point = torch.zeros(4, 1, 31, 31)
    point[:, :, 15, 15] = 1
    sigma = torch.tensor([0.3, 0.8, 1.4, 2.0])
    profile = blur(point, sigma).sum((1, 2))
    place = torch.arange(31) - 15.0
    torch.testing.assert_close((profile * place**2).sum(1), sigma**2, rtol=1e-3, atol=1e-4)


def test_jitter_is_torchvisions_in_each_images_order(images: torch.Tensor) -> None:
    # away from black and white, on floats: Pillow cuts fractions off after every part
    soft = 0.3 + 0.4 * images.double() / 255
    adjust = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]
    random = torch.Generator().manual_seed(3)
    order = torch.rand(len(soft), 4, generator=random).argsort(1)
    strengths = torch.tensor([0.4, 0.4, 0.2, 0.1])
    factors = strengths * (2 * torch.rand(len(soft), 4, generator=random) - 1)
    factors[:, :3] += 1
    assert len({tuple(row) for row in order.tolist()}) > 8
    ours = jitter(soft, factors.double(), order)
    for image, turns, own, view in zip(soft, order.tolist(), factors.tolist(), ours, strict=True):
        for part in turns:
            image = adjust[part](image, own[part])
        torch.testing.assert_close(view, image, rtol=0, atol=2e-3)


def test_every_image_has_a_draw_of_its_own() -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8, generator=random)
    same = image.expand(64, -1, -1, -1)
    jitters = {"prob": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    for change in (
        {"rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0}},
        {"color_jitter": jitters},
        {"gaussian_blur": {"prob": 1.0}},
    ):
        (view,) = _views(_plain(**change), same)
        assert len({tuple(one.flatten().tolist()) for one in view}) > 60, change


@pytest.mark.parametrize("name", ["color_jitter", "gaussian_blur", "equalization", "grayscale"])
def test_each_probability_is_that_of_the_configuration(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 200, (1, 3, 8, 8), dtype=torch.uint8, generator=random)
    image = image.repeat_interleave(3, 2).repeat_interleave(3, 3)  # 24 pixels: PIL equalizes those
    same = image.expand(2000, -1, -1, -1)
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    change = {"prob": 0.3, **(strengths if name == "color_jitter" else {})}
    (plain,) = _views(_plain(), same[:1])
    (view,) = _views(_plain(**{name: change}), same)
    acted = (view - plain).abs().amax((1, 2, 3)) > 1e-3
    assert float(acted.float().mean()) == pytest.approx(0.3, abs=0.04)


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


def test_where_no_image_is_drawn_nothing_happens(images: torch.Tensor) -> None:
    changes = {
        "color_jitter": {"prob": 1e-9, "brightness": 0.4, "contrast": 0.4, "hue": 0.1},
        "gaussian_blur": {"prob": 1e-9},
    }
    (view,) = _views(_plain(**changes), images[:1])
    torch.testing.assert_close(_raw(view), images[:1] / 255, atol=1e-4, rtol=0)


def test_views_never_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device `meta` there are no values: whoever waits for one there fails.

    What is drawn is drawn on the CPU, and all of a batch's is sent in one copy.
    """
    copies = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            kwargs = kwargs or {}
            moved = any(isinstance(one, torch.device) for one in args[1:])
            if function is torch.Tensor.to and moved and args[0].device != args[1]:
                copies.append(kwargs.get("non_blocking", False))
            return function(*args, **kwargs)

    pipeline = build_pipeline(OmegaConf.create(augmentation(crop_size=24)), MEAN, STD)
    patches = torch.empty(32, 3, 24, 24, dtype=torch.uint8, device="meta")
    # which is not made for `meta`
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    with fork_rng(0, torch.device("cpu")), Watch():
        views = make_views([pipeline, pipeline], patches, patches)
    assert [view.device.type for view in views] == 4 * ["meta"]
    assert copies == [True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_no_draw_depends_on_the_default_dtype(dtype: torch.dtype) -> None:
    """Which Lightning sets with a "true" precision: 303 would be 304 in bfloat16."""
    entries = [augmentation(crop_size=24), augmentation(crop_size=24, rrc={"enabled": False})]
    pipelines = [build_pipeline(OmegaConf.create(entry), MEAN, STD) for entry in entries]

    def drawn() -> list[torch.Tensor]:
        draws = draw_views(pipelines, 9, 303, 257, torch.Generator().manual_seed(0))
        return _tensors(draws)

    expected = drawn()
    torch.set_default_dtype(dtype)
    try:
        got = drawn()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_what_is_sent_arrives() -> None:
    random = torch.Generator().manual_seed(0)
    values = [
        torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=random),
        torch.randn(5, generator=random),
        torch.arange(0),
        torch.randn(0, 3),
        torch.randint(-9, 9, (1,), generator=random),
        torch.randn(4, 6, generator=random).T,
        torch.randn(3, dtype=torch.float64, generator=random),
        torch.tensor([True, False, True]),
    ]
    got = unpacked(packed(values, pin=False), values)
    for one, other in zip(values, got, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)
    meta = sent(values, torch.device("meta"))
    assert [(v.dtype, v.shape) for v in meta] == [(v.dtype, v.shape) for v in values]
    here = sent(values, torch.device("cpu"))
    assert all(one is other for one, other in zip(values, here, strict=True))


@pytest.mark.parametrize("both", [False, True])
def test_views_drawn_ahead_are_the_same(images: torch.Tensor, both: bool) -> None:
    twins = images.flip(0)
    entry = OmegaConf.create(augmentation(solarization={"prob": 0.2}, equalization={"prob": 0.2}))
    pipelines = [
        build_pipeline(OmegaConf.merge(entry, {"crop_size": size}), MEAN, STD) for size in (24, 12)
    ]
    with fork_rng(5, torch.device("cpu")):
        expected = make_views(pipelines, images, twins, both=both)
        after = torch.get_rng_state()
    state = torch.get_rng_state()
    random = torch.Generator().manual_seed(5)
    count, _, height, width = images.shape
    drawn = draw_views(pipelines, count, height, width, random, both=both)
    before = [tensor.clone() for tensor in _tensors(drawn)]
    for _ in range(2):  # nothing that was drawn is used up
        views = apply_views(pipelines, images, twins, drawn, both=both)
        assert all(torch.equal(*pair) for pair in zip(views, expected, strict=True))
    assert all(map(torch.equal, before, _tensors(drawn)))
    assert torch.equal(random.get_state(), after)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("grayscale", K.RandomGrayscale(p=0.4)),
        ("solarization", K.RandomSolarize(thresholds=(0.5, 0.5), additions=0.0, p=0.4)),
        ("horizontal_flip", K.RandomHorizontalFlip(p=0.4)),
    ],
)
def test_draws_and_images_are_those_of_kornias_modules(
    images: torch.Tensor, name: str, theirs: Any
) -> None:
    pipeline = build_pipeline(_plain(**{name: {"prob": 0.4}}), (0, 0, 0), (1, 1, 1))
    ours, plain = [], []
    with fork_rng(2, torch.device("cpu")):
        ours += make_views([pipeline], images, images)
        ours.append(torch.rand(3))
    with fork_rng(2, torch.device("cpu")):
        (crop,) = make_views([build_pipeline(_plain(), (0, 0, 0), (1, 1, 1))], images, images)
        plain += [theirs(crop), torch.rand(3)]
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    assert 0 < int((ours[0] != crop).any((1, 2, 3)).sum()) < len(images)


def test_hue_is_kornias() -> None:
    random = torch.Generator().manual_seed(0)
    image = torch.rand(48, 3, 24, 24, generator=random)
    image[:16] = (6 * image[:16]).round() / 6  # ties between channels, grey, black and white
    image[16:32] = (255 * image[16:32]).round() / 255
    angle = math.pi * (2 * torch.rand(48, generator=random) - 1)
    angle[::5] *= 1e-7
    before = image.clone()
    difference = (turn_hue(image, angle) - adjust_hue(image, angle)).abs()
    assert float(difference.max()) < 1e-6
    assert torch.equal(image, before)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'rotate'.*horizontal_flip"):
        build_pipeline(_plain(rotate={"prob": 1.0}), MEAN, STD)
