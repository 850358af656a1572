"""solo-learn's pretraining from solo-learn's own YAML configurations, on either host.

What `main_pretrain.py` does, with two differences: the device is chosen from what the machine has,
and without wandb the metrics go to a CSV file (or TensorBoard) beside the checkpoint.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import random
import string
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader

from solo_infoaug._files import check_output_folder
from solo_infoaug.errors import ConfigError, DataError, InfoAugError
from solo_infoaug.host import Host
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.training.batches import whole_batches
from solo_infoaug.training.overrides import parse_overrides
from solo_infoaug.twin.config import read_infoaug
from solo_infoaug.twin.registration import register
from solo_infoaug.twin.views import run_pipelines

LOGGERS = ("csv", "tensorboard", "none")
DATASETS = ("cifar10", "cifar100", "stl10", "imagenet", "imagenet100", "custom")
"""Those of both solo-learns."""


_say = rank_zero_only(print)  # Lightning hides what is logged at the level of information


@dataclass(frozen=True)
class TrainingResult:
    """Where a finished run left its things."""

    folder: Path | None
    """args.json, checkpoint and metrics; None where `checkpoint.enabled` is off. Of a run that was
    finished before, that of its checkpoint."""
    checkpoint: Path | None
    metrics: dict[str, float]
    """The last values that were logged."""
    model: Any


def load_config(
    config_path: str | Path, config_name: str, overrides: Sequence[str] = ()
) -> DictConfig:
    """Compose a solo-learn configuration with Hydra, as `main_pretrain.py` would.

    Args:
        config_path: the folder with the YAML files, relative to the working directory.
        config_name: the file, with or without its ending.
        overrides: in Hydra's grammar: `max_epochs=10`, `++infoaug=true`.

    Raises:
        ConfigError: no such folder or file, or an override that Hydra refuses.
    """
    folder = Path(config_path).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(
            f"--config-path: expected a folder of YAML configurations, got {config_path}"
        )
    file = next(
        (
            folder / f"{config_name}{ending}"
            for ending in (".yaml", "")
            if (folder / f"{config_name}{ending}").is_file()
        ),
        None,
    )
    if file is None or file.suffix != ".yaml" or file.parent != folder:  # Hydra takes no other
        names = ", ".join(sorted(p.name for p in folder.glob("*.yaml"))) or "no .yaml file"
        raise ConfigError(f"--config-name: no {config_name!r} in {folder}; there is {names}")
    parse_overrides(overrides)
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(folder), version_base="1.2"):
            cfg = compose(file.name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    finally:
        GlobalHydra.instance().clear()
    OmegaConf.set_struct(cfg, False)
    return cfg


def choose_device(cfg: DictConfig) -> None:
    """Fit the Trainer's keys in `cfg` to the machine: without a GPU, train on the CPU."""
    accelerator = str(OmegaConf.select(cfg, "accelerator", default="auto"))
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return
    if accelerator not in ("gpu", "cuda", "auto", "cpu"):
        return
    devices = OmegaConf.select(cfg, "devices", default=1)
    processes = int(devices) if accelerator == "cpu" and str(devices).isdigit() else 1
    changes: dict[str, Any] = {"accelerator": "cpu", "precision": _cpu_precision(cfg)}
    # solo-learn scales the learning rate by len(devices)
    changes["devices"] = str(processes)
    if processes == 1:
        changes["strategy"] = "auto"
    changes["sync_batchnorm"] = False
    before = {key: OmegaConf.select(cfg, key) for key in changes}
    for key, value in changes.items():
        cfg[key] = value
    told = [
        f"{key}: {before[key]} → {value}"
        for key, value in changes.items()
        if before[key] is not None and str(before[key]) != str(value)
    ]
    if told:
        where = "Training" if accelerator == "cpu" else "No GPU here, training"
        _say(f"{where} on the CPU ({', '.join(told)})")


def _cpu_precision(cfg: DictConfig) -> Any:
    """float16 needs a GPU; other precisions are kept."""
    precision = str(OmegaConf.select(cfg, "precision", default="32"))
    return 32 if precision in ("16", "16-mixed", "16-true") else cfg.get("precision", 32)


def _logger_kind(cfg: DictConfig) -> str:
    kind = OmegaConf.select(cfg, "logger", default="csv")
    if kind not in LOGGERS:
        raise ConfigError(f"logger: expected one of {', '.join(LOGGERS)}, got {kind!r}")
    return str(kind)


