"""The current solo-learn (a clone of its main branch): its own names, nothing changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from solo_infoaug.host import Host, HostInfo
from solo_infoaug.host.small import SMALL, SmallResNet


def load(info: HostInfo) -> Host:
    """Import the current solo-learn."""
    from solo.args.pretrain import parse_cfg
    from solo.data import pretrain_dataloader as data
    from solo.data.classification_dataloader import prepare_data, prepare_transforms
    from solo.methods import METHODS
    from solo.methods.base import BaseMethod
    from solo.utils.auto_resumer import AutoResumer
    from solo.utils.checkpointer import Checkpointer
    from solo.utils.knn import WeightedKNNClassifier

    def find_checkpoint(cfg: Any) -> tuple[Path | None, str | None]:
        resumer = AutoResumer(
            checkpoint_dir=os.path.join(cfg.checkpoint.dir, cfg.method),
            max_hours=cfg.auto_resume.max_hours,
        )
        return resumer.find_checkpoint(cfg)

    BaseMethod._BACKBONES.setdefault(SMALL, SmallResNet)
    return Host(
        info=info,
        methods=METHODS,
        backbones=BaseMethod._BACKBONES,
        optimizers=tuple(BaseMethod._OPTIMIZERS),
        # more are declared, and refused when training starts
        schedulers=("warmup_cosine", "step", "none"),
        should_match=AutoResumer.SHOULD_MATCH,
        parse_cfg=parse_cfg,
        build_transform_pipeline=data.build_transform_pipeline,
        n_crop_augmentation=data.NCropAugmentation,
        full_transform_pipeline=data.FullTransformPipeline,
        prepare_datasets=data.prepare_datasets,
        prepare_dataloader=data.prepare_dataloader,
        prepare_data=prepare_data,
        validation_transform=lambda dataset: prepare_transforms(dataset)[1],
        checkpointer=Checkpointer,
        find_checkpoint=find_checkpoint,
        project=lambda method, outputs: outputs,
        adapted=False,
        knn=WeightedKNNClassifier,
        plugins=_plugins(),
    )


def _plugins() -> dict[str, Any] | None:
    """Its plugins, if it is a version that adds their losses (see `upstream/`)."""
    try:
        from solo.utils import plugins
    except ImportError:
        return None
    return plugins.PLUGINS if hasattr(plugins, "ExtraLoss") else None
