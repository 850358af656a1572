"""Every configuration in `configs/` trains: seven methods on five data sets, made small."""

from __future__ import annotations

import csv
import json
import pickle
import shlex
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from processes import python

from solo_infoaug.compare.grid import Planner, parse_grid
from solo_infoaug.errors import ConfigError
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.resources import config_folder
from solo_infoaug.training import load_config, pretrain
from solo_infoaug.training.layouts import name_for_host

METHODS = sorted(path.stem for path in config_folder().glob("*.yaml") if path.stem != "base")
DATA = sorted(path.stem for path in (config_folder() / "data").glob("*.yaml"))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 training and 10 test images in the formats of CIFAR-10, CIFAR-100, STL-10, and folders."""
    folder = tmp_path_factory.mktemp("datasets")
    random = np.random.default_rng(0)

    def rows(count: int, side: int) -> np.ndarray:
        return random.integers(0, 256, (count, 3 * side * side), dtype=np.uint8)

    def cifar(name: str, files: dict[str, int], label: str, meta: tuple[str, str]) -> None:
        (folder / name).mkdir()
        for file, count in files.items():
            content = {"data": rows(count, 32), label: [i % 10 for i in range(count)]}
            (folder / name / file).write_bytes(pickle.dumps(content))
        names = {meta[1]: [str(i) for i in range(100 if "100" in name else 10)]}
        (folder / name / meta[0]).write_bytes(pickle.dumps(names))

    batches = {f"data_batch_{i}": 4 for i in range(1, 6)} | {"test_batch": 10}
    cifar("cifar-10-batches-py", batches, "labels", ("batches.meta", "label_names"))
    cifar(
        "cifar-100-python", {"train": 20, "test": 10}, "fine_labels", ("meta", "fine_label_names")
    )
    stl10 = folder / "stl10_binary"
    stl10.mkdir()
    for name, count in (("train", 12), ("unlabeled", 8), ("test", 10)):
        rows(count, 96).tofile(stl10 / f"{name}_X.bin")
        (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(stl10 / f"{name}_y.bin")
    (stl10 / "class_names.txt").write_text("\n".join("abcdefghij"))
    for part, count in (("train", 4), ("val", 2)):
        for label in "abcde":
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")
    return folder


def _overrides(method: str, data: str, datasets: Path, out: Path) -> list[str]:
    small = ["method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8"]
    if method in ("mocov2plus", "nnclr"):
        small.append("method_kwargs.queue_size=32")
    if method in ("byol", "simsiam", "nnclr"):
        small.append("method_kwargs.pred_hidden_dim=16")
    if data in ("custom", "imagenet100"):
        small += [f"data.train_path={datasets}/train", f"data.val_path={datasets}/val"]
    else:
        small += [f"data.train_path={datasets}", f"data.val_path={datasets}"]
    return [
        *small,
        f"data={data}",
        "image.crop_size=32",
        "data.num_workers=0",
        "optimizer.batch_size=8",
        "max_epochs=1",
        f"checkpoint.dir={out}",
        "++limit_train_batches=2",
        "++limit_val_batches=1",
        "++log_every_n_steps=1",
        "++enable_progress_bar=false",
        "++enable_model_summary=false",
    ]


def test_all_configurations_are_there() -> None:
    assert len(METHODS) == 7
    assert DATA == ["cifar10", "cifar100", "custom", "imagenet100", "stl10"]


@pytest.mark.parametrize(("method", "data"), list(product(METHODS, DATA)))
def test_configuration_trains(
    slim_backbone: None,
    method: str,
    data: str,
    datasets: Path,
    twins_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda *args: True)
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", str(twins_folder))
    cfg = load_config(
        config_folder(), method, _overrides(method, data, datasets, tmp_path / "runs")
    )
    result = pretrain(cfg)
    assert np.isfinite(result.metrics["twin_loss_epoch"])
    assert 0 <= result.metrics["val_acc1"] <= 100
    assert result.model.trainer.global_step == 2
    assert result.folder is not None
    args = json.loads((result.folder / "args.json").read_text())
    assert args["data"]["dataset"] == data
    assert args["infoaug"]["positives"] == "twins"


def test_data_set_without_a_configuration_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data/mnist"):
        load_config(config_folder(), "simclr", ["data=mnist"])


# --- the f-MICL paper's ---------------------------------------------------------------------------

# network and batch size of the paper's table, by data set
PAPER = {
    "cifar10": ("resnet18", 512),
    "stl10": ("resnet50", 64),
    "tiny_imagenet": ("resnet50", 256),
}
DIVERGENCES = ["kl", "js", "pearson", "hellinger", "tsallis", "vlc"]


def test_all_configurations_of_the_paper_are_there() -> None:
    folder = config_folder() / "paper"
    assert sorted(file.stem for file in folder.glob("*.yaml")) == ["base", "mocov2plus", "simclr"]
    assert sorted(file.stem for file in (folder / "data").glob("*.yaml")) == sorted(PAPER)


@pytest.mark.parametrize(("method", "data"), list(product(["simclr", "mocov2plus"], PAPER)))
def test_configuration_of_the_paper_builds_its_method(
    host: Any, slim_backbone: None, method: str, data: str, datasets: Path
) -> None:
    cfg = load_config(
        config_folder() / "paper", method, [f"data={data}", f"data.train_path={datasets}"]
    )
    network, batch = PAPER[data]
    name_for_host(cfg)
    cfg = host.parse_cfg(cfg)
    assert (cfg.backbone.name, cfg.optimizer.batch_size, cfg.max_epochs) == (network, batch, 800)
    # by now solo-learn has scaled the rates by the batch
    assert (cfg.optimizer.lr, cfg.optimizer.classifier_lr) == pytest.approx((0.1, 0.1))
    model = host.methods[method](cfg)
    assert model.projector(torch.zeros(2, model.features_dim)).shape == (2, 512)
    assert model.fmicl == FMICLConfig("kl", "gaussian", 40, model.fmicl.sigma)
    assert 1 / (2 * model.fmicl.sigma**2) == pytest.approx(1)
    assert getattr(model, "infoaug", None) is None


@pytest.mark.parametrize("choice", ["fmicl=null", *(f"fmicl.divergence={d}" for d in DIVERGENCES)])
def test_divergences_of_the_paper(host: Any, slim_backbone: None, choice: str) -> None:
    cfg = host.parse_cfg(load_config(config_folder() / "paper", "simclr", [choice]))
    model = host.methods["simclr"](cfg)
    found = None if model.fmicl is None else (model.fmicl.divergence, model.fmicl.alpha)
    name = choice.rpartition("=")[2]
    assert found == (None if name == "null" else (name, 40))


def test_the_paper_starts_at_its_rate_and_trains_without_twins(
    host: Any, slim_backbone: None, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)
    # 3.2 × 8 / 256 = 0.1
    rates_of_8 = ["optimizer.lr=3.2", "optimizer.classifier_lr=3.2"]
    overrides = [*_overrides("simclr", "cifar10", datasets, tmp_path), *rates_of_8]
    result = pretrain(load_config(config_folder() / "paper", "simclr", overrides))
    assert result.folder is not None
    with (result.folder / "metrics.csv").open() as file:
        first = next(csv.DictReader(file))
    rates = [float(value) for key, value in first.items() if key.startswith("lr-")]
    assert rates == pytest.approx([0.1] * len(rates))
    assert rates
    assert np.isfinite(result.metrics["train_fmicl_loss_epoch"])
    assert not any(name.startswith("twin") for name in result.metrics)


def test_the_comparison_of_the_paper_on_a_cpu_is_planned(
    host: Any, datasets: Path, tmp_path: Path
) -> None:
    """The command in configs/README.md; every run builds its method."""
    page = (config_folder() / "README.md").read_text(encoding="utf-8")
    (command,) = [line for line in page.splitlines() if "compare data=paper_cifar10" in line]
    given = shlex.split(command)[2:]
    places = [f"data.train_path='{datasets}'", f"out='{tmp_path}'"]
    runs = Planner(parse_grid([o for o in given if "train_path" not in o] + places)).plan()
    trained = []
    for run in runs:
        model = host.methods[run.config.method](host.parse_cfg(run.config))
        assert model.projector(torch.zeros(2, model.features_dim)).shape == (2, 512)
        assert (run.config.backbone.name, run.evaluate["k"]) == ("small_resnet", 200)
        assert "infoaug" not in run.config
        objective = None if model.fmicl is None else model.fmicl.divergence
        trained.append((run.config.method, objective))
    assert trained == list(product(["simclr", "mocov2plus"], [None, *DIVERGENCES]))


# Runs solo-learn's script, as it is, once for each line of arguments. The made data sets have
# other checksums than the real ones.
_RUN = """
import json, runpy, sys
import torchvision
for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):
    module.check_integrity = lambda *args: True
