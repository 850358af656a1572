"""Where a run ends, it says what to do: Lightning's late refusals, what exports are in timm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import DictConfig
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from solo_infoaug import evaluation
from solo_infoaug.cli import app
from solo_infoaug.doctor import findings
from solo_infoaug.errors import ConfigError
from solo_infoaug.host import HostInfo, find_host, wanted_by_host
from solo_infoaug.training import pretrain


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("limit_train_batches", 0.01, r"0\.01 \* \d+ < 1.*limit_train_batches"),
        ("val_check_interval", 50, r"`val_check_interval` \(50\) must be less"),
    ],
)
def test_what_depends_on_the_data_is_refused_in_one_line(
    make_cfg: Callable[..., DictConfig], key: str, value: float, why: str
) -> None:
    with pytest.raises(ConfigError, match=f"Lightning's Trainer refuses this run: .*{why}") as got:
        pretrain(make_cfg("simclr", **{key: value}))
    assert "\n" not in str(got.value)


@pytest.mark.skipif(find_host().kind == "release", reason="the release has no online k-NN")
def test_knn_needs_the_torchmetrics_of_solo_learn(make_cfg: Callable[..., DictConfig]) -> None:
    cfg = make_cfg("simclr", **{"knn_eval.enabled": True})
    with pytest.raises(ConfigError, match=r"knn_eval\.enabled: .* needs torchmetrics<0\.12"):
        pretrain(cfg)
    told = {finding.name: finding for finding in findings() if not finding.good}
    assert "solo-learn requires <0.12" in told["torchmetrics"].value


def test_bounds_of_solo_learn_are_read(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "-r other.txt\n\ntorch>=1.10.0\neinops\ntorchmetrics>=0.6.0, <0.12.0  # k-NN\n"
    )
    current = HostInfo("current", tmp_path, "1", "")
    wanted = {"torch": ">=1.10.0", "torchmetrics": "<0.12.0,>=0.6.0"}
    assert wanted_by_host(current) == wanted
    assert wanted_by_host(HostInfo("release", tmp_path, "1", "")) == {}


def test_export_of_a_transformer_says_how_timm_makes_it(
    make_cfg: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = make_cfg("simclr", max_epochs=1)
    cfg.backbone = {"name": "vit_tiny", "kwargs": {"img_size": 16, "patch_size": 8}}
    checkpoint, out = pretrain(cfg).checkpoint, tmp_path / "backbone.safetensors"
    run = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(out)])
    said = 'timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, num_classes=0)'
    assert said in run.output
    with safe_open(out, "pt") as file:
        notes = file.metadata()
    model = timm.create_model(notes["timm"], **json.loads(notes["timm_arguments"])).eval()
    model.load_state_dict(load_file(out))
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = evaluation.load_backbone(str(checkpoint)).module.cpu()(image)
    torch.testing.assert_close(model(image), expected)
