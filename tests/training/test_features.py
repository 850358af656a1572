"""What solo-learn's Trainer and data can do, with InfoAug on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from processes import python
from torch import nn

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import find_host
from solo_infoaug.training import TrainingResult, pretrain

_KIND = find_host().kind
_SMALL_CROPS = {"current": ("byol", "simclr", "supcon", "swav"), "release": ("byol", "simclr")}
_ONLY_CURRENT = pytest.mark.skipif(
    _KIND == "release", reason="SOLO_LEARN_HOME names no clone of the current solo-learn"
)


@pytest.fixture
def train(make_cfg: Callable[..., DictConfig], twins_folder: Path) -> Callable[..., TrainingResult]:
    """Pretrain two short epochs with InfoAug."""

    def run(
        method: str, *, callbacks: tuple[Callback, ...] = (), infoaug: Any = None, **overrides: Any
    ) -> TrainingResult:
        settings = {"twins": str(twins_folder), **(infoaug or {})}
        return pretrain(make_cfg(method, settings, **overrides), callbacks)

    return run


class _Stopped(Exception):
    pass


class _StopBeforeSecondEpoch(Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise _Stopped


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point())


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *((m, {}) for m in ("simclr", "byol", "mocov2plus", "nnclr")),
        *((m, {}) for m in ("dino", "swav", "deepclusterv2", "wmse")),
        # with workers, the second epoch after resuming is the first whose order can differ
        ("simclr", {"data.num_workers": 1, "max_epochs": 3}),
    ],
)
def test_resumed_run_is_the_run_that_was_stopped(
    train: Callable[..., TrainingResult], tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    whole = train(method, **settings).model.state_dict()
    folder = tmp_path / "stopped"
    stopped = {**settings, "checkpoint.dir": str(folder)}
    with pytest.raises(_Stopped):
        train(method, callbacks=(_StopBeforeSecondEpoch(),), **stopped)
    (checkpoint,) = folder.rglob("*.ckpt")
    torch.manual_seed(99)
    np.random.seed(99)
    again = train(method, resume_from_checkpoint=str(checkpoint), **settings)
    resumed = again.model.state_dict()
    assert whole.keys() == resumed.keys()
    assert not [name for name in whole if not _equal(whole[name], resumed[name])]


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_half_precision(train: Callable[..., TrainingResult], method: str) -> None:
    result = train(method, precision="bf16-mixed", max_epochs=1)
    assert np.isfinite(result.metrics["twin_loss_epoch"])
    weights = {name: p for name, p in result.model.twin.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in weights.values())


def test_accumulated_gradients(train: Callable[..., TrainingResult]) -> None:
    class Watch(Callback):
        twin_batches: list[int]

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.twin_batches = []
            sample = pl_module.twin_branch.batch

            def watched(step: int) -> Any:
                batch = sample(step)
                self.twin_batches.append(tuple(batch.index.tolist()))
                return batch

            pl_module.twin_branch.batch = watched

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.optimizer_steps = trainer.global_step

    watch = Watch()
    train("byol", callbacks=(watch,), accumulate_grad_batches=3)
    assert watch.optimizer_steps == 2
    assert len(set(watch.twin_batches)) == 6


@pytest.mark.parametrize("method", _SMALL_CROPS[_KIND])
def test_multi_crop(
    host: Any,
    make_cfg: Callable[..., DictConfig],
    twins_folder: Path,
    steps: Any,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = make_cfg(method, {"twins": str(twins_folder)})
    small = OmegaConf.merge(cfg.augmentations[0], {"crop_size": 12, "num_crops": 3})
    cfg.augmentations.append(small)
    cfg = host.parse_cfg(cfg)
    run = steps(host.methods[method](cfg), cfg)
    views = run.module.twin_branch.batch(0).views
    assert [view.shape[-1] for view in views] == [16, 16, 12, 12, 12]
    late = run.module.backbone.layer4[0].conv1
    passes: list[int] = []
    forward = late.forward
    monkeypatch.setattr(
        late, "forward", lambda images: passes.append(len(images)) or forward(images)
    )
    assert np.isfinite(run.run(4)).all()
    assert passes == 4 * [16, 24, 16, 24]  # each branch's views of a size in one
    assert np.isfinite(run.logged["twin_loss"])


def test_converted_batch_norms_and_memory_format(
    host: Any, make_cfg: Callable[..., DictConfig], twins_folder: Path, steps: Any
) -> None:
    """SyncBatchNorm takes the place of the backbone's modules after the branch was built."""
    losses = []
    for convert in (False, True):
        settings = {"twins": str(twins_folder), "batch_norm": "separate"}
        cfg = host.parse_cfg(make_cfg("byol", settings))
        torch.manual_seed(0)
        module = host.methods["byol"](cfg)
        if convert:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            module = module.to(memory_format=torch.channels_last)
            assert any(isinstance(m, nn.SyncBatchNorm) for m in module.twin.backbone.modules())
            assert all(isinstance(norm, nn.SyncBatchNorm) for norm in module.twin.norms)
        losses.append(steps(module, cfg).run(3))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # rounding errors grow


