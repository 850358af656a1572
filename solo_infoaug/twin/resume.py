"""What solo-learn's checkpoints leave out, so that a resumed run is the run that was stopped.

solo-learn saves weights, optimizer and schedule. For a run with InfoAug the checkpoint also holds
the random state and the momentum coefficient, and the buffers that SwAV and DeepCluster V2 make
when training starts (queue, memory) find their way back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from solo_infoaug.twin.randomness import fork_rng


@dataclass(frozen=True)
class Resumption:
    """A run that goes on from a checkpoint: what to put back, and when.

    In this order: `restore_random_state`, once the checkpoint is loaded; `training_start` around
    the method's hook of that name, and `first_epoch_start` around that one.
    """

    method: Any
    saved: Mapping[str, Any]
    """What `note` gave when the checkpoint was written."""
    late_buffers: dict[str, Tensor]
    """From `take_late_buffers`, of its weights."""

    @staticmethod
    def note(method: Any) -> dict[str, Any]:
        """What a checkpoint is to hold."""
        updater = getattr(method, "momentum_updater", None)
        return {
            "random": random_state(method.device),
            "tau": None if updater is None else updater.cur_tau,
        }

    def restore_random_state(self) -> None:
        """Draw on as the run that was stopped; a checkpoint is the first process's."""
        trainer = self.method.trainer
        if trainer.world_size == 1:
            set_random_state(self.saved["random"], trainer.strategy.root_device)

    @contextmanager
    def training_start(self) -> Iterator[None]:
        """What a run draws inside it drew when it first started; then buffers and momentum."""
        with fork_rng(0, self.method.device):
            yield
        for name, value in self.late_buffers.items():
            self.method.get_buffer(name).copy_(value)
        if self.saved["tau"] is not None:
            set_momentum(self.method, self.saved["tau"])

    @contextmanager
    def first_epoch_start(self) -> Iterator[None]:
        """Draw in the order of a run that was not stopped.

        It comes here before it asks its data loader for the epoch, and a resumed one afterwards.
        """
        self.restore_random_state()
        yield
        torch.empty((), dtype=torch.int64).random_()


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators, in plain types and tensors."""
    algorithm, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [algorithm, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on where `random_state` was called."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"].cpu(), device)


def take_late_buffers(
    module: nn.Module, names: tuple[str, ...], weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Take the buffers out of `weights` that the module will only make when training starts.

    Args:
        module: the method, as its constructor leaves it.
        names: the last parts of the names of such buffers.
        weights: a checkpoint's state dict; changed in place.
    """
    known = module.state_dict().keys()
    late = [key for key in weights if key not in known and key.rpartition(".")[2] in names]
    return {key: weights.pop(key) for key in late}


@torch.no_grad()
def set_momentum(method: Any, tau: float) -> None:
    """Go on with the momentum coefficient `tau`.

    An update leaves its results in a memory layout of its own choice, and a convolution's rounding
    depends on the layout: an update that changes no value brings it about.
    """
    method.momentum_updater.cur_tau = 1.0
    for pair in method.momentum_pairs:
        method.momentum_updater.update(*pair)
    method.momentum_updater.cur_tau = tau
