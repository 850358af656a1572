"""Alignment and uniformity of features on the sphere, for logs.

Reference: Wang, Isola: Understanding Contrastive Representation Learning through Alignment and
Uniformity on the Hypersphere. ICML 2020, arXiv:2005.10242.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from solo_infoaug.objectives.loss import on_sphere


@torch.no_grad()
def alignment(x: Tensor, y: Tensor) -> Tensor:
    """E‖x − y‖² over positives, [N, D], [N, D] → scalar in [0, 4]; 0 where views coincide."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        return _alignment(*on_sphere(torch.stack([x, y])).unbind())


@torch.no_grad()
def uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """log E exp(−t‖x_i − x_j‖²) over pairs i ≠ j, [N, D] → scalar ≤ 0; 0 where all collapse.

    Raises:
        ValueError: for fewer than two features.
    """
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 features [N, D], got {list(x.shape)}")
    with torch.autocast(device_type=x.device.type, enabled=False):
        return _uniformity(on_sphere(x), t)


@torch.no_grad()
def alignment_and_uniformity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`alignment(x, y)` and `uniformity(x)`, in fewer operations than one by one."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = on_sphere(torch.stack([x, y])).unbind()
        return _alignment(x, y), _uniformity(x, 2.0)


def _alignment(x: Tensor, y: Tensor) -> Tensor:
    return 2 - 2 * (x * y).sum(-1).mean()


def _uniformity(x: Tensor, t: float) -> Tensor:
    exponent = (2 * t) * (x @ x.T - 1)
    exponent.fill_diagonal_(-math.inf)
    return exponent.flatten().logsumexp(0) - math.log(len(x) * (len(x) - 1))
