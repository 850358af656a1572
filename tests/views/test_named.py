"""Kornia's own augmentations in a pipeline, and ours used as Kornia's."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import pytest
import torch
from augmentations import augmentation
from omegaconf import OmegaConf
from torch import Tensor

from solo_infoaug.errors import ConfigError
from solo_infoaug.twin.randomness import fork_rng
from solo_infoaug.views import operations as ops
from solo_infoaug.views.named import NAMED, Seeded, drawn_by
from solo_infoaug.views.pipeline import (
    apply_views,
    build_pipeline,
    draw_views,
    make_views,
    packed,
    send,
    unpacked,
)

SIZE = 16
CPU = torch.device("cpu")
SAME = {"size": [SIZE, SIZE]}
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CenterCrop": SAME,
    "ColorJiggle": JITTER,
    "ColorJitter": JITTER,
    "Denormalize": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]},
    "LongestMaxSize": {"max_size": SIZE},
    "Normalize": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]},
    "PadTo": SAME,
    "RandomAffine": {"degrees": 20.0, "translate": [0.1, 0.2], "scale": [0.8, 1.2], "shear": 5.0},
    "RandomCrop": {**SAME, "padding": 2},
    "RandomFisheye": {"center_x": [-0.3, 0.3], "center_y": [-0.3, 0.3], "gamma": [0.9, 1.1]},
    "RandomGaussianBlur": {"kernel_size": [3, 3], "sigma": [0.1, 2.0]},
    "RandomMotionBlur": {"kernel_size": [3, 5], "angle": 20.0, "direction": 0.5},
    "RandomRain": {"drop_height": [2, 5]},
    "RandomResizedCrop": SAME,
    "RandomRotation": {"degrees": 20.0},
    "RandomRotation90": {"times": [-3, 3]},
    "RandomShear": {"shear": 10.0},
    "RandomTranslate": {"translate_x": [0.1, 0.2]},
    "Resize": SAME,
    "SmallestMaxSize": {"max_size": SIZE},
}
"""What has no default."""

NAMES = sorted(set(NAMED) - {"RandomDissolving"})  # which needs a network


@pytest.fixture
def images() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, SIZE, SIZE), dtype=torch.uint8, generator=random)


def _entry(**changes: Any) -> Any:
    """Nothing but a crop, which takes the whole image, and `changes`."""
    off = ("color_jitter", "grayscale", "gaussian_blur", "solarization", "horizontal_flip")
    entry = augmentation(rrc={"enabled": False}, crop_size=SIZE, num_crops=1)
    return OmegaConf.create({**entry, **{key: {"prob": 0.0} for key in off}, **changes})


def _raw(**changes: Any) -> Any:
    """Their pipeline, which leaves levels in [0, 1]."""
    return build_pipeline(_entry(**changes), [0.0] * 3, [1.0] * 3)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _kornias(name: str) -> Any:
    given = {key: _tuples(value) for key, value in ARGUMENTS.get(name, {}).items()}
    if name == "RandomFisheye":
        given = {key: torch.tensor(value) for key, value in given.items()}
    return getattr(K, name)(**given)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_named_augmentation_is_kornias(images: Tensor, name: str) -> None:
    """Its views are those that Kornia draws and makes after `torch.manual_seed`."""
    with fork_rng(3, CPU):
        expected = _kornias(name)(images / 255)
    state = torch.get_rng_state()
    pipeline = _raw(**{name: ARGUMENTS.get(name, {})})

    def drawn() -> list[Any]:
        return draw_views([pipeline], len(images), SIZE, SIZE, random.manual_seed(3))

    random = torch.Generator()
    first = drawn()
    values = [value for one in first for value in one.values()]
    copied = iter(unpacked(packed(values, pin=False), values))  # as they reach a card
    for given in (first, first, [{key: next(copied) for key in one} for one in first]):
        (view,) = apply_views([pipeline], images, images, given)
        torch.testing.assert_close(view, expected, rtol=0, atol=0, equal_nan=True)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            again = drawn()
        finally:
            torch.set_default_dtype(torch.float32)
        for one, other in zip(first, again, strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                torch.testing.assert_close(other[key], value, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(state, torch.get_rng_state())


def test_each_image_is_drawn_by_itself() -> None:
    same = torch.rand(1, 3, SIZE, SIZE).mul(255).byte().expand(64, -1, -1, -1)
    (view,) = make_views([_raw(RandomPerspective={"p": 1.0})], same, same)
    assert len({tuple(one.flatten().tolist()) for one in view}) == 64
    white = torch.full((2000, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    (view,) = make_views([_raw(RandomErasing={"p": 0.3})], white, white)
    erased = (view == 0).any(1).any(1).any(1)
    assert float(erased.float().mean()) == pytest.approx(0.3, abs=0.04)


def test_named_augmentations_come_last_and_before_the_normalization(images: Tensor) -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    entry = _entry(RandomInvert={"p": 1.0}, RandomVerticalFlip={"p": 1}, solarization={"prob": 1})
    (view,) = make_views([build_pipeline(entry, mean.tolist(), std.tolist())], images, images)
    level = images / 255
    turned = 1 - torch.where(level < 0.5, level, 1 - level).flip(2)
    torch.testing.assert_close(view * std[:, None, None] + mean[:, None, None], turned)
    off = _raw(RandomInvert=False, RandomVerticalFlip=None)
    assert len(off.operations) == len(_raw().operations) == 2
    assert type(_raw(RandomInvert=True).operations[1]) is K.RandomInvert


def test_kornia_true_takes_kornias_own() -> None:
    images = torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8)
    entry = OmegaConf.create(augmentation(num_crops=1, kornia=True, solarization={"prob": 0.0}))
    pipeline = build_pipeline(entry, [0.0] * 3, [1.0] * 3)
    theirs = torch.nn.Sequential(
        K.RandomResizedCrop((16, 16), (0.3, 1.0), resample="bicubic", cropping_mode="resample"),
        K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=0.5),
        K.RandomHorizontalFlip(p=0.5),
    )
    with fork_rng(1, CPU):
        (view,) = make_views([pipeline], images, images)
    with fork_rng(1, CPU):
        expected = theirs(images / 255)
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-6)
    whole = _raw(kornia=True, crop_size=8)
    (view,) = make_views([whole], images, images)
    assert type(whole.operations[0]) is K.Resize
    assert (
        float((view - images.view(6, 3, 8, 3, 8, 3).float().mean((3, 5)) / 255).abs().mean()) < 0.1
    )


def test_a_thread_and_the_global_generator_do_not_meet() -> None:
    pipeline = _raw(RandomPlasmaBrightness={"p": 0.5}, RandomAffine={"degrees": 9.0})

    def draw() -> list[Any]:
        drawn = []
        for seed in range(40):
            random = torch.Generator().manual_seed(seed)
            drawn += draw_views([pipeline], 4, SIZE, SIZE, random)
        return [value for one in drawn for value in one.values()]

    alone = draw()
    ahead: list[list[Any]] = []
    thread = threading.Thread(target=lambda: ahead.append(draw()))
    with fork_rng(7, CPU):
        expected = torch.rand(100_000)
    with fork_rng(7, CPU):
        thread.start()
        got: list[Tensor] = []
        meanwhile = 0
        while len(got) < 1000:
            got.append(torch.rand(100))
            meanwhile += thread.is_alive()
        thread.join()
    assert meanwhile > 0
    assert torch.equal(torch.cat(got), expected)
    assert all(map(torch.equal, ahead[0], alone))


def test_no_draw_escapes() -> None:
    state = torch.get_rng_state()
    with Seeded(torch.Generator().manual_seed(0)):
        torch.rand(2), torch.randn(2), torch.randperm(3), torch.randint(0, 5, (2,))
        torch.empty(3).uniform_(), torch.bernoulli(torch.tensor([0.5]))
        torch.distributions.Beta(1.0, 2.0).sample((2,))
        with pytest.raises(RuntimeError, match="global generator alone"):
            torch.native_dropout(torch.ones(3), 0.5, True)
    with Seeded(None), pytest.raises(RuntimeError, match="cannot be drawn ahead"):
        torch.rand(2)
    assert torch.equal(state, torch.get_rng_state())


class _Noise(K.IntensityAugmentationBase2D):
    """Draws while it is applied, which a module of Kornia's must not."""

    def apply_transform(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        return input + torch.rand_like(input)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("RandomPerspectiv", {}, r"unknown key 'RandomPerspectiv'; did you mean RandomPerspective"),
        ("rotate", {}, r"did you mean RandomRotation or .*expected color_jitter, .*, or the name"),
        ("RandomPerspective", {"distorsion": 1}, r"\.RandomPerspective\.distorsion: .*on_scale\?"),
        ("RandomPerspective", {"distortion_scale": 7}, r"\.RandomPerspective: .*\[0, 1\]. Got 7"),
        ("RandomPerspective", 3, r"RandomPerspective: expected true, false or a mapping .*got 3"),
        ("RandomAffine", {}, r"RandomAffine: .*missing 1 required .*'degrees'"),
        ("RandomJigsaw", {"grid": [5, 5]}, r"RandomJigsaw: .*must be divisible by grid"),
        ("CenterCrop", {"size": 12}, r"CenterCrop: expected views of 16 × 16 .*, got '12 × 12'"),
        ("RandomCutMixV2", {}, r"RandomCutMixV2: .*mixes images, .*masks, boxes or labels"),
        ("RandomTransplantation", {}, r"RandomTransplantation: .*masks, boxes or labels"),
        ("RandomAffine3D", {}, r"RandomAffine3D: .*is for volumes or video"),
        ("VideoSequential", {}, r"VideoSequential: .*volumes or video"),
        ("AugmentationSequential", {}, r"AugmentationSequential: .*not an augmentation by itself"),
        ("kornia", "yes", r"augmentations\.kornia: expected true or false, got 'yes'"),
        ("_Noise", {}, r"_Noise: .*draws while it is applied"),
    ],
)
def test_errors_name_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, key: str, given: Any, expected: str
) -> None:
    monkeypatch.setitem(NAMED, "_Noise", _Noise)
    with pytest.raises(ConfigError, match=expected) as caught:
        _raw(**{key: given})
    assert "\n" not in str(caught.value)


