"""Views of whole batches, and the small backbone, through solo-learn's own training step."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from PIL import Image
from torch import distributed
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.datasets import ImageFolder

from solo_infoaug.errors import ConfigError
from solo_infoaug.host.small import SMALL, SmallResNet
from solo_infoaug.training import pretrain
from solo_infoaug.training.batches import WholeBatches, _Rows, on_device, whole_batches
from solo_infoaug.training.data import read_image
from solo_infoaug.views import make_views, run_pipelines


def _folder(path: Path, sizes: list[int]) -> ImageFolder:
    """An image a class, each of one grey."""
    for number, size in enumerate(sizes):
        (path / f"{number}").mkdir(parents=True)
        image = np.full((size, size, 3), 40 * number + 20, np.uint8)
        Image.fromarray(image).save(path / f"{number}" / "image.png")
    return ImageFolder(str(path), loader=read_image)


def test_a_batch_is_solo_learns(host: Any, make_cfg: Callable[..., Any], tmp_path: Path) -> None:
    cfg = host.parse_cfg(make_cfg("simclr", None))
    for entry in cfg.augmentations:  # leave the greys as they are
        entry.color_jitter.prob = entry.solarization.prob = entry.grayscale.prob = 0.0
    loader = whole_batches(
        _folder(tmp_path, [20] * 5), run_pipelines(host, cfg, cfg.augmentations), 2
    )
    torch.manual_seed(0)
    batches = list(loader)
    assert len(loader) == len(batches) == 2  # the fifth image is dropped
    rows = torch.cat([batch[0] for batch in batches])
    assert len(rows.unique()) == 4
    side = cfg.augmentations[0].crop_size
    for indices, views, labels in batches:
        assert torch.equal(indices, labels)
        assert [view.shape for view in views] == [(2, 3, side, side)] * cfg.data.num_large_crops
        order = [view.mean((1, 2, 3)).argsort() for view in views]
        assert all(torch.equal(of_view, labels.argsort()) for of_view in order)
    torch.manual_seed(0)
    assert torch.equal(torch.cat([batch[0] for batch in loader]), rows)


def _some_images(host: Any, make_cfg: Callable[..., Any]) -> WholeBatches:
    """40 random images, and two views of each by all operations of the tests' augmentations."""
    cfg = host.parse_cfg(make_cfg("simclr", None))
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 20, 20), dtype=torch.uint8, generator=random)
    return WholeBatches(images, torch.arange(40) % 7, run_pipelines(host, cfg, cfg.augmentations))


@pytest.mark.parametrize("room", [float("inf"), 40 * 3 * 20 * 20, 40 * 3 * 20 * 20 - 1, 0])
def test_where_images_lie_changes_no_bit(
    host: Any, make_cfg: Callable[..., Any], room: float
) -> None:
    batches = _some_images(host, make_cfg)
    rows = [3, 39, 0, 3]
    torch.manual_seed(5)
    views = make_views(batches.pipelines, *2 * [batches.images[rows]])
    after = torch.get_rng_state()
    batches.move(torch.device("cpu"), room)
    assert batches.kept == (room >= batches.images.nbytes)
    torch.manual_seed(5)
    index, ours, labels = batches[rows]
    assert index.tolist() == rows
    assert labels.tolist() == [3, 4, 0, 3]
    assert len(ours) == len(views) == 2
    assert all(map(torch.equal, ours, views))
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("infoaug", [False, True])
def test_a_run_is_the_same_from_either_memory(
    make_cfg: Callable[..., Any], twins_folder: Path, infoaug: bool
) -> None:
    results, kept = [], []

    class Watch(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            kept.append(trainer.train_dataloader.dataset.kept)

    for memory in (None, 0):
        settings = {"twins": str(twins_folder)} if infoaug else None
        keys = {"data.whole_batches": True, "data.device_memory": memory}
        cfg = make_cfg("byol", settings, **keys, **{"max_epochs": 1, "checkpoint.enabled": False})
        results.append(pretrain(cfg, [Watch()]).model.state_dict())
    assert kept == [True, False]
    one, other = results
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_batch_is_one_copy_to_the_device_and_waits_for_nothing(
    host: Any, make_cfg: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device `meta` there are no values: whoever waits for one there fails."""
    sent: list[int] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            moved = any(isinstance(one, torch.device) for one in args[1:])
            if function is torch.Tensor.to and moved and args[0].device != args[1]:
                assert (kwargs or {})["non_blocking"]
                sent.append(args[0].nbytes)
            return function(*args, **(kwargs or {}))

    # which is not made for `meta`
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    for room in (float("inf"), 0):
        batches = _some_images(host, make_cfg)
        batches.move(torch.device("meta"), room)
        torch.manual_seed(0)
        with Watch():
            index, views, labels = batches[list(range(32))]
        assert {one.device.type for one in (index, *views, labels)} == {"meta"}
    kept, from_host = sent
    assert from_host == kept + 32 * 3 * 20 * 20


@pytest.mark.parametrize(
    ("gib", "told"),
    [
        (None, r"0\.00 GiB of images stay .* cuda:0 has room for 0\.00 GiB \(by default 10% of "),
        (1e-6, r"has room for 0\.00 GiB \(data\.device_memory\); data\.device_memory=GIB sets it"),
        (0, None),
    ],
)
def test_images_that_do_not_fit_on_a_card_stay_and_it_is_said(
    host: Any,
    make_cfg: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gib: float | None,
    told: str | None,
) -> None:
    """The card of this test has 40 000 bytes free of 400 000; the images take 48 000."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40_000, 400_000))
    batches = _some_images(host, make_cfg)
    loader = DataLoader(batches, batch_size=None)
    (callback,) = on_device(loader, OmegaConf.create({"data": {"device_memory": gib}}))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)))
    callback.on_fit_start(trainer, None)
    assert not batches.kept
    assert batches.images.device.type == "cpu"
    assert batches.device == torch.device("cuda", 0)
    said = capsys.readouterr().out
    if told is None:
        assert said == ""
    else:
        assert re.search(told, said)
        assert said.count("\n") == 1


