"""Views of whole batches, and the small backbone, through solo-learn's own training step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from solo_infoaug.errors import ConfigError
from solo_infoaug.host.small import SMALL, SmallResNet
from solo_infoaug.training.batches import whole_batches
from solo_infoaug.training.data import read_image
from solo_infoaug.views import run_pipelines


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
