"""The current solo-learn, unmodified: its own scripts and configurations with InfoAug on."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import python

pytestmark = pytest.mark.slow

# Runs a script as it is. main_knn.py and main_umap.py move everything to a GPU without asking
# whether there is one: where there is none, things stay where they are. The former gives its k-NN
# an argument that torchmetrics dropped in 0.9; solo-learn's requirements keep an older one.
_RUN = """
import runpy, sys, torch, torchmetrics
metric = torchmetrics.Metric.__init__
torchmetrics.Metric.__init__ = lambda self, compute_on_step=None, **kwargs: metric(self, **kwargs)
if not torch.cuda.is_available():
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    for kind in (torch.Tensor, torch.nn.Module):
        def to(self, *args, _to=kind.to, **kwargs):
            return _to(self, *("cpu" if a == "cuda:0" else a for a in args), **kwargs)
        kind.to = to
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rsplit("/", 1)[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

CONFIGS = ("simclr", "mocov2plus", "byol", "simsiam", "barlow", "vicreg", "nnclr")


def _run(
    home: Path, cwd: Path, script: str, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    return python("-c", _RUN, home / script, *arguments, cwd=cwd, check=False, **env)


def _pretrain(
    home: Path, cwd: Path, images: Path, config: str, *overrides: str, **env: str
) -> subprocess.CompletedProcess[str]:
    small = ["method_kwargs.proj_hidden_dim=32", "method_kwargs.proj_output_dim=16"]
    if config in ("mocov2plus", "nnclr"):
        small.append("method_kwargs.queue_size=32")
    if config in ("byol", "simsiam", "nnclr"):
        small.append("method_kwargs.pred_hidden_dim=32")
    return _run(
        home,
        cwd,
        "main_pretrain.py",
        "--config-path",
        str(home / "scripts" / "pretrain" / "cifar"),
        "--config-name",
        f"{config}.yaml",
        "data.dataset=custom",
        f"data.train_path={images}",
        "data.val_path=null",
        "data.num_workers=0",
        "optimizer.batch_size=8",
        "max_epochs=1",
        f"checkpoint.dir={cwd / 'runs'}",
        "wandb.enabled=False",
        "devices='1'",
        "accelerator=cpu",
        "strategy=auto",
        "precision=32",
        "++log_every_n_steps=1",
        "++limit_train_batches=2",
        *small,
        *overrides,
        **env,
    )


@pytest.mark.parametrize("config", CONFIGS)
def test_cifar_configurations_train_with_infoaug(
    solo_learn_home: Path, tmp_path: Path, image_folder: Path, twins_folder: Path, config: str
) -> None:
    done = _pretrain(
        solo_learn_home,
        tmp_path,
        image_folder,
        config,
        "++infoaug=true",
        SOLO_INFOAUG_TWINS=str(twins_folder),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "InfoAug: positives=twins" in done.stdout
    (log,) = (tmp_path / "lightning_logs").rglob("metrics.csv")
    with log.open() as file:
        losses = [row["twin_loss_step"] for row in csv.DictReader(file) if row["twin_loss_step"]]
    assert len(losses) == 2
    assert all(float(loss) == float(loss) for loss in losses)


def test_wrong_key_stops_main_pretrain(
    solo_learn_home: Path, tmp_path: Path, image_folder: Path
) -> None:
    done = _pretrain(solo_learn_home, tmp_path, image_folder, "simclr", "++infoaug.wieght=1")
    assert done.returncode != 0
    assert "infoaug.wieght: no such key; did you mean weight?" in done.stderr


def test_linear_knn_and_umap_scripts_read_an_infoaug_checkpoint(
    solo_learn_home: Path, tmp_path: Path, image_folder: Path, twins_folder: Path
) -> None:
    # solo-learn's accuracy at 5 wants five classes
    classes = tmp_path / "five"
    for name in "abcde":
        shutil.copytree(image_folder / "a", classes / name)
    image_folder = classes
    done = _pretrain(
        solo_learn_home, tmp_path, image_folder, "simclr", f"++infoaug.twins={twins_folder}"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (checkpoint,) = (tmp_path / "runs").rglob("*.ckpt")
    linear = _run(
        solo_learn_home,
        tmp_path,
        "main_linear.py",
        "--config-path",
        str(solo_learn_home / "scripts" / "linear" / "imagenet-100"),
        "--config-name",
        "simclr.yaml",
        f"pretrained_feature_extractor='{checkpoint}'",
        "data.dataset=custom",
        f"data.train_path={image_folder}",
        f"data.val_path={image_folder}",
        "data.format=image_folder",
        "data.num_workers=0",
        "optimizer.batch_size=8",
        "max_epochs=1",
        "wandb.enabled=False",
        "checkpoint.enabled=False",
        "devices='1'",
        "accelerator=cpu",
        "strategy=auto",
        "precision=32",
        "++limit_train_batches=1",
        "++limit_val_batches=1",
    )
    assert linear.returncode == 0, linear.stderr[-2000:]
    knn = _run(
        solo_learn_home,
        tmp_path,
        "main_knn.py",
        "--dataset",
        "custom",
        "--train_data_path",
        str(image_folder),
        "--val_data_path",
        str(image_folder),
        "--batch_size",
        "8",
        "--num_workers",
        "0",
        "--k",
        "2",
        "--temperature",
        "0.07",
        "--feature_type",
        "backbone",
        "projector",
        "--distance_function",
        "cosine",
        "--pretrained_checkpoint_dir",
        str(checkpoint.parent),
    )
    assert knn.returncode == 0, knn.stderr[-2000:]
    assert "acc@1" in knn.stdout.lower() or "Result" in knn.stdout
    for package in ("umap", "pandas", "seaborn", "wandb"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"main_umap.py needs {package}: uv sync --group current-host")
    umap = _run(
        solo_learn_home,
        tmp_path,
        "main_umap.py",
        "--dataset",
        "custom",
        "--train_data_path",
        str(image_folder),
        "--val_data_path",
        str(image_folder),
        "--batch_size",
        "8",
        "--num_workers",
        "0",
        "--pretrained_checkpoint_dir",
        str(checkpoint.parent),
    )
    assert umap.returncode == 0, umap.stderr[-2000:]
    assert (tmp_path / "im100_train_umap.pdf").stat().st_size > 1000
