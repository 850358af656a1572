"""The PyPI release of solo-learn (1.0.2, 2021), adapted to look like the current version.

The release takes argparse keyword arguments, calls the backbone `encoder`, needs lightning-bolts
and runs on pytorch-lightning 1.4. Here its methods get the current `cfg` constructor and names, and
run on the installed Lightning. Its modules are not changed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import sys
import types
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import Host, HostInfo
from solo_infoaug.host.method import Method
from solo_infoaug.host.small import SMALL, SmallResNet

_EMBEDDED = "the embedded solo-learn 1.0.2"
_NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "stl10": 10, "imagenet": 1000, "imagenet100": 100}

# The keys that the current solo-learn's auto-resume compares, for the release's runs as well.
_SHOULD_MATCH = [
    "name",
    "backbone",
    "method",
    "data.dataset",
    "max_epochs",
    "optimizer.name",
    "optimizer.batch_size",
    "optimizer.lr",
    "optimizer.weight_decay",
    "wandb.project",
    "wandb.entity",
    "pretrained_feature_extractor",
]


# --- what the release imports and nobody can install any more --------------------------------


class LinearWarmupCosineAnnealingLR(LRScheduler):
    """Linear warm-up to the base rate, then half a cosine down to `eta_min`, in closed form.

    Stands in for the class of the same name in lightning-bolts, which the release imports.
    """

    def __init__(
        self,
        optimizer: Any,
        warmup_epochs: float,
        max_epochs: float,
        warmup_start_lr: float = 0.0,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_epochs = warmup_epochs
        self.max_epochs = max_epochs
        self.warmup_start_lr = warmup_start_lr
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Learning rates at `self.last_epoch`."""
        now = self.last_epoch
        if now < self.warmup_epochs:
            done = now / max(1.0, self.warmup_epochs - 1)
            return [self.warmup_start_lr + done * (b - self.warmup_start_lr) for b in self.base_lrs]
        length = max(1.0, self.max_epochs - self.warmup_epochs)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (now - self.warmup_epochs) / length)))
        return [self.eta_min + cosine * (base - self.eta_min) for base in self.base_lrs]


def _distutils() -> dict[str, types.ModuleType]:
    """What DINO imports from `distutils`, which Python 3.12 only has through setuptools."""
    try:
        importlib.import_module("distutils.util")
    except ImportError:
        util = types.ModuleType("distutils.util")
        util.strtobool = lambda text: text.lower() in ("y", "yes", "t", "true", "on", "1")  # type: ignore[attr-defined]
        package = types.ModuleType("distutils")
        package.util = util  # type: ignore[attr-defined]
        return {"distutils": package, "distutils.util": util}
    return {}


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Inside, `pytorch_lightning` is the installed `lightning.pytorch`, for the import of the
    release.

    The release's modules bind the names during the import, so no other code sees the stand-ins.
    """
    scheduler = types.ModuleType("pl_bolts.optimizers.lr_scheduler")
    scheduler.LinearWarmupCosineAnnealingLR = (  # type: ignore[attr-defined]
        LinearWarmupCosineAnnealingLR
    )
    names = {
        "pytorch_lightning": importlib.import_module("lightning.pytorch"),
        "pytorch_lightning.callbacks": importlib.import_module("lightning.pytorch.callbacks"),
        "pl_bolts": types.ModuleType("pl_bolts"),
        "pl_bolts.optimizers": types.ModuleType("pl_bolts.optimizers"),
        scheduler.__name__: scheduler,
        **_distutils(),
    }
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _TorchOfThen(types.ModuleType):
    """torch, with a function for W-MSE's whitening that was renamed since."""

    cholesky = staticmethod(torch.linalg.cholesky)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


# --- cfg → keyword arguments -----------------------------------------------------------------


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
        "encoder": _STANDS_FOR_SMALL if backbone == SMALL else backbone,
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


# --- the methods -----------------------------------------------------------------------------

# The release builds backbones from a table inside its constructor, of names that it imports there.
_STANDS_FOR_SMALL = "vit_tiny"


@contextmanager
def _small_backbone(cfg: DictConfig | None) -> Iterator[None]:
    """Inside, the release builds `small_resnet` under the name `vit_tiny`."""
    if cfg is None or cfg.backbone.name != SMALL:
        yield
        return
    from solo.utils import backbones

    before = getattr(backbones, _STANDS_FOR_SMALL)
    setattr(backbones, _STANDS_FOR_SMALL, SmallResNet)
    try:
        yield
    finally:
        setattr(backbones, _STANDS_FOR_SMALL, before)


