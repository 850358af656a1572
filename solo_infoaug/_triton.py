"""Whether Triton kernels run on a device. Triton comes with PyTorch for CUDA on Linux."""

from __future__ import annotations

import functools
import warnings

import torch
import triton
import triton.language as tl


@functools.cache
def works(device: torch.device) -> bool:
    """Whether Triton can compile for the device and run there; it also needs a C compiler."""
    try:
        with torch.cuda.device(device):
            _write[(1,)](torch.zeros(1, device=device))
    except Exception as error:  # any error of a compiler, a driver or a linker
        warnings.warn(
            f"Triton does not work on {device} ({type(error).__name__}: "
            f"{(str(error).strip() or 'no message').splitlines()[0]}); plain torch computes mutual "
            "information and twin views instead, which is slower; Triton needs a C compiler, such "
            "as gcc",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@triton.jit
def _write(out):
    tl.store(out, 1.0)
