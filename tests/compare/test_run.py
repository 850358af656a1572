"""Real runs: the same bits as `pretrain`, and CIFAR-10's own layout."""

from __future__ import annotations

import csv
import hashlib
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10
from typer.testing import CliRunner

from solo_infoaug.cli import app
from solo_infoaug.compare.grid import Planner, Run, parse_grid
from solo_infoaug.compare.run import execute
from solo_infoaug.evaluation.backbone import backbone_weights

Overrides = Callable[..., list[str]]


def _plan(overrides: list[str], keep: bool = False) -> list[Run]:
    runs = Planner(parse_grid(overrides)).plan()
    for run in runs:
        run.write(keep)
    return runs


def _state(folder: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = folder.rglob("*.ckpt")
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def _losses(folder: Path) -> list[tuple[str, str]]:
    (file,) = folder.rglob("metrics.csv")
    with file.open() as rows:
        return [
            (row["train_nce_loss_step"], row.get("twin_loss_step", ""))
            for row in csv.DictReader(rows)
        ]


def test_a_run_is_that_of_pretrain_bit_for_bit(
    host: Any, overrides: Overrides, tmp_path: Path
) -> None:
    (run,) = _plan(overrides("arms=infoaug", "log_every_n_steps=1"), keep=True)
    result = execute(run.folder)
    assert result["hash"] == run.hash
    assert (result["steps"], result["images"]) == (3, 3 * 2 * (8 + 8))
    assert result["fingerprint"] is not None
    assert set(result["metrics"]) == {"online", "linear", "knn"}

    # the command itself, from the configuration that the run left behind
    other = tmp_path / "alone"
    done = CliRunner().invoke(
        app,
        [
            "pretrain",
            f"--config-path={run.folder}",
            "--config-name=config",
            f"checkpoint.dir='{other}'",
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    ours, theirs = _state(run.folder / "training"), _state(other)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("twin.") for name in ours)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    losses = _losses(run.folder / "training")
    assert losses == _losses(other)
    assert len({pair for pair in losses if pair[0]}) == 3


def test_arms_start_alike(host: Any, overrides: Overrides) -> None:
    """The first loss of the view branch is computed before any update."""
    runs = _plan(overrides("arms=[baseline,random]", "log_every_n_steps=1"))
    for run in runs:
        execute(run.folder)
        assert not list(run.folder.rglob("*.ckpt"))
    first, second = (_losses(run.folder / "training") for run in runs)
    assert first[0][0] == second[0][0]
    assert not any(twin for _, twin in first)
    assert any(twin for _, twin in second)


def _made_up_cifar10(folder: Path) -> dict[str, str]:
    """Small files in the layout of CIFAR-10's Python version; returns their MD5 sums."""
    rng = np.random.default_rng(0)
    base = folder / CIFAR10.base_folder
    base.mkdir(parents=True)
    sums = {}
    contents: dict[str, Any] = {CIFAR10.meta["filename"]: {"label_names": list("abcdefghij")}}
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        contents[name] = {"data": pixels, "labels": [i % 10 for i in range(20)]}
    for name, content in contents.items():
        (base / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    return sums


def test_cifar10_in_torchvisions_layout(
    host: Any,
    overrides: Overrides,
    tmp_path: Path,
    twins_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchvision checks MD5 sums: it is told those of the made-up files, and reads them itself."""
    sums = _made_up_cifar10(tmp_path / "cifar")
    for part in ("train_list", "test_list"):
        changed = [[name, sums[name]] for name, _ in getattr(CIFAR10, part)]
        monkeypatch.setattr(CIFAR10, part, changed)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[CIFAR10.meta["filename"]]})

    def no_download(*arguments: Any) -> None:
        raise AssertionError("the files are there")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_download)
    path = tmp_path / "cifar"
    (run,) = _plan(
        [
            f"out='{tmp_path / 'grid'}'",
            "methods=simclr",
            "data=cifar10",
            "arms=infoaug",
            "seeds=0",
            f"data.train_path='{path}'",
            f"data.val_path='{path}'",
            "data.num_workers=0",
            f"infoaug.twins='{twins_folder}'",
            "max_epochs=1",
            "optimizer.batch_size=20",
            "augmentations.0.crop_size=16",
            "evaluate.size=16",
        ]
    )
    result = execute(run.folder)
    assert result["steps"] == 5
    assert set(result["metrics"]) == {"online", "linear", "knn"}
    # 20 test images of random pixels and ten labels
    assert all(0 <= value <= 60 for value in result["metrics"].values())


class _Harmful:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_checkpoints_are_read_without_running_what_they_hold(tmp_path: Path) -> None:
    """SimSiam's checkpoints hold a function of the scheduler, which a plain reader refuses."""
    weights = torch.nn.Conv2d(2, 3, 1, bias=False).weight.to(memory_format=torch.channels_last)
    torch.save(
        {
            "state_dict": OrderedDict({"backbone.conv.weight": weights, "projector.x": weights}),
            "lr_schedulers": [{"get_lr": partial(getattr, _Harmful(tmp_path / "harm"))}],
            "loops": defaultdict(dict, {"a": {"b": torch.float32}}),
        },
        tmp_path / "last.ckpt",
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    found = backbone_weights(tmp_path / "last.ckpt")
    assert found.keys() == {"conv.weight"}
    assert torch.equal(found["conv.weight"], weights)
    assert not (tmp_path / "harm").exists()
