"""The methods of the PyPI release of solo-learn, with the current constructor and names.

The release calls the backbone `encoder` and runs on pytorch-lightning 1.4; here its methods run on
the installed Lightning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import nn

from solo_infoaug.host.method import Method
from solo_infoaug.host.release_config import STANDS_FOR_SMALL, method_arguments
from solo_infoaug.host.small import SMALL, SmallResNet


@contextmanager
def _small_backbone(cfg: DictConfig | None) -> Iterator[None]:
    """Inside, the release builds `small_resnet` under the name `vit_tiny`."""
    if cfg is None or cfg.backbone.name != SMALL:
        yield
        return
    from solo.utils import backbones

    before = getattr(backbones, STANDS_FOR_SMALL)
    setattr(backbones, STANDS_FOR_SMALL, SmallResNet)
    try:
        yield
    finally:
        setattr(backbones, STANDS_FOR_SMALL, before)


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
    members = {"release_method": method, "__module__": method.__module__, "__doc__": method.__doc__}
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


def lars_that_runs_its_closure(wrapper: type) -> type:
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