OURS = [
    ops.ColorJitter(0.5, (0.4, 0.4, 0.2, 0.1)),
    ops.GaussianBlur(p=0.5),
    ops.Grayscale(p=0.5),
    ops.Solarize(p=0.5),
    ops.HorizontalFlip(p=0.5),
    ops.Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
    ops.ResizedCrop(12, (0.2, 1.0)),
]


@pytest.mark.parametrize("ours", OURS, ids=lambda ours: type(ours).__name__)
def test_ours_can_be_used_as_kornias(images: Tensor, ours: Any) -> None:
    """Draw, replay, and stand in a sequence; none changes the image that it is given."""
    assert isinstance(ours, K.IntensityAugmentationBase2D | K.GeometricAugmentationBase2D)
    image = images / 255
    before = image.clone()
    with fork_rng(2, CPU):
        once = ours(image)
    assert torch.equal(image, before)
    assert not torch.equal(once, image)
    params = ours._params
    torch.testing.assert_close(ours(image, params=params), once, rtol=0, atol=0)
    pipeline_way = ours.change_(image.clone(), params)
    torch.testing.assert_close(pipeline_way, once, rtol=0, atol=1e-6)
    if "chosen" in params:
        kept = params["batch_prob"] == 0
        assert 0 < int(kept.sum()) < len(image)
        assert torch.equal(once[kept], image[kept])
    with fork_rng(2, CPU):
        assert torch.equal(K.AugmentationSequential(ours)(image), once)


