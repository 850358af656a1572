"""Sums over nearest neighbours on CUDA, by a kernel in Triton: the fast path behind `estimators`.

A program takes a tile of `I` x `J` pairs and a block of `B` samples t, a thread each. It goes over
all samples s once: the L∞ distances from t to s of I tracks and of J tracks are made from the
coordinates, serve all pairs of the tile, and are forgotten; of each pair's, whose distance is the
larger of two, the k smallest are kept in registers by an insertion. Neither distances nor
neighbours ever reach the memory. KSG goes over the samples again to count; so does `3kl`, where a
block has ties.

Sums are float64 and are added in a fixed order, so that a result repeats to the last bit; those of
a block of samples go to memory, since in registers they would take the neighbours' place.
"""

from __future__ import annotations

import functools
import warnings
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_infoaug.information._position import Series

K_LIMIT = 8  # neighbours that a thread's registers hold for all pairs of a tile
WIDTH_LIMIT = 8  # columns of a track, whose coordinates a thread holds as well
KINDS = ("3kl", "ksg1", "ksg2")
PARTIAL_SUMS = 2**24  # float64 numbers of blocks of samples, at most: 128 MiB
GRID = 65535  # blocks of samples that a launch can number


def fits(x: Tensor, y: Tensor, k: int) -> bool:
    """Whether the kernel takes these tracks and this k."""
    width = max(x.shape[2], y.shape[2])
    size = max(x.numel(), y.numel(), len(x) * len(y))  # places are counted in 32 bits
    taken = x.dtype == torch.float32 and k <= K_LIMIT and width <= WIDTH_LIMIT
    return taken and x.shape[2] > 0 and size < 2**31