def _logger(cfg: DictConfig, version: str) -> Logger | None:
    if OmegaConf.select(cfg, "wandb.enabled") and importlib.util.find_spec("wandb"):
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(
            name=cfg.name,
            project=cfg.wandb.project,
            entity=cfg.wandb.entity,
            offline=cfg.wandb.offline,
        )
    kind = _logger_kind(cfg)
    if OmegaConf.select(cfg, "wandb.enabled"):
        _say(f"wandb.enabled, but wandb is not installed: logging to {kind}")
    if kind == "none":
        return None
    if kind == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                "logger: tensorboard is not installed; pip install tensorboard, or logger=csv"
            )
        return TensorBoardLogger(cfg.checkpoint.dir, name=cfg.method, version=version)
    return CSVLogger(
        cfg.checkpoint.dir, name=cfg.method, version=version, flush_logs_every_n_steps=50
    )


def read_image(path: str) -> Any:
    """torchvision's loader of image folders; what cannot be read is named.

    Raises:
        DataError: the image is damaged.
    """
    with _names(path):
        return default_loader(path)


class _Named(Dataset[Any]):
    """solo-learn's images without labels; what cannot be read is named."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        with _names(Path(self.images.root) / str(self.images.images[index])):
            return self.images[index]


@contextmanager
def _names(path: str | Path) -> Iterator[None]:
    # what Pillow raises of files that are damaged, cut off, or of another format
    try:
        yield
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); remove or replace it"
        ) from error


def _validation_loader(host: Host, cfg: DictConfig) -> Any:
    data = cfg.data
    unlabelled = data.dataset == "custom" and (data.no_labels or data.val_path is None)
    if unlabelled or (data.dataset in ("imagenet", "imagenet100") and data.val_path is None):
        return None
    loader = host.prepare_data(
        data.dataset,
        train_data_path=data.train_path,
        val_data_path=data.val_path,
        data_format=data.format,
        batch_size=cfg.optimizer.batch_size,
        num_workers=data.num_workers,
    )[1]
    if hasattr(loader.dataset, "loader"):
        loader.dataset.loader = read_image
    return loader


def _train_loader(host: Host, cfg: DictConfig) -> Any:
    transform = host.full_transform_pipeline(
        [
            host.n_crop_augmentation(
                host.build_transform_pipeline(cfg.data.dataset, entry), entry.num_crops
            )
            for entry in cfg.augmentations
        ]
    )
    if cfg.debug_augmentations:
        print(f"Transforms:\n{transform}")
    dataset = host.prepare_datasets(
        cfg.data.dataset,
        transform,
        train_data_path=cfg.data.train_path,
        data_format=cfg.data.format,
        no_labels=cfg.data.no_labels,
        data_fraction=cfg.data.fraction,
    )
    if hasattr(dataset, "loader"):
        dataset.loader = read_image
    elif hasattr(dataset, "images"):
        dataset = _Named(dataset)
    if len(dataset) < cfg.optimizer.batch_size:
        raise ConfigError(
            f"optimizer.batch_size: expected at most the {len(dataset)} images of "
            f"data.train_path ({cfg.data.train_path}), got {cfg.optimizer.batch_size}"
        )
    if OmegaConf.select(cfg, "data.whole_batches"):
        pipelines = run_pipelines(host, cfg, cfg.augmentations)
        return whole_batches(dataset, pipelines, int(cfg.optimizer.batch_size))
    return host.prepare_dataloader(
        dataset, batch_size=cfg.optimizer.batch_size, num_workers=cfg.data.num_workers
    )


def check_values(cfg: DictConfig) -> None:
    """Numbers that no solo-learn can train with.

    Raises:
        ConfigError: the message names the key.
    """

    def require(key: str, least: float, whole: bool, *allowed: object) -> None:
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        kinds = int if whole else (int, float)
        good = isinstance(value, kinds) and not isinstance(value, bool) and value >= least
        if value is not None and not good and value not in allowed:
            kind = "whole number" if whole else "number"
            raise ConfigError(f"{key}: expected a {kind} ≥ {least:g}, got {value!r}")

    for key in ("optimizer.lr", "optimizer.classifier_lr", "optimizer.weight_decay"):
        require(key, 0, False)
    require("optimizer.batch_size", 1, True)
    require("data.num_workers", 0, True)
    require("seed", 0, True)
    # without an end to epochs there must be one to steps
    endless = (-1,) if OmegaConf.select(cfg, "max_steps", default=-1) not in (None, -1) else ()
    require("max_epochs", 1, True, *endless)
    require("checkpoint.frequency", 1, True)
    entries = OmegaConf.select(cfg, "augmentations", throw_on_missing=False)
    if entries is not None:
        if not isinstance(entries, ListConfig) or len(entries) == 0:
            raise ConfigError(f"augmentations: expected a list of pipelines, got {entries!r}")
        for number in range(len(entries)):
            for key in ("crop_size", "num_crops"):
                if OmegaConf.select(cfg, f"augmentations.{number}.{key}") is None:
                    raise ConfigError(f"augmentations.{number}.{key}: expected a value, got none")
                require(f"augmentations.{number}.{key}", 1, True)


def _check(host: Host, cfg: DictConfig) -> None:
    """What can be known to be wrong before anything is loaded."""
    read_infoaug(cfg)
    FMICLConfig.parse(OmegaConf.select(cfg, "fmicl"))
    for key in (
        "method",
        "name",
        "backbone.name",
        "data.dataset",
        "data.train_path",
        "augmentations",
        "max_epochs",
        "optimizer.name",
        "optimizer.lr",
        "optimizer.batch_size",
        "scheduler.name",
    ):
        if OmegaConf.select(cfg, key, throw_on_missing=False) is None:
            raise ConfigError(f"{key}: expected a value, as in solo-learn's configurations")
    check_values(cfg)
    for key, known in (
        ("method", [name for name in host.methods if name not in ("base", "linear")]),
        ("backbone.name", list(host.backbones)),
        ("optimizer.name", host.optimizers),
        ("scheduler.name", host.schedulers),
        ("data.dataset", DATASETS),
    ):
        value = OmegaConf.select(cfg, key)
        if value not in known:
            raise ConfigError(
                f"{key}: {value!r} is not in this solo-learn ({host.info.version}), "
                f"which has {', '.join(known)}"
            )
    if OmegaConf.select(cfg, "data.format") == "dali":
        raise ConfigError(
            "data.format: solo-infoaug pretrain reads image_folder and h5, got 'dali'; "
            "use solo-learn's own main_pretrain.py, or data.format=image_folder"
        )
    if OmegaConf.select(cfg, "auto_umap.enabled"):
        _say("auto_umap.enabled: solo-infoaug pretrain draws none; solo-learn's main_umap.py does")
    _check_data(cfg)
    if OmegaConf.select(cfg, "checkpoint.enabled") or _logger_kind(cfg) != "none":
        folder = OmegaConf.select(cfg, "checkpoint.dir", default="trained_models")
        check_output_folder(Path(folder) / cfg.method, "checkpoint.dir")
    resume = OmegaConf.select(cfg, "resume_from_checkpoint")
    if resume is not None and not is_zipfile(resume):  # as torch writes it
        raise ConfigError(f"resume_from_checkpoint: expected a .ckpt file, got {resume}")


def _check_data(cfg: DictConfig) -> None:
    """The folders are there, and hold what torchvision's ImageFolder and solo-learn look for."""
    if cfg.data.dataset not in ("custom", "imagenet", "imagenet100"):
        return
    folders = OmegaConf.select(cfg, "data.format", default="image_folder") == "image_folder"
    unlabelled = cfg.data.dataset == "custom" and OmegaConf.select(cfg, "data.no_labels")
    classes: dict[str, list[str]] = {}
    for key in ("data.train_path", "data.val_path"):
        value = OmegaConf.select(cfg, key)
        if value is None:
            continue
        path = Path(value)
        if not path.exists():
            raise ConfigError(f"{key}: expected the path of the data, got {value}")
        if not folders:
            continue
        if not path.is_dir():
            raise ConfigError(f"{key}: expected a folder of images, got {value}, which is a file")
        if unlabelled:
            if key == "data.train_path":
                _check_flat(path)
        else:
            classes[key] = image_classes(path, key)
    train, val = (classes.get(f"data.{half}_path") for half in ("train", "val"))
    if train and val and train != val:
        raise ConfigError(
            "data.val_path: expected the classes of data.train_path, "
            f"{_some(train)}; got {_some(val)}"
        )


