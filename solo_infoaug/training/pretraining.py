"""solo-learn's pretraining from solo-learn's own YAML configurations, on either host.

It does what `main_pretrain.py` does, with two differences: the device fits the machine, and without
wandb the metrics go to a CSV file (or TensorBoard) in the folder of the checkpoint.
"""

from __future__ import annotations

import importlib.util
import inspect
import secrets
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_infoaug._checks import require
from solo_infoaug._files import check_output_folder
from solo_infoaug.errors import ConfigError, DataError, InfoAugError
from solo_infoaug.host import Host, wanted_by_host
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.training.batches import check_device_memory, on_device
from solo_infoaug.training.config import check_values, choose_device, say
from solo_infoaug.training.data import check_data, downloadable, train_loader, validation_loader
from solo_infoaug.training.layouts import CLASSES, check_fraction, name_for_host
from solo_infoaug.training.start import begin_with, read_init
from solo_infoaug.twin.config import read_infoaug
from solo_infoaug.twin.registration import register

LOGGERS = ("csv", "tensorboard", "none")
DATASETS = (*CLASSES, "imagenet", "imagenet100", "custom")
"""The data sets of both solo-learns, and `tiny_imagenet`."""


@dataclass(frozen=True)
class TrainingResult:
    """The output of a finished run."""

    folder: Path | None
    """Folder of args.json, checkpoint and metrics; None if `checkpoint.enabled` is off. For a run
    that had finished before, the folder of its checkpoint."""
    checkpoint: Path | None
    metrics: dict[str, float]
    """The last values that were logged."""
    model: Any


def _logger_kind(cfg: DictConfig) -> str:
    logger = OmegaConf.select(cfg, "logger", default="csv")
    require(logger in LOGGERS, "logger", f"one of {', '.join(LOGGERS)}", logger)
    return str(logger)


def _logger(cfg: DictConfig, version: str) -> Logger | None:
    if OmegaConf.select(cfg, "wandb.enabled") and importlib.util.find_spec("wandb"):
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(
            name=cfg.name,
            project=cfg.wandb.project,
            entity=cfg.wandb.entity,
            offline=cfg.wandb.offline,
        )
    logger = _logger_kind(cfg)
    if OmegaConf.select(cfg, "wandb.enabled"):
        say(f"wandb.enabled, but wandb is not installed: logging to {logger}")
    if logger == "none":
        return None
    if logger == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                "logger: tensorboard is not installed; pip install tensorboard, or logger=csv"
            )
        return TensorBoardLogger(cfg.checkpoint.dir, name=cfg.method, version=version)
    return CSVLogger(
        cfg.checkpoint.dir, name=cfg.method, version=version, flush_logs_every_n_steps=50
    )


def _check(host: Host, cfg: DictConfig) -> None:
    """Check what can be checked before anything is loaded."""
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
    if OmegaConf.select(cfg, "knn_eval.enabled"):
        _check_knn(host)
    check_device_memory(cfg)
    check_fraction(*(OmegaConf.select(cfg, f"data.{k}") for k in ("fraction", "fraction_seed")))
    if OmegaConf.select(cfg, "data.format") == "dali":
        raise ConfigError(
            "data.format: solo-infoaug pretrain reads image_folder and h5, got 'dali'; "
            "use solo-learn's own main_pretrain.py, or data.format=image_folder"
        )
    if OmegaConf.select(cfg, "auto_umap.enabled"):
        say("auto_umap.enabled: solo-infoaug pretrain draws no UMAP; use solo-learn's main_umap.py")
    name_for_host(cfg)
    check_data(cfg)
    if OmegaConf.select(cfg, "checkpoint.enabled") or _logger_kind(cfg) != "none":
        folder = OmegaConf.select(cfg, "checkpoint.dir", default="trained_models")
        check_output_folder(Path(folder) / cfg.method, "checkpoint.dir")
    resume = OmegaConf.select(cfg, "resume_from_checkpoint")
    if resume is not None and not is_zipfile(resume):  # as torch writes it
        raise ConfigError(f"resume_from_checkpoint: expected a .ckpt file, got {resume}")


def _check_knn(host: Host) -> None:
    """Check solo-learn's online k-NN: it passes an argument that later torchmetrics lack."""
    if host.knn is None:
        return  # that solo-learn's adapter raises the error
    try:
        host.knn()
    except (TypeError, ValueError) as error:
        wanted = wanted_by_host(host.info).get("torchmetrics", "<0.12")
        raise ConfigError(
            f"knn_eval.enabled: solo-learn {host.info.version} needs torchmetrics{wanted}, got "
            f"{metadata.version('torchmetrics')} ({error}); leave it out and use solo-infoaug "
            f'evaluate for k-NN, or pip install "torchmetrics{wanted}"'
        ) from error


@contextmanager
def _refused_by(host: Host) -> Iterator[None]:
    """Turn solo-learn's errors about a configuration into ours: it has bare assertions."""
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
        if not inside:  # an error of ours or of another library keeps its traceback
            raise
        why = f" ({type(error).__name__}: {error})" if str(error) else ""
        raise ConfigError(
            f"solo-learn {host.info.version} refuses this configuration{why}, in "
            f"{Path(where.filename).name}, line {where.lineno}: {where.line}"
        ) from error