def test_the_matrix_of_a_crop_takes_its_box_to_the_view(images: Tensor) -> None:
    crop = ops.ResizedCrop(12, (0.2, 1.0))
    crop(images / 255)
    top, left, tall, wide = crop._params["boxes"].unbind(1)
    # edges lie half a pixel from the centres that are counted
    ends = torch.stack([left - 0.5, top - 0.5, left + wide - 0.5, top + tall - 0.5], dim=1)
    corners = torch.cat([ends.view(-1, 2, 2), torch.ones(len(ends), 2, 1)], dim=2)
    found = (corners @ crop.transform_matrix.mT)[..., :2]
    expected = torch.tensor([[-0.5, -0.5], [11.5, 11.5]]).expand_as(found)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_what_kornia_reads_on_the_host_stays_there() -> None:
    pipeline = _raw(ColorJitter={**JITTER, "p": 1.0}, RandomErasing=True)
    drawn = draw_views([pipeline], 4, SIZE, SIZE, torch.Generator().manual_seed(0))
    there, (labels,) = send(drawn, torch.device("meta"), torch.arange(4))
    kept = {name for one in there for name, value in one.items() if value.device == CPU}
    assert kept == {"order", "forward_input_shape"}
    assert labels.device.type == "meta"
    assert [one.keys() for one in there] == [one.keys() for one in drawn]


def test_the_example_of_the_page_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "views.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    for text in (block, block.replace("# kornia", "kornia")):
        (entry,) = OmegaConf.create(text).infoaug.augmentations
        pipeline = build_pipeline(entry, [0.5] * 3, [0.25] * 3)
        names = [type(operation).__name__ for operation in pipeline.operations]
        assert names[-3:] == ["RandomPerspective", "RandomErasing", "Normalize"]
    assert names[0] == "RandomResizedCrop"


def test_parameters_have_kornias_names() -> None:
    drawn = drawn_by(K.RandomAffine(10.0), (4, 3, SIZE, SIZE), torch.Generator().manual_seed(0))
    assert drawn["angle"].shape == drawn["batch_prob"].shape == (4,)
    assert len(set(drawn["angle"].tolist())) == 4