script, *runs = sys.argv[1:]
sys.path[0] = script.rsplit("/", 1)[0]
for run in runs:
    sys.argv = [script, *json.loads(run)]
    runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_main_pretrain_runs_them_all(
    solo_learn_home: Path, datasets: Path, twins_folder: Path, tmp_path: Path
) -> None:
    runs = []
    for method, data in product(METHODS, DATA):
        arguments = ["--config-path", str(config_folder()), "--config-name", f"{method}.yaml"]
        arguments += _overrides(method, data, datasets, tmp_path / f"{method}-{data}")
        arguments += ["devices='1'", "accelerator=cpu", "precision=32", "sync_batchnorm=false"]
        runs.append(json.dumps(arguments))
    program = ("-c", _RUN, solo_learn_home / "main_pretrain.py", *runs)
    done = python(*program, cwd=tmp_path, timeout=550, SOLO_INFOAUG_TWINS=str(twins_folder))
    assert done.stdout.count("InfoAug: positives=twins") == len(runs)
    losses: list[Any] = []
    for log in (tmp_path / "lightning_logs").rglob("metrics.csv"):
        with log.open() as file:
            losses += [row["twin_loss_step"] for row in csv.DictReader(file)]
    assert sum(bool(loss) for loss in losses) == 2 * len(runs)
