"""All views of a step in one pass: what a pass each gives."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from augmentations import augmentation
from lightning.pytorch.plugins.precision import DoublePrecision
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from twin_methods import KIND

from solo_infoaug.twin import joined, stacked


def _check_both_ways(run: Any) -> None:
    """Views together give what each alone does: what is logged, gradients, and the state.

    In double precision: of float32's roundings these few images make as much as 1e-4.
    """
    module, number, (index, views, labels) = run.module.double(), run.start(), run.batch()
    batch = [index, [view.double() for view in views], labels]
    run.trainer.precision_plugin = DoublePrecision()
    state, results = copy.deepcopy(module.state_dict()), []
    for module.twin_branch.one_pass in (True, False):
        module.load_state_dict(state)
        module.zero_grad(set_to_none=True)
        module.training_step(batch, number).backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        results.append((dict(run.logged), gradients, copy.deepcopy(module.state_dict())))
        assert not any("forward" in vars(layer) for layer in module.modules())
    one, each = results
    assert one[1].keys() == each[1].keys()
    for name, gradient in each[1].items():
        assert (one[1][name] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-12, name
    torch.testing.assert_close(one[::2], each[::2], rtol=1e-9, atol=1e-12)


def _alone(monkeypatch: pytest.MonkeyPatch, channels: tuple[int, ...]) -> None:
    """Let views pass one by one the stages that begin with these numbers of channels."""

    def largest(stage: Any, images: Any) -> float:
        first = stage[0] if len(stage) > 1 else stage[0][0].conv1
        return float("inf") if first.in_channels in channels else 0

    monkeypatch.setattr(joined, "largest_activation", largest)


# the tests' ResNet-18 has 21 convolutions, 1 in its stem and 5 in its first layer
@pytest.mark.parametrize(("alone", "together"), [((), 21), ((3,), 20), ((3, 64), 15)])
@pytest.mark.parametrize("batch_norm", ["shared", "separate", "frozen"])
@pytest.mark.parametrize("method", ["byol", "simclr"])
def test_views_in_one_pass_are_those_of_a_pass_each(
    build: Callable[..., Any],
    twins_folder: Path,
    method: str,
    batch_norm: str,
    alone: tuple[int, ...],
    together: int,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever layers they pass together; there are 8 images and 4 pairs."""
    _alone(monkeypatch, alone)
    run = build(method, {"twins": str(twins_folder), "batch_norm": batch_norm, "batch_size": 4})
    _check_both_ways(run)
    assert Counter(passes) == Counter([24] * together + [8, 8, 4, 4] * (42 - together))


def test_views_pass_layers_together_whose_weights_outweigh_activations(
    build: Callable[..., Any], passes: list[int]
) -> None:
    """32 images of 64 channels and 8 × 8 pixels have 512 KiB, the stem's weights 37."""
    run = build("simclr")
    run.module.training_step(run.batch(), run.start())
    assert passes == [8] * 4 + [32] * 20
    # somebody may have taken a layer's place
    unknown, images = [torch.nn.Identity()], [torch.zeros(2, 3, 5, 5)] * 4
    assert joined.largest_activation(unknown, images) == 8 * 75 * 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch_norm", ["shared", "separate", "frozen"])
@pytest.mark.parametrize("method", ["byol", "simclr", "mocov2plus"])
def test_views_side_by_side_are_those_of_a_pass_each(
    build: Callable[..., Any],
    twins_folder: Path,
    method: str,
    batch_norm: str,
    layout: torch.memory_format,
    passes: list[int],
) -> None:
    """What a card does, where views of one size share a batch norm; twice, as counts go on."""
    run = build(method, {"twins": str(twins_folder), "batch_norm": batch_norm, "batch_size": 8})
    run.module.to(memory_format=layout)
    run.module.twin_branch.few_operations = True
    _check_both_ways(run)
    if batch_norm != "frozen":
        assert Counter(passes) == Counter([32] * 21 + [8] * 84)


