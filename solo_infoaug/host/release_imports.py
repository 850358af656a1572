"""What the PyPI release of solo-learn imports and nobody can install any more."""

from __future__ import annotations

import importlib
import math
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler


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
def stand_ins() -> Iterator[None]:
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


class TorchOfThen(types.ModuleType):
    """torch, with a function for W-MSE's whitening that was renamed since."""

    cholesky = staticmethod(torch.linalg.cholesky)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)
