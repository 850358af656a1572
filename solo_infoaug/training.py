"""solo-learn's pretraining from solo-learn's own YAML configurations, on either host.

What `main_pretrain.py` does, with two differences: the device is chosen from what the machine has,
and without wandb the metrics go to a CSV file (or TensorBoard) beside the checkpoint.
"""

from __future__ import annotations

import importlib.util
import inspect
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_infoaug.config import read_infoaug
from solo_infoaug.errors import ConfigError
from solo_infoaug.host import Host
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.registration import register

LOGGERS = ("csv", "tensorboard", "none")


_say = rank_zero_only(print)  # Lightning hides what is logged at the level of information


@dataclass(frozen=True)
class TrainingResult:
    """Where a finished run left its things."""

    folder: Path | None
    """args.json, checkpoint and metrics; None where `checkpoint.enabled` is off."""
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
            for ending in ("", ".yaml", ".yml")
            if (folder / f"{config_name}{ending}").is_file()
        ),
        None,
    )
    if file is None:
        names = ", ".join(sorted(p.name for p in folder.glob("*.y*ml"))) or "no YAML file"
        raise ConfigError(f"--config-name: no {config_name!r} in {folder}; there is {names}")
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(folder), version_base="1.2"):
            cfg = compose(file.name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
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
    if told and accelerator != "cpu":
        _say(f"No GPU here, training on the CPU ({', '.join(told)})")


def _cpu_precision(cfg: DictConfig) -> Any:
    """float16 needs a GPU; other precisions are kept."""
    precision = str(OmegaConf.select(cfg, "precision", default="32"))
    return 32 if precision in ("16", "16-mixed", "16-true") else cfg.get("precision", 32)


def _logger(cfg: DictConfig, version: str) -> Logger | None:
    if OmegaConf.select(cfg, "wandb.enabled") and importlib.util.find_spec("wandb"):
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(
            name=cfg.name,
            project=cfg.wandb.project,
            entity=cfg.wandb.entity,
            offline=cfg.wandb.offline,
        )
    kind = OmegaConf.select(cfg, "logger", default="csv")
    if kind not in LOGGERS:
        raise ConfigError(f"logger: expected one of {', '.join(LOGGERS)}, got {kind!r}")
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


def _validation_loader(host: Host, cfg: DictConfig) -> Any:
    data = cfg.data
    unlabelled = data.dataset == "custom" and (data.no_labels or data.val_path is None)
    if unlabelled or (data.dataset in ("imagenet", "imagenet100") and data.val_path is None):
        return None
    return host.prepare_data(
        data.dataset,
        train_data_path=data.train_path,
        val_data_path=data.val_path,
        data_format=data.format,
        batch_size=cfg.optimizer.batch_size,
        num_workers=data.num_workers,
    )[1]


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
    if len(dataset) < cfg.optimizer.batch_size:
        raise ConfigError(
            f"optimizer.batch_size: expected at most the {len(dataset)} images of "
            f"data.train_path ({cfg.data.train_path}), got {cfg.optimizer.batch_size}"
        )
    return host.prepare_dataloader(
        dataset, batch_size=cfg.optimizer.batch_size, num_workers=cfg.data.num_workers
    )


def _check(host: Host, cfg: DictConfig) -> None:
    """What can be known to be wrong before anything is loaded."""
    read_infoaug(cfg)
    FMICLConfig.parse(OmegaConf.select(cfg, "fmicl"))
    for key in ("method", "name", "data.dataset", "data.train_path", "augmentations", "max_epochs"):
        if OmegaConf.select(cfg, key) is None:
            raise ConfigError(f"{key}: expected a value, as in solo-learn's configurations")
    known = [name for name in host.methods if name not in ("base", "linear")]
    if cfg.method not in known:
        raise ConfigError(
            f"method: {cfg.method!r} is not in this solo-learn ({host.info.version}), "
            f"which has {', '.join(known)}"
        )
    if cfg.data.dataset in ("custom", "imagenet", "imagenet100"):
        for key in ("train_path", "val_path"):
            path = OmegaConf.select(cfg, f"data.{key}")
            if path is not None and not Path(path).exists():
                raise ConfigError(f"data.{key}: expected the path of the data, got {path}")
    if OmegaConf.select(cfg, "data.format") == "dali":
        raise ConfigError(
            "data.format: solo-infoaug pretrain reads image_folder and h5, got 'dali'; "
            "use solo-learn's own main_pretrain.py, or data.format=image_folder"
        )


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
    """
    host = register()
    _check(host, cfg)
    choose_device(cfg)
    cfg = host.parse_cfg(cfg)
    if cfg.data.num_large_crops != 2 and cfg.method not in ("wmse", "mae"):
        raise ConfigError(
            f"augmentations: {cfg.method} takes 2 large crops, got {cfg.data.num_large_crops} "
            f"of {cfg.augmentations[0].crop_size} pixels"
        )
    seed_everything(cfg.seed, verbose=False)

    model = host.methods[cfg.method](cfg)
    with torch.no_grad():  # some distributed strategies want it, and main_pretrain.py does it
        for parameter in model.parameters():
            parameter.set_(parameter.contiguous())
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
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
    trainer = Trainer(
        **{
            **_trainer_arguments(cfg),
            "logger": logger if logger is not None else False,
            "callbacks": used,
            "enable_checkpointing": False,
        }
    )
    trainer.fit(model, training, validation, ckpt_path=resume)
    return TrainingResult(
        folder=checkpointer.path if checkpointer is not None else None,
        checkpoint=Path(checkpointer.last_ckpt)
        if checkpointer is not None and checkpointer.last_ckpt
        else (Path(resume) if resume is not None else None),
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        model=model,
    )