@pytest.mark.parametrize("method", ["byol", "simclr", "mocov2plus"])
def test_side_by_side_takes_fewer_operations_than_the_plain_method(
    build: Callable[..., Any], twins_folder: Path, method: str
) -> None:
    """With twice the images, in the layout that solo-learn trains in; and half of a pass each."""
    counts = []
    for infoaug, batch, one_pass in ((None, 16, None), (True, 8, True), (True, 8, False)):
        run = build(method, {"twins": str(twins_folder), "batch_size": 8} if infoaug else None)
        module = run.module.to(memory_format=torch.channels_last)
        given = run.batch()
        views = [torch.cat([view, view])[:batch] for view in given[1]]
        given = [torch.cat([given[0]] * 2)[:batch], views, torch.cat([given[2]] * 2)[:batch]]
        number = run.start()
        if infoaug:
            branch = module.twin_branch
            branch.one_pass, branch.few_operations = one_pass, True
            twins = branch.batch(number)
            branch.batch = lambda _, twins=twins: twins
        module.training_step(given, number).backward()
        module.zero_grad()
        with _Operations() as seen:
            module.training_step(given, number).backward()
            for pair in getattr(module, "momentum_pairs", []):
                module.momentum_updater.update(*pair)
        counts.append(seen.number)
    plain, together, each = counts
    assert together <= (0.75 if method == "simclr" else 0.6) * plain
    assert together <= 0.45 * each


def test_convolution_of_views_side_by_side_is_autocasts() -> None:
    """Whole numbers are exact in bfloat16, so the order of additions is all one."""
    random = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(4, 5, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape, generator=random))
    images = torch.randint(-1, 2, (2, 4, 6, 6), generator=random).float()
    target = torch.randint(-1, 2, (2, 5, 6, 6), generator=random)
    results = []
    for forward in (layer, partial(stacked._convolve, layer)):
        given, layer.weight.grad = images.clone().requires_grad_(), None
        with torch.autocast("cpu", torch.bfloat16):
            out = forward(given)
        (out * target).sum().backward()
        results.append((out, given.grad, layer.weight.grad))
    for usual, ours in zip(*results, strict=True):
        assert usual.dtype == ours.dtype
        assert torch.equal(usual, ours)
    assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)


class _Operations(TorchDispatchMode):
    """How many are asked for that are more than another view of the same memory."""

    _VIEWS = ("view", "_unsafe_view", "t", "transpose", "expand", "split", "split_with_sizes",
              "unbind", "select", "slice", "detach", "unsqueeze", "squeeze", "permute", "alias",
              "as_strided")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.number += function.overloadpacket.__name__ not in self._VIEWS
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(KIND == "release", reason="solo-learn 1.0.2's SwAV takes two crops")
def test_crops_of_a_size_pass_together(
    build: Callable[..., Any], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _alone(monkeypatch, ())
    views = [augmentation(), augmentation(crop_size=8, num_crops=4)]
    run = build("swav", augmentations=views)
    _check_both_ways(run)
    assert passes[:84] == ([2 * 8] * 21 + [4 * 8] * 21) * 2  # running statistics keep their order


@pytest.mark.parametrize("strange", ["hook", "another", "changed", "twice"])
def test_what_must_pass_alone_does(
    build: Callable[..., Any], passes: list[int], strange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks see views as they are given; another backbone may draw random numbers.

    A method may give its backbone something else than the loader's views, or a view again.
    """
    _alone(monkeypatch, ())
    run = build("simclr")
    module = run.module
    given: list[int] = []
    step = module._base_shared_step

    def other(images: torch.Tensor, *args: Any) -> Any:
        if strange == "changed":
            return step(images + 0, *args)
        step(images, *args)
        return step(images, *args)

    if strange == "hook":
        layer = module.backbone.layer4
        layer.register_forward_hook(lambda _, images, __: given.append(len(images[0])))
    elif strange == "another":

        class Dropping(type(module.backbone)):  # type: ignore[misc]
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return F.dropout(super().forward(images), 0.5)

        module.backbone.__class__ = Dropping
    else:
        monkeypatch.setattr(module, "_base_shared_step", other)
    module.training_step(run.batch(), run.start())
    expected = {
        "hook": [8] * 84,
        "another": [8] * 84,
        "changed": [8] * 42 + [16] * 21,
        "twice": [32] * 21 + [8] * 42,
    }
    assert passes == expected[strange]
    assert given == ([8] * 4 if strange == "hook" else [])