def image_classes(path: Path, key: str) -> list[str]:
    """The classes of a folder of images as torchvision sees it: a sub-folder each.

    Args:
        path: of the folder.
        key: what messages call it.

    Raises:
        ConfigError: there is none, or one has no image in it.
    """
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if not names:
        raise ConfigError(
            f"{key}: expected a folder for each class, got {path}, which has none; for images "
            "without labels set data.no_labels=true"
        )
    for name in names:
        files = (file for _, _, found in os.walk(path / name, followlinks=True) for file in found)
        if not any(file.lower().endswith(IMG_EXTENSIONS) for file in files):
            raise ConfigError(
                f"{key}: {path / name} is a class without an image; remove it, or put images "
                f"there ({', '.join(IMG_EXTENSIONS)})"
            )
    return names


def _check_flat(path: Path) -> None:
    """solo-learn opens every entry of a folder without labels as an image."""
    entries = sorted(path.iterdir())
    if not entries:
        raise ConfigError(f"data.train_path: expected images, got {path}, which is empty")
    for entry in entries:
        if not entry.name.lower().endswith(IMG_EXTENSIONS) or entry.is_dir():
            raise ConfigError(
                f"data.train_path: with data.no_labels expected images alone, got {entry}"
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown}, … ({len(names)} in all)"


