"""A configuration of the current solo-learn, as the PyPI release takes it.

The release takes keyword arguments where the current version takes `cfg`. What it does not have
is refused.
"""

from __future__ import annotations

import inspect
import os
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from solo_infoaug.errors import ConfigError
from solo_infoaug.host.small import SMALL

_EMBEDDED = "the embedded solo-learn 1.0.2"
_NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "stl10": 10, "imagenet": 1000, "imagenet100": 100}

# The release builds backbones from a table inside its constructor, of names that it imports there.
STANDS_FOR_SMALL = "vit_tiny"


def parse_cfg(cfg: DictConfig) -> DictConfig:
    """Defaults and derived values, as the current solo-learn's `parse_cfg` adds them."""
    defaults = OmegaConf.load(Path(__file__).with_name("release.yaml"))
    given = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    merged = OmegaConf.merge(defaults, given)
    for key in map(str, merged):
        cfg[key] = OmegaConf.select(merged, key)
    if cfg.data.format != "image_folder":
        raise _lacks("data.format", f"{_EMBEDDED} reads image_folder, got {cfg.data.format!r}")
    dataset = cfg.data.dataset
    cfg.data.num_classes = _NUM_CLASSES.get(dataset) or max(
        1, sum(entry.is_dir() for entry in os.scandir(cfg.data.train_path))
    )
    large = cfg.augmentations[0].crop_size
    crops = [(pipeline.crop_size, pipeline.num_crops) for pipeline in cfg.augmentations]
    cfg.data.num_large_crops = sum(n for size, n in crops if size == large)
    cfg.data.num_small_crops = sum(n for size, n in crops if size != large)
    # the learning rates are given for a batch of 256
    scale = cfg.optimizer.batch_size * len(cfg.devices) * cfg.num_nodes / 256
    cfg.optimizer.lr = cfg.optimizer.lr * scale
    if cfg.data.val_path is not None:
        cfg.optimizer.classifier_lr = cfg.optimizer.classifier_lr * scale
    return cfg


def build_transform_pipeline(dataset: str, cfg: DictConfig) -> Callable[[Any], torch.Tensor]:
    """The release's own views for one entry of `augmentations`."""
    from solo.utils.pretrain_dataloader import prepare_transform

    if not OmegaConf.select(cfg, "rrc.enabled", default=True):
        raise _lacks("augmentations", f"rrc.enabled: false is not in {_EMBEDDED}")
    if OmegaConf.select(cfg, "equalization.prob", default=0.0):
        what = f"equalization is not in {_EMBEDDED}"
        raise _lacks("augmentations", what, "set its prob to 0, or ")
    jitter = cfg.color_jitter
    parts = ("brightness", "contrast", "saturation", "hue")
    arguments = {
        **{part: jitter.get(part, 0.0) for part in parts},
        "color_jitter_prob": jitter.prob,
        "gray_scale_prob": cfg.grayscale.prob,
        "horizontal_flip_prob": cfg.horizontal_flip.prob,
        "gaussian_prob": cfg.gaussian_blur.prob,
        "solarization_prob": cfg.solarization.prob,
        "min_scale": cfg.rrc.crop_min_scale,
        "max_scale": cfg.rrc.crop_max_scale,
        "crop_size": cfg.crop_size,
    }
    if dataset == "custom":
        arguments["mean"] = list(cfg.get("mean", IMAGENET_DEFAULT_MEAN))
        arguments["std"] = list(cfg.get("std", IMAGENET_DEFAULT_STD))
    return prepare_transform(dataset, **arguments)


def _default_arguments(method: type) -> dict[str, Any]:
    """The defaults of the options that a method declares."""
    parser = ArgumentParser()
    method.add_model_specific_args(parser)  # type: ignore[attr-defined]
    return {action.dest: action.default for action in parser._actions if action.dest != "help"}


def _accepted_arguments(method: type) -> set[str]:
    return {
        name
        for cls in inspect.getmro(method)
        if "__init__" in vars(cls) and cls.__module__.startswith("solo.")
        for name in inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    } - {"self", "kwargs"}


