"""What solo-learn's checkpoints leave out, so that a resumed run is the run that was stopped.

solo-learn saves weights, optimizer and schedule. For a run with InfoAug the checkpoint also holds
the random state and the momentum coefficient, and the buffers that SwAV and DeepCluster V2 make
when training starts (queue, memory) find their way back.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


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


def put_late_buffers(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Fill the buffers, now that they are there."""
    for name, value in buffers.items():
        module.get_buffer(name).copy_(value)


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