@contextmanager
def _refused_by(host: Host) -> Iterator[None]:
    """Inside, solo-learn's complaints about a configuration are ours: it has bare assertions."""
    try:
        yield
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{key}{str(error).splitlines()[0]}") from error
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InfoAugError):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        where = frames[-1]
        inside = Path(where.filename).is_relative_to(host.info.path / "solo")
        if not inside:  # a fault of ours or of another library keeps its traceback
            raise
        why = f" ({type(error).__name__}: {error})" if str(error) else ""
        raise ConfigError(
            f"solo-learn {host.info.version} refuses this configuration{why}, in "
            f"{Path(where.filename).name}, line {where.lineno}: {where.line}"
        ) from error


@contextmanager
def _had(cfg: DictConfig) -> Iterator[None]:
    """Inside, a data set that torchvision neither finds nor can download is an error of ours."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if cfg.data.dataset not in ("cifar10", "cifar100", "stl10"):
            raise
        raise ConfigError(
            f"data.train_path: {cfg.data.dataset} is not at {cfg.data.train_path} and cannot be "
            f"downloaded ({error})"
        ) from error


def _trainer_arguments(cfg: DictConfig) -> dict[str, Any]:
    known = inspect.signature(Trainer.__init__).parameters
    given: Any = OmegaConf.to_container(cfg)
    arguments = {name: value for name, value in given.items() if name in known}
    if cfg.strategy == "ddp":
        arguments["strategy"] = DDPStrategy(find_unused_parameters=False)
    elif cfg.strategy is None:
        arguments["strategy"] = "auto"
    return arguments


def pretrain(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> TrainingResult:
    """Pretrain as solo-learn's `main_pretrain.py` does.

    Args:
        cfg: a solo-learn configuration (`load_config`); it is completed in place.
        callbacks: further Lightning callbacks.

    Raises:
        ConfigError: a key or value that cannot be used, before any training.
        OutputError: `checkpoint.dir` cannot be written.
        DataError: an image that cannot be read.
    """
    host = register()
    _check(host, cfg)
    choose_device(cfg)
    with _refused_by(host):
        cfg = host.parse_cfg(cfg)
    if cfg.data.num_large_crops != 2 and cfg.method not in ("wmse", "mae"):
        raise ConfigError(
            f"augmentations: {cfg.method} takes 2 large crops, got {cfg.data.num_large_crops} "
            f"of {cfg.augmentations[0].crop_size} pixels"
        )
    seed_everything(cfg.seed, verbose=False)

    with _refused_by(host):
        model = host.methods[cfg.method](cfg)
    with torch.no_grad():  # some distributed strategies want it, and main_pretrain.py does it
        for parameter in model.parameters():
            parameter.set_(parameter.contiguous())
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    with _refused_by(host), _had(cfg):
        validation = _validation_loader(host, cfg)
        training = _train_loader(host, cfg)

    resume = cfg.resume_from_checkpoint
    if resume is None and cfg.auto_resume.enabled:
        resume, _ = host.find_checkpoint(cfg)
        if resume is not None:
            _say(f"Resuming from the checkpoint that matches this run: {resume}")

    version = "".join(random.SystemRandom().choices(string.ascii_lowercase + string.digits, k=8))
    logger = _logger(cfg, version)
    used = list(callbacks)
    checkpointer = None
    if cfg.checkpoint.enabled:
        checkpointer = host.checkpointer(
            cfg,
            logdir=Path(cfg.checkpoint.dir) / cfg.method,
            frequency=cfg.checkpoint.frequency,
            keep_prev=cfg.checkpoint.keep_prev,
        )
        used.append(checkpointer)
    if logger is not None:
        logger.log_hyperparams(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
        used.append(LearningRateMonitor(logging_interval="step"))
    arguments = {
        **_trainer_arguments(cfg),
        "logger": logger if logger is not None else False,
        "callbacks": used,
        "enable_checkpointing": False,
    }
    try:
        trainer = Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"Lightning's Trainer refuses this configuration: {error}") from error
    try:
        trainer.fit(model, training, validation, ckpt_path=resume)
    except DataError as error:
        # a worker's process hands over its whole traceback as the message
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from error
    last = Path(resume) if resume is not None else None
    folder = None
    if checkpointer is not None:
        # it looks for its folder when training starts, and a finished run does not train again
        started = hasattr(checkpointer, "path")
        if not started:
            _say(f"Nothing to do: {last} has all its {cfg.max_epochs} epochs")
        folder = checkpointer.path if started else last.parent if last is not None else None
        last = Path(checkpointer.last_ckpt) if started and checkpointer.last_ckpt else last
    return TrainingResult(
        folder=folder,
        checkpoint=last,
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        model=model,
    )