def _mapping(cfg: DictConfig, key: str) -> dict[str, Any]:
    value = OmegaConf.select(cfg, key)
    container: Any = OmegaConf.to_container(value, resolve=True) if value else {}
    return dict(container)


def _lacks(key: str, what: str, instead: str = "") -> ConfigError:
    """The error about a missing feature of the release; `instead` is another remedy."""
    way = f"{instead}set SOLO_LEARN_HOME to a clone of the current solo-learn"
    return ConfigError(f"{key}: {what}; {way}")


def _refuse_what_is_missing(method: Any, cfg: DictConfig) -> None:
    backbone, known = str(cfg.backbone.name), method._SUPPORTED_ENCODERS
    if backbone not in known:
        what = f"{backbone!r} is not in {_EMBEDDED}, which has {', '.join(known)}"
        raise _lacks("backbone.name", what)
    if OmegaConf.select(cfg, key := "optimizer.exclude_bias_n_norm_wd", default=False):
        raise _lacks(key, f"{_EMBEDDED} does not have it", "set it to False, or ")
    if OmegaConf.select(cfg, key := "knn_eval.enabled", default=False):
        what = f"{_EMBEDDED}'s online k-NN does not run on today's torchmetrics"
        raise _lacks(key, what, "set it to False (solo-infoaug evaluate has k-NN), or ")


def method_arguments(method: type, cfg: DictConfig) -> dict[str, Any]:
    """Translate a current solo-learn configuration to the keyword arguments of a release method.

    Raises:
        ConfigError: the configuration asks for something that the release does not have.
    """
    _refuse_what_is_missing(method, cfg)
    select, backbone = OmegaConf.select, str(cfg.backbone.name)
    optimizer = str(cfg.optimizer.name)
    options = _mapping(cfg, "optimizer.kwargs")
    lars = {
        "eta_lars": options.pop("eta", 1e-3),
        "grad_clip_lars": options.pop("clip_lr", False),
        "exclude_bias_n_norm": options.pop("exclude_bias_n_norm", False),
    }
    if optimizer in ("lars", "sgd"):
        options.setdefault("momentum", 0.9)

    kwargs = _mapping(cfg, "backbone.kwargs")
    kwargs["cifar"] = cfg.data.dataset in ("cifar10", "cifar100")
    if not backbone.startswith("resnet") and backbone != SMALL:
        kwargs.setdefault("img_size", cfg.augmentations[0].crop_size)

    arguments = {
        **_default_arguments(method),
        **_mapping(cfg, "method_kwargs"),
        "encoder": STANDS_FOR_SMALL if backbone == SMALL else backbone,
        "backbone_args": kwargs,
        "num_classes": cfg.data.num_classes,
        "max_epochs": cfg.max_epochs,
        "batch_size": cfg.optimizer.batch_size,
        "optimizer": "sgd" if optimizer == "lars" else optimizer,
        "lars": optimizer == "lars",
        **lars,
        "lr": cfg.optimizer.lr,
        "weight_decay": cfg.optimizer.weight_decay,
        "classifier_lr": select(cfg, "optimizer.classifier_lr", default=cfg.optimizer.lr),
        "extra_optimizer_args": options,
        "accumulate_grad_batches": select(cfg, "accumulate_grad_batches", default=1) or 1,
        "scheduler": cfg.scheduler.name,
        "lr_decay_steps": select(cfg, "scheduler.lr_decay_steps", default=None),
        "min_lr": select(cfg, "scheduler.min_lr", default=0.0),
        "warmup_start_lr": select(cfg, "scheduler.warmup_start_lr", default=3e-5),
        "warmup_epochs": select(cfg, "scheduler.warmup_epochs", default=10),
        "num_large_crops": cfg.data.num_large_crops,
        "num_small_crops": cfg.data.num_small_crops,
        "base_tau_momentum": select(cfg, "momentum.base_tau", default=0.99),
        "final_tau_momentum": select(cfg, "momentum.final_tau", default=1.0),
        "momentum_classifier": select(cfg, "momentum.classifier", default=False),
    }
    accepted = _accepted_arguments(method)
    return {name: value for name, value in arguments.items() if name in accepted}