@pytest.mark.parametrize("value", [-1, "much", True])
def test_device_memory_is_a_number(make_cfg: Callable[..., Any], value: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.device_memory: expected a number of GiB ≥ 0"):
        pretrain(make_cfg("simclr", **{"data.device_memory": value}))


def test_several_processes_share_an_epoch(
    host: Any, make_cfg: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """39 images and 3 processes: 13 each, of which a batch of 4 leaves one out."""
    batches = _some_images(host, make_cfg)
    batches.images = batches.images[:39]
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    epochs = []
    for epoch in (0, 1):
        drawn = []
        for rank in range(3):
            monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
            rows = _Rows(batches, 4, seed=3)
            rows.set_epoch(epoch)
            mine = list(rows)
            assert len(rows) == len(mine) == 3
            assert [len(batch) for batch in mine] == [4] * 3
            drawn += [row for batch in mine for row in batch]
        assert len(set(drawn)) == len(drawn) == 36
        epochs.append(drawn)
    assert epochs[0] != epochs[1]
    # as of a solo-learn loader: torch's own order for that seed and epoch
    order: Any = DistributedSampler(batches, num_replicas=3, rank=2, seed=3)
    order.set_epoch(1)
    assert list(order)[:12] == epochs[1][24:]


def test_images_of_two_sizes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.whole_batches: expected images of one size"):
        whole_batches(_folder(tmp_path, [20, 24]), [], 1)


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_small_backbone_trains_on_either_host(
    host: Any, make_cfg: Callable[..., Any], steps: Any, twins_folder: Path, method: str
) -> None:
    cfg = make_cfg(method, {"twins": str(twins_folder)})
    cfg.backbone = {"name": SMALL, "kwargs": {}}
    cfg = host.parse_cfg(cfg)
    run = steps(host.methods[method](cfg), cfg)
    backbone = run.module.backbone
    count = sum(p.numel() for p in backbone.parameters())
    assert 300_000 < count < 1_000_000
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, run.module.features_dim)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    run.run(2)
    assert all(not torch.equal(before[name], p) for name, p in backbone.named_parameters())


def test_standardized_backbone_sees_neither_light_nor_contrast(host: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    for standardize in (True, False):
        backbone = host.backbones[SMALL]("simclr", standardize=standardize).eval()
        same = torch.allclose(backbone(images), backbone(0.3 * images + 2.0), atol=1e-4)
        assert same == standardize
        assert not torch.allclose(backbone(images), backbone(images.flip(1)), atol=1e-4)
        # the weights say it, to whoever loads them
        loaded = SmallResNet().eval()
        loaded.load_state_dict(backbone.state_dict())
        assert torch.equal(loaded(images), backbone(images))