class _Adapter(Method):
    """Mixed into a release method: takes `cfg`, or the release's own keyword arguments."""

    release_method: Any
    """The release's own class."""
    encoder: nn.Module
    momentum_encoder: nn.Module
    scheduler: str
    max_epochs: float
    warmup_epochs: float

    # Lightning 2 looks at the class for a hook that it removed, and refuses to run it.
    validation_epoch_end: Any = None

    def __init__(self, cfg: DictConfig | None = None, **kwargs: Any) -> None:
        if cfg is not None:
            kwargs = method_arguments(self.release_method, cfg)
        with _small_backbone(cfg):
            super().__init__(**kwargs)
        self.cfg = cfg
        self.scheduler_interval = "epoch"
        if cfg is not None:
            self.encoder_name = str(cfg.backbone.name)
            self.scheduler_interval = OmegaConf.select(cfg, "scheduler.interval") or "step"
        self._validation_outputs: list[Any] = []

    @property
    def backbone(self) -> nn.Module:
        return self.encoder

    @property
    def momentum_backbone(self) -> nn.Module:
        return self.momentum_encoder

    def configure_optimizers(self) -> Any:
        """The release's optimizer; the schedule counts steps if the configuration says so."""
        cosine = self.scheduler in ("warmup_cosine", "cosine")
        if self.scheduler_interval == "epoch" or not cosine:
            return super().configure_optimizers()
        epochs, warmup = self.max_epochs, self.warmup_epochs
        steps = self.trainer.estimated_stepping_batches
        self.max_epochs, self.warmup_epochs = steps, warmup * steps / epochs
        try:
            optimizers, (scheduler,) = super().configure_optimizers()
        finally:
            self.max_epochs, self.warmup_epochs = epochs, warmup
        return optimizers, [{"scheduler": scheduler, "interval": "step", "frequency": 1}]

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().validation_step(*args, **kwargs)
        self._validation_outputs.append(outputs)
        return outputs

    def on_validation_epoch_end(self) -> None:
        outputs, self._validation_outputs = self._validation_outputs, []
        self.release_method.validation_epoch_end(self, outputs)


def _clip_gradients(self: Any, *args: Any, **kwargs: Any) -> None:
    """DINO's hook, under a name that Lightning 2 also calls."""
    owner = LightningModule if len(args) + len(kwargs) > 1 else self.release_method
    owner.clip_gradients(self, *args, **kwargs)