@functools.cache
def works(device: torch.device) -> bool:
    """Whether Triton can compile for the device and run there: it needs a C compiler besides."""
    x = torch.arange(12.0, device=device).reshape(2, 6, 1)
    try:
        neighbour_sums(Series(x, None), Series(x, None), 1, "3kl", "all")
    except Exception as error:  # whatever a compiler, a driver or a linker may say
        warnings.warn(
            f"mutual information: Triton does not work on {device} ({type(error).__name__}: "
            f"{(str(error).strip() or 'no message').splitlines()[0]}), so that plain torch is "
            "used, which is slower; Triton needs a C compiler, such as gcc",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def neighbour_sums(a: Series, b: Series, k: int, kind: str, layout: str) -> Tensor:
    """See `_plain.neighbour_sums`; for tracks that `fits` takes."""
    x, valid_x, y, valid_y = a.x, a.valid, b.x, b.valid
    samples = x.shape[1]
    paired = layout == "paired"
    many, others = len(x), 1 if paired else len(y)
    # the largest block that leaves fewest threads idle
    block = min((32, 64, 128), key=lambda b: (-(-samples // b) * b, -b))
    # 16 pairs of a thread fill its 255 registers; more than 3 neighbours or a mask spill over
    most = 4 if k <= 3 and kind != "ksg2" and valid_x is None and valid_y is None else 2
    side_x = 1 if paired else min(4, triton.next_power_of_2(many))
    side_y = min(most, triton.next_power_of_2(others))
    tiles_y = -(-others // side_y)
    tiles = -(-many // side_x) * tiles_y
    blocks = -(-samples // block)
    total = torch.zeros(many, others, 4, dtype=torch.float64, device=x.device)
    if total.numel() == 0:
        return total[:, 0] if paired else total
    at_once = min(blocks, GRID, max(1, PARTIAL_SUMS // total.numel()))
    parts = total.new_empty(at_once, *total.shape)
    psi = torch.digamma(torch.arange(samples + 2, dtype=torch.float64))
    psi[0] = 0.0
    psi = psi.to(x.device)
    masks = [None if v is None else v.to(torch.uint8).contiguous() for v in (valid_x, valid_y)]
    nothing = torch.zeros(1, dtype=torch.uint8, device=x.device)
    x, y = x.contiguous(), y.contiguous()
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        for first in range(0, blocks, at_once):
            count = min(at_once, blocks - first)
            _kernel[(tiles, count)](
                x,
                nothing if masks[0] is None else masks[0],
                y if y.shape[2] else x,
                nothing if masks[1] is None else masks[1],
                psi,
                parts,
                many,
                others,
                samples,
                x.shape[2],
                y.shape[2],
                first,
                tiles_y,
                K=k,
                KIND=KINDS.index(kind),
                PAIRED=paired,
                UPPER=layout == "upper",
                CX=triton.next_power_of_2(x.shape[2]),
                CY=triton.next_power_of_2(y.shape[2]) if y.shape[2] else 0,
                MASKED_X=masks[0] is not None,
                MASKED_Y=masks[1] is not None,
                I=side_x,
                J=side_y,
                B=block,
                num_warps=block // 32,
                enable_fp_fusion=False,
            )
            total += parts[:count].sum(0)
    return total[:, 0] if paired else total


@triton.jit
def _coordinates(x, track, sample, samples, width, C: tl.constexpr):
    """Of `sample`, in front of the other axes; C is a power of 2, the last column comes again."""
    column = tl.minimum(tl.arange(0, C), width - 1)[:, None, None, None]
    return tl.load(x + ((track * samples + sample) * width)[None, :, :, :] + column)


@triton.jit
def _to_sample(
    here,
    x,
    valid,
    track,
    s,
    samples,
    width,
    C: tl.constexpr,
    MASKED: tl.constexpr,
):
    """L∞ distances of the samples `here` to sample s; +inf where the track has none."""
    far = tl.max(tl.abs(here - _coordinates(x, track, s, samples, width, C)), axis=0)
    if MASKED:
        far = tl.where(tl.load(valid + track * samples + s) != 0, far, float("inf"))
    return far


# Long, since Triton has no arrays in registers: the smallest distances are b0 to b7.
@triton.jit
def _kernel(
    x,
    valid_x,
    y,
    valid_y,
    psi,
    out,
    many,
    others,
    samples,
    dx,
    dy,
    first,
    tiles_y,
    K: tl.constexpr,
    KIND: tl.constexpr,
    PAIRED: tl.constexpr,
    UPPER: tl.constexpr,
    CX: tl.constexpr,
    CY: tl.constexpr,
    MASKED_X: tl.constexpr,
    MASKED_Y: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    J: tl.constexpr,
    B: tl.constexpr,
):
    tile = tl.program_id(0)
    part = tl.program_id(1)
    at_i = tile // tiles_y * I
    at_j = tile % tiles_y * J
    # axes: tracks of x, tracks of y, samples t
    row = tl.minimum(at_i + tl.arange(0, I), many - 1)[:, None, None]
    column = tl.minimum(at_j + tl.arange(0, J), others - 1)[None, :, None]
    if PAIRED:
        column = row
    passes = samples
    if UPPER:  # nothing to do below the diagonal
        passes = tl.where(at_j + J <= at_i, 0, samples)
    sum_log = tl.zeros([I, J], tl.float64)
    sum_first = tl.zeros([I, J], tl.float64)
    t = (first + part) * B + tl.arange(0, B)[None, None, :]
    inside = t < samples
    place = tl.minimum(t, samples - 1)
    here_x = _coordinates(x, row, place, samples, dx, CX)
    if CY > 0:
        here_y = _coordinates(y, column, place, samples, dy, CY)
    b0 = tl.full([I, J, B], float("inf"), tl.float32)
    b1 = b0
    b2 = b0
    b3 = b0
    b4 = b0
    b5 = b0
    b6 = b0
    b7 = b0
    for s in range(passes):
        to_x = _to_sample(here_x, x, valid_x, row, s, samples, dx, CX, MASKED_X)
        joint = tl.where(t == s, float("inf"), to_x)
        if CY > 0:
            to_y = _to_sample(here_y, y, valid_y, column, s, samples, dy, CY, MASKED_Y)
            joint = tl.maximum(joint, to_y)
        elif MASKED_Y:
            there = tl.load(valid_y + column * samples + s) != 0
            joint = tl.where(there, joint, float("inf"))
        if K > 7:
            b7 = tl.minimum(b7, tl.maximum(b6, joint))
        if K > 6:
            b6 = tl.minimum(b6, tl.maximum(b5, joint))
        if K > 5:
            b5 = tl.minimum(b5, tl.maximum(b4, joint))
        if K > 4:
            b4 = tl.minimum(b4, tl.maximum(b3, joint))
        if K > 3:
            b3 = tl.minimum(b3, tl.maximum(b2, joint))
        if K > 2:
            b2 = tl.minimum(b2, tl.maximum(b1, joint))
        if K > 1:
            b1 = tl.minimum(b1, tl.maximum(b0, joint))
        b0 = tl.minimum(b0, joint)
    rho = b0
    if K == 2:
        rho = b1
    elif K == 3:
        rho = b2
    elif K == 4:
        rho = b3
    elif K == 5:
        rho = b4
    elif K == 6:
        rho = b5
    elif K == 7:
        rho = b6
    elif K == 8:
        rho = b7
    # a sample without k neighbours counts as absent too
    present = (rho < float("inf")) & inside
    if MASKED_X:
        present = present & (tl.load(valid_x + row * samples + place) != 0)
    if MASKED_Y:
        present = present & (tl.load(valid_y + column * samples + place) != 0)
    tied = present & (rho == 0)
    sum_tied = tl.sum(tied.to(tl.float64), axis=2)
    if KIND == 0:
        free = present & (rho > 0)
        sum_log = tl.sum(tl.log(tl.where(free, rho, 1.0)).to(tl.float64), axis=2)
        if CY == 0:
            distinct = present & (b0 > 0)
            sum_first = tl.sum(tl.log(tl.where(distinct, b0, 1.0)).to(tl.float64), axis=2)
    again = passes
    if KIND == 0:  # only ties are counted
        again = tl.where(tl.max(tl.max(tl.max(tied.to(tl.int32), 2), 1), 0) > 0, passes, 0)
    if KIND == 2:
        reach_x = tl.zeros([I, J, B], tl.float32)
        reach_y = tl.zeros([I, J, B], tl.float32)
        for s in range(passes):
            to_x = _to_sample(here_x, x, valid_x, row, s, samples, dx, CX, MASKED_X)
            to_y = _to_sample(here_y, y, valid_y, column, s, samples, dy, CY, MASKED_Y)
            joint = tl.maximum(tl.where(t == s, float("inf"), to_x), to_y)
            near = joint <= rho
            reach_x = tl.where(near, tl.maximum(reach_x, to_x), reach_x)
            reach_y = tl.where(near, tl.maximum(reach_y, to_y), reach_y)
    n = tl.zeros([I, J, B], tl.int32)
    n_x = n
    n_y = n
    for s in range(again):
        to_x = _to_sample(here_x, x, valid_x, row, s, samples, dx, CX, MASKED_X)
        joint = tl.where(t == s, float("inf"), to_x)
        if CY > 0:
            to_y = _to_sample(here_y, y, valid_y, column, s, samples, dy, CY, MASKED_Y)
            joint = tl.maximum(joint, to_y)
        elif MASKED_Y:
            there = tl.load(valid_y + column * samples + s) != 0
            joint = tl.where(there, joint, float("inf"))
        other = joint < float("inf")
        if KIND == 0:
            n += (joint == 0).to(tl.int32)
        elif KIND == 1:  # nearer than ρ, and with ρ = 0 what is at 0
            n += ((joint < rho) | (joint == 0)).to(tl.int32)
            n_x += (other & ((to_x < rho) | (to_x == 0))).to(tl.int32)
            n_y += (other & ((to_y < rho) | (to_y == 0))).to(tl.int32)
        else:
            n += (other & (joint <= rho)).to(tl.int32)
            n_x += (other & (to_x <= reach_x)).to(tl.int32)
            n_y += (other & (to_y <= reach_y)).to(tl.int32)
    if KIND == 0:
        value = tl.where(tied, tl.load(psi + n + 1), 0.0)
    else:
        value = tl.load(psi + n + 1) - tl.load(psi + n_x + 1) - tl.load(psi + n_y + 1)
        if KIND == 2:
            some = 1.0 / tl.maximum(n, 1).to(tl.float64)
            free = tl.load(psi + n) - some - tl.load(psi + n_x) - tl.load(psi + n_y)
            value = tl.where(tied, value, free)
        value = tl.where(present, value, 0.0)
    sum_psi = tl.sum(value, axis=2)
    i = at_i + tl.arange(0, I)[:, None]
    j = at_j + tl.arange(0, J)[None, :]
    there = (i < many) & (j < others)
    place = out + ((part.to(tl.int64) * many + i) * others + j) * 4
    tl.store(place, sum_log, mask=there)
    tl.store(place + 1, sum_tied, mask=there)
    tl.store(place + 2, sum_psi, mask=there)
    tl.store(place + 3, sum_first, mask=there)