@contextmanager
def _refused_by_lightning() -> Iterator[None]:
    """Turn Lightning's errors about its keys into ours. Some depend on the amount of data and come
    late, such as that of `limit_train_batches`."""
    try:
        yield
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, InfoAugError):
            raise
        where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        inside = where.is_relative_to(Path(inspect.getfile(Trainer)).parents[1])
        if not inside and not isinstance(error, MisconfigurationException):
            raise
        why = " ".join(str(error).split())
        raise ConfigError(f"Lightning's Trainer refuses this run: {why}") from error


def _callbacks(
    host: Host, cfg: DictConfig, more: Sequence[Callback]
) -> tuple[Logger | None, list[Callback], Any]:
    """The logger, all callbacks, and the callback that writes checkpoints, if any."""
    logger = _logger(cfg, version=secrets.token_hex(4))
    used = list(more)
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
    return logger, used, checkpointer


def _trainer(cfg: DictConfig, logger: Logger | None, callbacks: list[Callback]) -> Trainer:
    known = inspect.signature(Trainer.__init__).parameters
    given: Any = OmegaConf.to_container(cfg)
    arguments = {name: value for name, value in given.items() if name in known}
    if cfg.strategy == "ddp":
        arguments["strategy"] = DDPStrategy(find_unused_parameters=False)
    elif cfg.strategy is None:
        arguments["strategy"] = "auto"
    arguments |= {
        "logger": logger if logger is not None else False,
        "callbacks": callbacks,
        "enable_checkpointing": False,
    }
    try:
        return Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"Lightning's Trainer refuses this configuration: {error}") from error


def pretrain(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> TrainingResult:
    """Pretrain as solo-learn's `main_pretrain.py` does.

    Args:
        cfg: a solo-learn configuration (`load_config`); it is completed in place. Its key `init`
            names a checkpoint, or `timm:NAME`, whose weights the backbone begins with.
        callbacks: further Lightning callbacks.

    Raises:
        ConfigError: a key or value cannot be used; raised before any training.
        OutputError: `checkpoint.dir` cannot be written.
        DataError: an image cannot be read.

    Examples:
        >>> from solo_infoaug import load_config
        >>> overrides = ["data.train_path=images/", "optimizer.batch_size=8", "max_epochs=1"]
        >>> overrides += ["++infoaug.twins=twins/", "accelerator=cpu"]
        >>> overrides += ["++enable_progress_bar=false", "++enable_model_summary=false"]
        >>> result = pretrain(load_config("configs/demo", "simclr", overrides))
        InfoAug: positives=twins, weight=1, 8 pairs a step of 24 patches with a twin in ...
        >>> sorted({path.suffix for path in result.folder.iterdir()})
        ['.ckpt', '.csv', '.json', '.yaml']
        >>> "twin_loss" in result.metrics
        True
    """
    host = register()
    with _refused_by(host):
        _check(host, cfg)
        init = read_init(cfg)
        choose_device(cfg)
        cfg = host.parse_cfg(cfg)
    if cfg.data.num_large_crops != 2 and cfg.method not in ("wmse", "mae"):
        raise ConfigError(
            f"augmentations: {cfg.method} takes 2 large crops, got {cfg.data.num_large_crops} "
            f"of {cfg.augmentations[0].crop_size} pixels"
        )
    seed_everything(cfg.seed, verbose=False)

    with _refused_by(host):
        model = host.methods[cfg.method](cfg)
    with torch.no_grad():  # some distributed strategies need it, and main_pretrain.py does it
        for parameter in model.parameters():
            parameter.set_(parameter.contiguous())
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    there = downloadable(cfg.data.dataset, cfg.data.train_path, "data.train_path")
    with _refused_by(host), there:
        validation = validation_loader(host, cfg)
        training = train_loader(host, cfg)

    resume = cfg.resume_from_checkpoint
    if resume is None and cfg.auto_resume.enabled:
        resume, _ = host.find_checkpoint(cfg)
        if resume is not None:
            say(f"Resuming from the checkpoint that matches this run: {resume}")

    if init is not None and resume is None:
        say(f"Beginning with {init}: {begin_with(model, init).told}")

    logger, used, checkpointer = _callbacks(host, cfg, [*callbacks, *on_device(training, cfg)])
    trainer = _trainer(cfg, logger, used)
    try:
        with _refused_by_lightning():
            trainer.fit(model, training, validation, ckpt_path=resume)
    except DataError as error:
        # a worker process passes its whole traceback as the message
        raise DataError(str(error).strip().rpartition("DataError: ")[2]) from error
    folder, last = _left_by(checkpointer, cfg, Path(resume) if resume is not None else None)
    return TrainingResult(
        folder=folder,
        checkpoint=last,
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        model=model,
    )


def _left_by(
    checkpointer: Any, cfg: DictConfig, resumed: Path | None
) -> tuple[Path | None, Path | None]:
    """The folder of a run and its last checkpoint, if any."""
    last, folder = resumed, None
    if checkpointer is not None:
        # it chooses its folder when training starts, and a finished run does not train again
        started = hasattr(checkpointer, "path")
        if not started:
            say(f"Nothing to do: {last} has all its {cfg.max_epochs} epochs")
        folder = checkpointer.path if started else last.parent if last is not None else None
        last = Path(checkpointer.last_ckpt) if started and checkpointer.last_ckpt else last
    return folder, last
