"""Which of the backends computes the sums over nearest neighbours."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from solo_infoaug.information import _plain
from solo_infoaug.information._series import Series

_CHUNK = 8192  # samples that a tree is asked about at once: Ctrl-C waits for no more
LONG = 8192  # samples from which a tree of its own pays for each pair


def neighbour_sums(x: Series, y: Series, k: int, kind: str, layout: str, max_memory: int) -> Tensor:
    """`_plain.neighbour_sums`, computed by the fastest available backend."""
    device = x.x.device
    if kind == "3kl" and x.x.shape[1] >= LONG and device.type == "cpu":
        return _long_series(x, y, k, layout)
    kernel = _triton() if x.x.is_cuda else None
    if kernel is not None and kernel.fits(x.x, y.x, k) and kernel.works(device):
        return kernel.neighbour_sums(x, y, k, kind, layout)
    compiled = _compiled() if device.type == "cpu" else None
    if compiled is None or k > compiled.K_LIMIT:
        return _plain.neighbour_sums(x, y, k, kind, layout, max_memory)
    return compiled.neighbour_sums(x, y, k, kind, layout)


def _long_series(x: Series, y: Series, k: int, layout: str) -> Tensor:
    """Pair by pair, each by a tree over its own joint space; the `upper` diagonal is left out."""
    same = layout == "upper" and x.x.data_ptr() == y.x.data_ptr()
    paired = layout == "paired"
    out = torch.zeros(len(x.x), 1 if paired else len(y.x), 4, dtype=torch.float64)
    for i in range(len(x.x)):
        for j in [i] if paired else range(i if layout == "upper" else 0, len(y.x)):
            if same and i == j:
                continue
            series = torch.cat([x.x[i], y.x[j]], -1)
            masks = [s.valid[n] for s, n in ((x, i), (y, j)) if s.valid is not None]
            if masks:
                series = series[torch.stack(masks).all(0)]
            if len(series) > k:
                out[i, 0 if paired else j] = _tree_sums(series, k)
    return out[:, 0] if paired else out


def _tree_sums(series: Tensor, k: int) -> Tensor:
    """The sums `[4]` of kind `3kl` for one series `[T, d]`, by SciPy's KD-tree."""
    from scipy.spatial import KDTree  # a quarter of a second, for those who need it

    tree = KDTree(series.double().numpy(), balanced_tree=False)
    threads = torch.get_num_threads()
    # in the tree's order successive samples have the same neighbours in the cache
    samples = tree.data[tree.indices] + 0.0  # no -0
    first, rho = np.concatenate(
        [
            tree.query(rows, [2, k + 1], p=np.inf, workers=threads)[0]
            for rows in np.split(samples, range(_CHUNK, len(samples), _CHUNK))
        ]
    ).T
    # whatever is tied with a sample is tied itself
    ties = np.unique(samples[rho == 0], axis=0, return_counts=True)[1]
    psi = (ties * torch.digamma(torch.from_numpy(ties).double()).numpy()).sum()
    logs = [np.log(distances[distances > 0]).sum() for distances in (rho, first)]
    return torch.tensor([logs[0], ties.sum(), psi, logs[1]], dtype=torch.float64)


@functools.cache
def _module(name: str) -> ModuleType | None:
    """A backend whose package may be missing. It is imported on first use, which takes a second."""
    try:
        return importlib.import_module(f"solo_infoaug.information.{name}")
    except ImportError:
        return None


_compiled = functools.partial(_module, "_compiled")
_triton = functools.partial(_module, "_triton")  # Triton comes with PyTorch's wheels for CUDA
