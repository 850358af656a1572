"""How many minima and maxima of float32 a card does in a second; for `gpu.py`, needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

STEPS = 4096
CHAINS = 8 * STEPS  # operations an element


@triton.jit
def _chains(out, low, high, steps, B: tl.constexpr):
    """Four chains that do not wait for each other; the bounds change, so that nothing is folded."""
    at = tl.program_id(0) * B + tl.arange(0, B)
    a = tl.load(out + at)
    b = a + 1.0
    c = a + 2.0
    d = a + 3.0
    for _ in range(steps):
        a = tl.maximum(tl.minimum(a, b), low)
        b = tl.minimum(tl.maximum(b, c), high)
        c = tl.maximum(tl.minimum(c, d), low)
        d = tl.minimum(tl.maximum(d, a), high)
    tl.store(out + at, a + b + c + d)


def operations(out: torch.Tensor, blocks: int) -> None:
    """`CHAINS` minima and maxima for each element of out, float32 `[128 * blocks]` on the card."""
    _chains[(blocks,)](out, -1.0, 1.0, STEPS, B=128, num_warps=4)
