"""Pretraining from configurations, checkpoints and resuming, and what reads a checkpoint."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18

from solo_infoaug import evaluation
from solo_infoaug.config import write_infoaug
from solo_infoaug.errors import ConfigError
from solo_infoaug.training import TrainingResult, choose_device, load_config, pretrain


def _rows(result: TrainingResult) -> list[dict[str, str]]:
    assert result.folder is not None
    with (result.folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(
    host: Any, twins_folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrainingResult]:
    """A baseline and an InfoAug run of one epoch, in the same checkpoint folder."""
    results = {}
    folder = tmp_path_factory.mktemp("trained")
    for name, infoaug in (("baseline", None), ("infoaug", {"twins": str(twins_folder)})):
        cfg = OmegaConf.create(
            json.loads(json.dumps(OmegaConf.to_container(_small(image_folder, folder))))
        )
        if infoaug is not None:
            cfg.infoaug = infoaug
        results[name] = pretrain(cfg)
    return results


def _small(image_folder: Path, folder: Path) -> Any:
    from solo_infoaug.paths import config_folder

    return load_config(
        config_folder() / "demo",
        "simclr",
        [
            f"data.train_path='{image_folder}'",
            f"checkpoint.dir='{folder}'",
            "optimizer.batch_size=8",
            "max_epochs=1",
            "method_kwargs.proj_hidden_dim=16",
            "method_kwargs.proj_output_dim=8",
            "++enable_progress_bar=false",
            "++enable_model_summary=false",
            "augmentations.0.crop_size=16",
        ],
    )


def test_run_leaves_checkpoint_args_and_metrics(trained: dict[str, TrainingResult]) -> None:
    for name, result in trained.items():
        assert result.folder is not None
        assert result.checkpoint is not None
        assert result.checkpoint.is_file()
        args = json.loads((result.folder / "args.json").read_text())
        assert ("infoaug" in args) == (name == "infoaug")
        rows = _rows(result)
        assert any(row.get("train_nce_loss_step") for row in rows)
        assert any(row.get("twin_loss_step") for row in rows) == (name == "infoaug")
    args = json.loads((trained["infoaug"].folder / "args.json").read_text())  # type: ignore[operator]
    assert len(args["infoaug"]["fingerprint"]) >= 8
    assert args["infoaug"]["arm"] == "mi"


def test_both_runs_see_the_same_data(trained: dict[str, TrainingResult]) -> None:
    """The first loss is computed before any update: equal weights and views give equal losses."""
    first = [
        next(row["train_nce_loss_step"] for row in _rows(result) if row["train_nce_loss_step"])
        for result in trained.values()
    ]
    assert first[0] == first[1]


def test_auto_resume_takes_only_its_own_kind(
    host: Any, trained: dict[str, TrainingResult], image_folder: Path, twins_folder: Path
) -> None:
    for name, infoaug in (("baseline", None), ("infoaug", {"twins": str(twins_folder)})):
        folder = trained[name].folder
        assert folder is not None
        cfg = _small(image_folder, folder.parent.parent)
        if infoaug is not None:
            cfg.infoaug = infoaug
        cfg.auto_resume = {"enabled": True}
        choose_device(cfg)
        cfg = host.parse_cfg(cfg)
        host.methods["simclr"](cfg)
        found, _ = host.find_checkpoint(cfg)
        assert found is not None
        assert Path(found) == trained[name].checkpoint
        if infoaug is not None:
            cfg.infoaug.weight = 0.5
            assert host.find_checkpoint(cfg)[0] is None
            write_infoaug(cfg, None)
            assert Path(host.find_checkpoint(cfg)[0]) == trained["baseline"].checkpoint


@pytest.mark.parametrize("wanted", ["baseline", "infoaug"])
def test_explicit_resume_of_the_other_kind_is_refused(
    trained: dict[str, TrainingResult],
    image_folder: Path,
    twins_folder: Path,
    tmp_path: Path,
    wanted: str,
) -> None:
    other = trained["infoaug" if wanted == "baseline" else "baseline"]
    cfg = _small(image_folder, tmp_path)
    cfg.max_epochs = 2
    cfg.resume_from_checkpoint = str(other.checkpoint)
    if wanted == "infoaug":
        cfg.infoaug = {"twins": str(twins_folder)}
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint: the checkpoint is that of"):
        pretrain(cfg)


def test_checkpoint_evaluates_and_exports(
    trained: dict[str, TrainingResult], tmp_path: Path
) -> None:
    checkpoint = trained["infoaug"].checkpoint
    assert checkpoint is not None
    scores = evaluation.evaluate(checkpoint)
    assert set(scores) == {"knn", "linear"}
    assert all(10 < value <= 100 for value in scores.values())

    for ending in (".safetensors", ".pth"):
        out = tmp_path / f"backbone{ending}"
        evaluation.export(checkpoint, out)
        state = load_file(out) if ending == ".safetensors" else torch.load(out, weights_only=True)
        model = resnet18()
        model.fc = nn.Identity()
        keys = model.load_state_dict(state, strict=True)
        assert not keys.missing_keys
        assert not keys.unexpected_keys
        backbone = evaluation.load_backbone(checkpoint).module
        image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model.eval()(image), backbone.cpu()(image))


def test_recall_counts_patches_that_find_themselves() -> None:
    features = torch.eye(4)
    assert evaluation.reidentification_recall(features, features) == 100
    assert evaluation.reidentification_recall(features, features.roll(1, 0)) == 0
    half = torch.cat([features[:2], features[2:].flip(0)])
    assert evaluation.reidentification_recall(features, half) == 50


def test_knn_and_probe_on_separable_and_random_features() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    centres = torch.randn(4, 16, generator=random) * 5
    near = centres[labels] + torch.randn(200, 16, generator=random)
    noise = torch.randn(200, 16, generator=random)
    for accuracy in (evaluation.knn_accuracy, evaluation.linear_accuracy):
        assert accuracy((near[:100], labels[:100]), (near[100:], labels[100:])) > 98
        assert accuracy((noise[:100], labels[:100]), (noise[100:], labels[100:])) < 50


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"method": "simclearly"}, "method: 'simclearly' is not in this solo-learn"),
        ({"infoaug": {"arm": "none"}}, "infoaug.arm"),
        ({"infoaug": {"twin": "x"}}, "infoaug.twin.*did you mean twins"),
        ({"data.train_path": "/nowhere/at/all"}, "data.train_path: expected the path"),
        ({"data.format": "dali"}, "data.format"),
        ({"optimizer.batch_size": 4096}, "optimizer.batch_size: expected at most the 24 images"),
        ({"logger": "carrier-pigeon"}, "logger: expected one of csv, tensorboard, none"),
    ],
)
def test_bad_configurations_are_named_before_training(
    make_cfg: Callable[..., Any], override: dict[str, Any], message: str
) -> None:
    cfg = make_cfg("simclr")
    for key, value in override.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises(ConfigError, match=message):
        pretrain(cfg)


def test_missing_configurations_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config-path"):
        load_config(tmp_path / "none", "simclr")
    (tmp_path / "byol.yaml").write_text("method: byol\n")
    with pytest.raises(ConfigError, match=r"--config-name: no 'simclr'.*byol.yaml"):
        load_config(tmp_path, "simclr")
    with pytest.raises(ConfigError, match="nothing_there"):
        load_config(tmp_path, "byol", ["nothing_there.x=1"])
    assert load_config(tmp_path, "byol", ["++infoaug=true"]).infoaug is True


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_configuration_runs_on_the_cpu() -> None:
    cfg = OmegaConf.create(
        {
            "accelerator": "gpu",
            "devices": [0, 1],
            "strategy": "ddp",
            "precision": "16-mixed",
            "sync_batchnorm": True,
        }
    )
    choose_device(cfg)
    assert cfg == {
        "accelerator": "cpu",
        "devices": "1",
        "strategy": "auto",
        "precision": 32,
        "sync_batchnorm": False,
    }


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("none.ckpt", "expected a .ckpt file"), ("text.ckpt", "expected an args.json beside")],
)
def test_unreadable_checkpoints_are_named(tmp_path: Path, checkpoint: str, message: str) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ConfigError, match=message):
        evaluation.load_backbone(tmp_path / checkpoint)
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(ConfigError):
        evaluation.load_backbone(tmp_path / checkpoint)


def test_export_names_its_endings(trained: dict[str, TrainingResult], tmp_path: Path) -> None:
    checkpoint = trained["baseline"].checkpoint
    assert checkpoint is not None
    with pytest.raises(ConfigError, match=r"\.safetensors or \.pth"):
        evaluation.export(checkpoint, tmp_path / "backbone.onnx")