def _on_train_batch_end(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
    self.release_method.on_train_batch_end(self, outputs, batch, batch_idx, 0)


def adapt(method: type) -> type:
    """A subclass of a release method with the current constructor and names."""
    members = {
        "release_method": method,
        "__module__": method.__module__,
        "__doc__": method.__doc__,
    }
    if "clip_gradients" in vars(method):
        members["clip_gradients"] = _clip_gradients
    if hasattr(method, "momentum_pairs"):
        members["on_train_batch_end"] = _on_train_batch_end
    return type(method.__name__, (_Adapter, method), members)


def project(method: Any, outputs: dict[str, Any]) -> dict[str, Any]:
    """The base class's outputs plus projected features, as the current solo-learn returns them.

    Keys are normalised, as the current MoCo's are.
    """
    projected = {"z": [method.projector(features) for features in outputs["feats"]]}
    if "momentum_feats" in outputs:
        with torch.no_grad():
            projected["momentum_z"] = [
                nn.functional.normalize(method.momentum_projector(features), dim=-1)
                for features in outputs["momentum_feats"]
            ]
    return {**outputs, **projected}


def _lars_that_runs_its_closure(wrapper: type) -> type:
    """Lightning computes gradients in the optimizer's closure: run it before LARS scales them."""
    base: Any = wrapper

    class LARS(base):
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            super().step()
            return loss

    return LARS


# --- configuration, data, checkpoints --------------------------------------------------------


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


def prepare_datasets(
    dataset: str,
    transform: Callable[[Any], Any],
    train_data_path: str | os.PathLike[str] | None = None,
    no_labels: bool = False,
    **of_the_current: Any,
) -> Any:
    """The release's pretraining data set at `train_data_path`."""
    from solo.utils.pretrain_dataloader import prepare_datasets as prepare

    return prepare(
        dataset,
        transform,
        data_dir=Path(train_data_path) if train_data_path is not None else None,
        train_dir=".",
        no_labels=no_labels,
    )


def prepare_data(
    dataset: str,
    train_data_path: str | os.PathLike[str] | None = None,
    val_data_path: str | os.PathLike[str] | None = None,
    data_format: str = "image_folder",
    batch_size: int = 64,
    num_workers: int = 4,
    download: bool = True,
) -> tuple[Any, Any]:
    """The release's labelled loaders for training and validation."""
    from solo.utils.classification_dataloader import prepare_data as prepare

    return prepare(
        dataset,
        data_dir=Path("/"),
        train_dir=Path(train_data_path or "datasets").resolve(),
        val_dir=Path(val_data_path or "datasets").resolve(),
        batch_size=batch_size,
        num_workers=num_workers,
        download=download,
    )


def validation_transform(dataset: str) -> Callable[[Any], Any]:
    """How the release shows the validation images of a data set."""
    from solo.utils.classification_dataloader import prepare_transforms

    transform: Callable[[Any], Any] = prepare_transforms(dataset)[1]
    return transform


def checkpointer(
    cfg: DictConfig, logdir: str | os.PathLike[str], frequency: int = 1, keep_prev: bool = False
) -> Callback:
    """The release's checkpoint callback; its args.json holds the current configuration."""
    from solo.utils.checkpointer import Checkpointer

    class Current(Checkpointer):
        def save_args(self, trainer: Any) -> None:
            # the configuration may have gained keys since the callback was made
            args: Any = OmegaConf.to_container(cfg)
            self.args = Namespace(**args)
            super().save_args(trainer)

        def save(self, trainer: Any) -> None:
            super().save(trainer)
            if not trainer.is_global_zero and not trainer.sanity_checking:
                # Lightning 2 waits for all processes here; the first one alone writes
                trainer.save_checkpoint(Path(logdir) / "unused.ckpt")

    return Current(
        Namespace(name=cfg.name),
        logdir=Path(logdir),
        frequency=frequency,
        keep_previous_checkpoints=keep_prev,
    )


def find_checkpoint(cfg: DictConfig) -> tuple[Path | None, str | None]:
    """The newest checkpoint under `checkpoint.dir`/`method` whose args.json is this run's."""
    oldest = datetime.now() - timedelta(hours=cfg.auto_resume.max_hours)
    folder = Path(cfg.checkpoint.dir) / cfg.method
    written = sorted(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_ctime, reverse=True)
    for path in written:
        if datetime.fromtimestamp(path.stat().st_ctime) < oldest:
            continue
        args = path.parent / "args.json"
        if not args.is_file():
            continue
        other = OmegaConf.create(json.loads(args.read_text(encoding="utf-8")))
        select = OmegaConf.select
        if all(select(other, key) == select(cfg, key) for key in _SHOULD_MATCH):
            return path, None
    return None, None


def load(info: HostInfo) -> Host:
    """Import the release and adapt it. `solo.methods.METHODS` holds the adapted methods then."""
    with _stand_ins():
        from solo.methods import METHODS, base
        from solo.utils import pretrain_dataloader as data
        from solo.utils import whitening
        from solo.utils.checkpointer import Checkpointer  # noqa: F401  (binds its Lightning)

    whitening.torch = _TorchOfThen("torch")
    base.LARSWrapper = _lars_that_runs_its_closure(base.LARSWrapper)
    for name, method in METHODS.items():
        if name not in ("base", "linear"):
            METHODS[name] = adapt(method)

    if SMALL not in base.BaseMethod._SUPPORTED_ENCODERS:
        base.BaseMethod._SUPPORTED_ENCODERS.append(SMALL)

    def backbone(name: str) -> Callable[..., nn.Module]:
        if name == SMALL:
            return SmallResNet

        def build(method: str, **kwargs: Any) -> nn.Module:
            from solo.utils import backbones
            from torchvision import models

            return getattr(models if name.startswith("resnet") else backbones, name)(**kwargs)

        return build

    return Host(
        info=info,
        methods=METHODS,
        backbones={name: backbone(name) for name in base.BaseMethod._SUPPORTED_ENCODERS},
        optimizers=("sgd", "lars", "adam", "adamw"),
        # more are declared, and refused when training starts
        schedulers=("warmup_cosine", "cosine", "step", "none"),
        should_match=_SHOULD_MATCH,
        parse_cfg=parse_cfg,
        build_transform_pipeline=build_transform_pipeline,
        n_crop_augmentation=data.NCropAugmentation,
        full_transform_pipeline=data.FullTransformPipeline,
        prepare_datasets=prepare_datasets,
        prepare_dataloader=data.prepare_dataloader,
        prepare_data=prepare_data,
        validation_transform=validation_transform,
        checkpointer=checkpointer,
        find_checkpoint=find_checkpoint,
        project=project,
        adapted=True,
    )
