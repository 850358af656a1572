"""The PyPI release of solo-learn (1.0.2, 2021), adapted to look like the current version.

The release takes argparse keyword arguments, calls the backbone `encoder`, needs lightning-bolts
and runs on pytorch-lightning 1.4. Here its methods get the current `cfg` constructor and names, and
run on the installed Lightning. Its modules are not changed.

`release_imports.py` stands in for what it imports and nobody can install any more,
`release_config.py` translates configurations, and `release_methods.py` adapts the methods.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from torch import nn

from solo_infoaug.host import Host, HostInfo
from solo_infoaug.host.release_config import build_transform_pipeline, parse_cfg
from solo_infoaug.host.release_imports import TorchOfThen, stand_ins
from solo_infoaug.host.release_methods import adapt, lars_that_runs_its_closure, project
from solo_infoaug.host.small import SMALL, SmallResNet

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
    train_data_path: str | os.PathLike[str] | None,
    val_data_path: str | os.PathLike[str] | None,
    batch_size: int,
    num_workers: int,
    **of_the_current: Any,
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
    with stand_ins():
        from solo.methods import METHODS, base
        from solo.utils import pretrain_dataloader as data
        from solo.utils import whitening
        from solo.utils.checkpointer import Checkpointer  # noqa: F401  (binds its Lightning)

    whitening.torch = TorchOfThen("torch")
    base.LARSWrapper = lars_that_runs_its_closure(base.LARSWrapper)
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
