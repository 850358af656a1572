"""Training steps by hand: what the fixture `steps` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig

# Images in the training set of the tests, and batches in one of their epochs.
_IMAGES, _BATCHES = 24, 3


class _Loader:
    dataset = range(_IMAGES)

    def __len__(self) -> int:
        return _BATCHES


class _Trainer:
    """What solo-learn's hooks ask of a Trainer."""

    world_size = 1
    global_rank = 0
    current_epoch = 0
    global_step = 0
    training = True
    train_dataloader = _Loader()


class Steps:
    """Runs training steps of a solo-learn method by hand, hooks and all, in epochs of 3 steps."""

    def __init__(self, module: Any, cfg: DictConfig) -> None:
        self.module = module
        self.logged: dict[str, float] = {}
        module.log = self._log
        module.log_dict = lambda values, *args, **kwargs: [
            self._log(name, value) for name, value in values.items()
        ]
        self.trainer = module._trainer = _Trainer()
        if hasattr(module, "twin"):
            module.twin._trainer = self.trainer
        self.optimizer = torch.optim.SGD(module.learnable_params, lr=0.05, momentum=0.9)
        self.crops = [
            entry.crop_size for entry in cfg.augmentations for _ in range(entry.num_crops)
        ]
        self.random = torch.Generator().manual_seed(7)
        self.done = 0

    def _log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        self.logged[name] = float(torch.as_tensor(value).detach())

    def batch(self, number: int = 0, size: int = 8) -> list[Any]:
        """A batch in solo-learn's format: indices, one tensor a crop, labels."""
        views = [torch.randn(size, 3, crop, crop, generator=self.random) for crop in self.crops]
        labels = torch.randint(0, 2, (size,), generator=self.random)
        return [torch.arange(size) + size * number, views, labels]

    def start(self) -> int:
        """Run the hooks that are due before the next step; returns its number in the epoch."""
        epoch, number = divmod(self.done, _BATCHES)
        if self.done == 0:
            self.module.on_train_start()
        if number == 0:
            self.trainer.current_epoch = epoch
            self.module.on_train_epoch_start()
        return number

    def step(self) -> float:
        """One step of loss, gradients, optimizer and momentum; returns the loss."""
        number = self.start()
        loss = self.module.training_step(self.batch(number), number)
        self.optimizer.zero_grad()
        loss.backward()
        self.module.on_after_backward()
        self.optimizer.step()
        for pair in getattr(self.module, "momentum_pairs", []):
            self.module.momentum_updater.update(*pair)
        self.done += 1
        return float(loss.detach())

    def run(self, count: int) -> Sequence[float]:
        """Several steps; returns their losses."""
        return [self.step() for _ in range(count)]
