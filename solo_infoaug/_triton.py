"""Whether kernels in Triton run on a device; it comes with PyTorch's wheels for CUDA on Linux."""

from __future__ import annotations

import functools
import warnings

import torch
import triton
import triton.language as tl


@functools.cache
def works(device: torch.device) -> bool:
    """Whether Triton can compile for the device and run there: it needs a C compiler besides."""
    try:
        with torch.cuda.device(device):
            _write[(1,)](torch.zeros(1, device=device))
    except Exception as error:  # whatever a compiler, a driver or a linker may say
        warnings.warn(
            f"Triton does not work on {device} ({type(error).__name__}: "
            f"{(str(error).strip() or 'no message').splitlines()[0]}), so that mutual information "
            "and twin views are made by plain torch, which is slower; Triton needs a C compiler, "
            "such as gcc",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@triton.jit
def _write(out):
    tl.store(out, 1.0)