def test_lars(train: Callable[..., TrainingResult]) -> None:
    lars = {"name": "lars", "batch_size": 8, "lr": 1.0, "classifier_lr": 0.1, "weight_decay": 1e-4}
    lars["kwargs"] = {"clip_lr": True, "eta": 0.02, "exclude_bias_n_norm": True}
    result = train("simclr", optimizer=lars, max_epochs=1)
    assert np.isfinite(result.metrics["twin_loss_epoch"])


@_ONLY_CURRENT
def test_weight_decay_spares_the_branchs_biases_and_norms(
    host: Any, make_cfg: Callable[..., DictConfig], twins_folder: Path
) -> None:
    cfg = make_cfg("byol", {"twins": str(twins_folder), "batch_norm": "separate"})
    cfg.optimizer.exclude_bias_n_norm_wd = True
    cfg.scheduler = {"name": "none"}
    module = host.methods["byol"](host.parse_cfg(cfg))
    optimizer = module.configure_optimizers()
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in module.twin.named_parameters():
        if parameter.requires_grad:
            assert (decay[id(parameter)] == 0) == (parameter.ndim == 1), name


@_ONLY_CURRENT
def test_h5_images(
    train: Callable[..., TrainingResult],
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    h5py = pytest.importorskip("h5py", reason="needs h5py: uv sync --group current-host")
    monkeypatch.setenv("HOME", str(tmp_path))  # where solo-learn leaves an index of the file
    path = tmp_path / "images.h5"
    with h5py.File(path, "w") as file:
        for image in image_folder.rglob("*.png"):
            data = np.frombuffer(image.read_bytes(), dtype=np.uint8)
            file.create_dataset(f"{image.parent.name}/{image.name}", data=data)
    data = {"dataset": "imagenet100", "train_path": str(path), "val_path": None}
    data |= {"format": "h5", "num_workers": 0}
    result = train("simclr", data=data, max_epochs=1)
    assert np.isfinite(result.metrics["twin_loss_epoch"])


@_ONLY_CURRENT
@pytest.mark.parametrize("method", ["simclr", "deepclusterv2"])
def test_branch_does_not_mind_dali(
    host: Any, make_cfg: Callable[..., DictConfig], twins_folder: Path, steps: Any, method: str
) -> None:
    """The branch feeds itself: a configuration for DALI needs the library for its own images only.

    DALI's loader has no `dataset`; DeepCluster V2 asks it for a size of its own.
    """
    cfg = make_cfg(method, {"twins": str(twins_folder)})
    cfg.data.format = "dali"
    cfg.dali = {"device": "gpu", "encode_indexes_into_labels": True}
    cfg = host.parse_cfg(cfg)
    run = steps(host.methods[method](cfg), cfg)

    class Loaders:
        dataset_size = 24

    class DaliLoader:
        loaders = Loaders()

        def __len__(self) -> int:
            return 3

    run.trainer.train_dataloader = DaliLoader()
    run.run(4)
    assert np.isfinite(run.logged["twin_loss"])


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_more_large_crops_than_the_method_takes_are_named(
    train: Callable[..., TrainingResult], make_cfg: Callable[..., DictConfig], method: str
) -> None:
    augmentations = make_cfg(method).augmentations
    augmentations[0].num_crops = 3
    with pytest.raises(ConfigError, match=r"augmentations: .* takes 2 large crops, got 3"):
        train(method, augmentations=augmentations)


# --- two processes ---------------------------------------------------------------------------

_SCRIPT = Path(__file__).parents[1] / "two_processes.py"


def _settings(cfg: DictConfig, folder: Path) -> None:
    (folder / "cfg.json").write_text(json.dumps(OmegaConf.to_container(cfg)))


@pytest.mark.slow
def test_two_processes(
    host: Any, make_cfg: Callable[..., DictConfig], twins_folder: Path, steps: Any, tmp_path: Path
) -> None:
    """They train alike, and gather as the method does; started once, for it takes long."""
    cfg = make_cfg("mocov2plus", {"twins": str(twins_folder), "batch_size": 4})
    cfg.merge_with({"devices": 2, "strategy": "ddp", "max_epochs": 1})
    cfg.optimizer.batch_size = 4
    _settings(cfg, tmp_path)
    gather = ["byol"]  # a mean over pairs, which needs no gathering
    if _KIND == "current":  # where the release's losses see their own process's pairs only
        gather += ["simclr", "vicreg", "mocov3", "supcon"]
    expected = {}
    for method in gather:
        (tmp_path / method).mkdir()
        cfg = make_cfg(method, {"twins": str(twins_folder)})
        expected[method] = _loss_of_one_process(host, cfg, steps, tmp_path / method)
    python(_SCRIPT, *(tmp_path / name for name in ("", *gather)), OMP_NUM_THREADS="1")
    _check_training(tmp_path)
    for method in gather:
        losses = [json.loads((tmp_path / method / f"{r}.json").read_text()) for r in range(2)]
        assert sum(losses) / 2 == pytest.approx(expected[method], rel=1e-4), method


def _loss_of_one_process(host: Any, cfg: DictConfig, steps: Any, folder: Path) -> float:
    """The loss of a batch, which does not depend on how many processes share it.

    Batch norm is at rest, for its statistics are a process's own without SyncBatchNorm.
    """
    torch.manual_seed(0)
    module = steps(host.methods[cfg.method](host.parse_cfg(cfg.copy())), cfg).module
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()
    twins = module.twin_branch.batch(0)
    batch = [twins.index, twins.views, twins.index]
    _settings(cfg, folder)
    torch.save({"weights": module.state_dict(), "batch": batch}, folder / "state.pt")
    loss: float = module.twin.training_step(batch, 0).item()
    return loss


def _check_training(folder: Path) -> None:
    """With batches prepared ahead the bits are the same; each process draws its own patches."""
    for rank in range(2):
        later, ahead = (torch.load(folder / w / f"{rank}.pt") for w in ("train", "train_ahead"))
        assert all(map(torch.equal, later["index"], ahead["index"]))
        assert all(torch.equal(later["weights"][n], value) for n, value in ahead["weights"].items())
    first, second = (torch.load(folder / "train" / f"{rank}.pt") for rank in range(2))
    assert len(first["index"]) == 3
    assert not torch.equal(first["index"][0], second["index"][0])
    assert first["weights"].keys() == second["weights"].keys()
    for name, weight in first["weights"].items():
        if "running_" not in name:
            torch.testing.assert_close(weight, second["weights"][name], rtol=0, atol=0)
    filled = int(first["weights"]["twin.queue_ptr"])
    assert filled == 3 * 4 * 2  # steps, pairs, processes
