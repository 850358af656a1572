"""Sums over nearest neighbours on CUDA, by a kernel in Triton: the fast path behind `estimators`.

A program takes a tile of `I` x `J` pairs and a block of `B` samples t, a thread each. It goes over
all samples s once, two at a time: the L∞ distances from t to s of I tracks and of J tracks are made
from the coordinates, serve all pairs of the tile, and are forgotten; of each pair's, whose distance
is the larger of two, the k smallest are kept in registers by a merge. Neither distances nor
neighbours ever reach the memory. KSG goes over the samples again to count; so does `3kl`, where a
block has ties.

Minima and maxima bound it, if nothing else is in the way: all tensors of the loop have t as their
last axis, also where they are the same for all t, so that what a thread needs is loaded to it and
never exchanged through shared memory; and coordinates lie as they are loaded, see `_packed`.

Sums are float64 and are added in a fixed order, so that a result repeats to the last bit; those of
a block of samples go to memory, since in registers they would take the neighbours' place.
"""

# no annotations as text, by which the interpreter of Triton 3.1 does not know a constexpr

import functools
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_infoaug._triton import works as works
from solo_infoaug.information._series import ESTIMATORS, Series

K_LIMIT = 8  # neighbours that a thread's registers hold for all pairs of a tile
WIDTH_LIMIT = 8  # columns of a track, whose coordinates a thread holds as well
PARTIAL_SUMS = 2**24  # float64 numbers of blocks of samples, at most: 128 MiB


def fits(x: Tensor, y: Tensor, k: int) -> bool:
    """Whether the kernel takes these tracks and this k."""
    width = max(x.shape[2], y.shape[2])
    size = max(x.numel(), y.numel(), len(x) * len(y))  # places are counted in 32 bits
    taken = x.dtype == torch.float32 and k <= K_LIMIT and width <= WIDTH_LIMIT
    return taken and x.shape[2] > 0 and size < 2**31


def neighbour_sums(a: Series, b: Series, k: int, kind: str, layout: str) -> Tensor:
    """See `_plain.neighbour_sums`; for tracks that `fits` takes."""
    x, y = a.x, b.x
    samples = x.shape[1]
    paired = layout == "paired"
    many, others = len(x), 1 if paired else len(y)
    if many == 0 or others == 0:
        return x.new_zeros((many, 4) if paired else (many, others, 4), dtype=torch.float64)
    # the largest block that leaves fewest threads idle
    block = min((32, 64, 128), key=lambda size: (-(-samples // size) * size, -size))
    side_x, side_y = _tile(k, kind)
    side_x = min(side_x, triton.next_power_of_2(many))
    side_y = 1 if paired else min(side_y, triton.next_power_of_2(others))
    packed_x = _packed(a, side_x)
    same = side_x == side_y and x is y and a.valid is b.valid
    nothing = y.shape[2] == 0 and b.valid is None
    packed_y = packed_x if same or nothing else _packed(b, side_x if paired else side_y)
    tiles_y = -(-others // side_y)
    tiles = -(-many // side_x) * tiles_y
    blocks = -(-samples // block)
    at_once = min(blocks, max(1, PARTIAL_SUMS // (4 * many * others)))
    total: Tensor | None = None
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        for first in range(0, blocks, at_once):
            count = min(at_once, blocks - first)
            parts = x.new_zeros(count, many, others, 4, dtype=torch.float64)
            _kernel[(tiles * count,)](
                packed_x,
                packed_y,
                _psi(samples, x.device),
                parts,
                many,
                others,
                samples,
                packed_x.shape[1],
                first,
                count,
                tiles_y,
                K=k,
                KIND=ESTIMATORS.index(kind),
                PAIRED=paired,
                UPPER=layout == "upper",
                CX=x.shape[2],
                CY=y.shape[2],
                MASKED_X=a.valid is not None,
                MASKED_Y=b.valid is not None,
                I=side_x,
                J=side_y,
                B=block,
                num_warps=block // 32,
                enable_fp_fusion=False,
            )
            total = parts.sum(0) if total is None else total + parts.sum(0)
    assert total is not None
    return total[:, 0] if paired else total


def _tile(k: int, kind: str) -> tuple[int, int]:
    """Tracks on the sides of a tile: 4 is what a thread loads at once.

    16 pairs of a thread fill its registers, and more than 6 neighbours leave too few threads.
    """
    return 4, 4 if k <= 6 and kind != "ksg2" else 2


def _packed(side: Series, tracks: int) -> Tensor:
    """`[P / tracks, T, d, tracks]`: what a program loads at a time lies together.

    A mask is one more column, 0 where there is a sample and +inf where not. The last track fills
    up the last tile; an even number of samples is made by one that is infinitely far away.
    """
    x = side.x
    if side.valid is not None:
        absent = torch.where(side.valid, 0.0, torch.inf).to(x.dtype)
        x = torch.cat([x, absent[..., None]], 2)
    missing = -len(x) % tracks
    if missing:
        x = torch.cat([x, x[-1:].expand(missing, -1, -1)])
    count, samples, width = x.shape
    out = x.new_empty(count // tracks, samples + samples % 2, width, tracks)
    out[:, :samples] = x.reshape(len(out), tracks, samples, width).permute(0, 2, 3, 1)
    if samples % 2:
        out[:, samples:] = torch.inf
    return out


@functools.lru_cache(maxsize=16)
def _psi(samples: int, device: torch.device) -> Tensor:
    """ψ of 0 to `samples` + 1, with 0 for ψ(0)."""
    psi = torch.digamma(torch.arange(samples + 2, dtype=torch.float64))
    psi[0] = 0.0
    return psi.to(device)


# Triton has no arrays in registers: columns are h0 to h7, the smallest distances b0 to b7.
@triton.jit
def _columns(at, C: tl.constexpr, SIDE: tl.constexpr):
    """The coordinates of a sample of each track; the first one again for those it has not."""
    h0 = tl.load(at)
    h1 = h0
    h2 = h0
    h3 = h0
    h4 = h0
    h5 = h0
    h6 = h0
    h7 = h0
    if C > 1:
        h1 = tl.load(at + SIDE)
    if C > 2:
        h2 = tl.load(at + 2 * SIDE)
    if C > 3:
        h3 = tl.load(at + 3 * SIDE)
    if C > 4:
        h4 = tl.load(at + 4 * SIDE)
    if C > 5:
        h5 = tl.load(at + 5 * SIDE)
    if C > 6:
        h6 = tl.load(at + 6 * SIDE)
    if C > 7:
        h7 = tl.load(at + 7 * SIDE)
    return h0, h1, h2, h3, h4, h5, h6, h7


@triton.jit
def _distances(
    h0, h1, h2, h3, h4, h5, h6, h7, at, C: tl.constexpr, MASKED: tl.constexpr, SIDE: tl.constexpr
):
    """L∞ distances of the samples h to those `at`; +inf where a track has none there."""
    if C == 0:
        far = tl.load(at)
    else:
        far = tl.abs(h0 - tl.load(at))
        if C > 1:
            far = tl.maximum(far, tl.abs(h1 - tl.load(at + SIDE)))
        if C > 2:
            far = tl.maximum(far, tl.abs(h2 - tl.load(at + 2 * SIDE)))
        if C > 3:
            far = tl.maximum(far, tl.abs(h3 - tl.load(at + 3 * SIDE)))
        if C > 4:
            far = tl.maximum(far, tl.abs(h4 - tl.load(at + 4 * SIDE)))
        if C > 5:
            far = tl.maximum(far, tl.abs(h5 - tl.load(at + 5 * SIDE)))
        if C > 6:
            far = tl.maximum(far, tl.abs(h6 - tl.load(at + 6 * SIDE)))
        if C > 7:
            far = tl.maximum(far, tl.abs(h7 - tl.load(at + 7 * SIDE)))
        if MASKED:
            far = tl.maximum(far, tl.load(at + C * SIDE))
    return far


@triton.jit
def _smallest(b0, b1, b2, b3, b4, b5, b6, b7, one, two, K: tl.constexpr):
    """The K smallest of b0 ≤ b1 ≤ … and two more, in order.

    Batcher's odd-even merge, cut after K: 4 operations a distance for K = 3, an insertion takes 5.
    """
    low = tl.minimum(one, two)
    high = tl.maximum(one, two)
    e1 = tl.maximum(b0, low)
    b0 = tl.minimum(b0, low)
    o0 = tl.minimum(b1, high)
    o1 = tl.maximum(b1, high)
    e2 = tl.maximum(b2, e1)
    if K > 2:
        e1 = tl.minimum(b2, e1)
    o2 = tl.maximum(b3, o1)
    if K > 3:
        o1 = tl.minimum(b3, o1)
    e3 = tl.maximum(b4, e2)
    if K > 4:
        e2 = tl.minimum(b4, e2)
    o3 = tl.maximum(b5, o2)
    if K > 5:
        o2 = tl.minimum(b5, o2)
    e4 = tl.maximum(b6, e3)
    if K > 6:
        e3 = tl.minimum(b6, e3)
    if K > 7:
        o3 = tl.minimum(b7, o3)
    if K > 1:
        b1 = tl.minimum(e1, o0)
    if K > 2:
        b2 = tl.maximum(e1, o0)
    if K > 3:
        b3 = tl.minimum(e2, o1)
    if K > 4:
        b4 = tl.maximum(e2, o1)
    if K > 5:
        b5 = tl.minimum(e3, o2)
    if K > 6:
        b6 = tl.maximum(e3, o2)
    if K > 7:
        b7 = tl.minimum(e4, o3)
    return b0, b1, b2, b3, b4, b5, b6, b7


@triton.jit
def _kernel(
    x,
    y,
    psi,
    out,
    many,
    others,
    samples,
    padded,
    first,
    count,
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
    part = tl.program_id(0) % count
    tile = tl.program_id(0) // count
    tile_x = tile // tiles_y
    tile_y = tile % tiles_y
    at_i = tile_x * I
    at_j = tile_y * J
    if UPPER:  # noqa: SIM102 - nothing to do below the diagonal; not known when it is compiled
        if at_j + J <= at_i:
            return
    fields_x: tl.constexpr = CX + MASKED_X
    fields_y: tl.constexpr = CY + MASKED_Y
    step_y: tl.constexpr = I if PAIRED else J
    # axes: tracks of x, tracks of y, samples t
    t = (first + part) * B + tl.arange(0, B)[None, None, :]
    inside = t < samples
    place = tl.minimum(t, samples - 1)
    # the same for all t, but of their shape: what is loaded lies where it is used
    none = tl.zeros([1, 1, B], tl.int32)
    i = tl.arange(0, I)[:, None, None]
    j = i if PAIRED else tl.arange(0, J)[None, :, None]
    from_x = x + tile_x.to(tl.int64) * padded * (fields_x * I)
    from_y = y + (tile_x if PAIRED else tile_y).to(tl.int64) * padded * (fields_y * step_y)
    x0, x1, x2, x3, x4, x5, x6, x7 = _columns(from_x + (place * (fields_x * I) + i), CX, I)
    if CY > 0:
        y0, y1, y2, y3, y4, y5, y6, y7 = _columns(
            from_y + (place * (fields_y * step_y) + j), CY, step_y
        )
    else:
        y0, y1, y2, y3, y4, y5, y6, y7 = x0, x1, x2, x3, x4, x5, x6, x7
    b0 = tl.full([I, J, B], float("inf"), tl.float32)
    b1 = b0
    b2 = b0
    b3 = b0
    b4 = b0
    b5 = b0
    b6 = b0
    b7 = b0
    at_x = from_x + (none + i)
    at_y = from_y + (none + j)
    for s in range(0, padded, 2):
        # a sample is infinitely far from itself, by its first coordinate: additions cost least
        own = tl.where(t == s, float("inf"), 0.0)
        one = _distances(x0 + own, x1, x2, x3, x4, x5, x6, x7, at_x, CX, MASKED_X, I)
        at_x += fields_x * I
        own = tl.where(t == s + 1, float("inf"), 0.0)
        two = _distances(x0 + own, x1, x2, x3, x4, x5, x6, x7, at_x, CX, MASKED_X, I)
        at_x += fields_x * I
        if fields_y > 0:
            to_y = _distances(y0, y1, y2, y3, y4, y5, y6, y7, at_y, CY, MASKED_Y, step_y)
            at_y += fields_y * step_y
            one = tl.maximum(one, to_y)
            to_y = _distances(y0, y1, y2, y3, y4, y5, y6, y7, at_y, CY, MASKED_Y, step_y)
            at_y += fields_y * step_y
            two = tl.maximum(two, to_y)
        b0, b1, b2, b3, b4, b5, b6, b7 = _smallest(b0, b1, b2, b3, b4, b5, b6, b7, one, two, K)
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
        present = present & (tl.load(from_x + (place * (fields_x * I) + (CX * I) + i)) == 0)
    if MASKED_Y:
        present = present & (
            tl.load(from_y + (place * (fields_y * step_y) + (CY * step_y) + j)) == 0
        )
    tied = present & (rho == 0)
    store = out + ((part.to(tl.int64) * many + at_i) * others + at_j) * 4
    k_i = tl.arange(0, I)[:, None]
    k_j = tl.arange(0, J)[None, :]
    there = (at_i + k_i < many) & (at_j + k_j < others)
    store += (k_i * others + k_j) * 4
    if KIND == 0:
        free = present & (rho > 0)
        sum_log = tl.sum(tl.log(tl.where(free, rho, 1.0)).to(tl.float64), axis=2)
        tl.store(store, sum_log, mask=there)
        if CY == 0:
            distinct = present & (b0 > 0)
            sum_first = tl.sum(tl.log(tl.where(distinct, b0, 1.0)).to(tl.float64), axis=2)
            tl.store(store + 3, sum_first, mask=there)
        again = tl.max(tl.max(tl.max(tied.to(tl.int32), 2), 1), 0) > 0  # only ties are counted
    else:
        again = True
    if KIND == 2:
        reach_x = tl.zeros([I, J, B], tl.float32)
        reach_y = tl.zeros([I, J, B], tl.float32)
        at_x = from_x + (none + i)
        at_y = from_y + (none + j)
        for s in range(samples):
            to_x = _distances(x0, x1, x2, x3, x4, x5, x6, x7, at_x, CX, MASKED_X, I)
            to_y = _distances(y0, y1, y2, y3, y4, y5, y6, y7, at_y, CY, MASKED_Y, step_y)
            joint = tl.maximum(tl.where(t == s, float("inf"), to_x), to_y)
            near = joint <= rho
            reach_x = tl.where(near, tl.maximum(reach_x, to_x), reach_x)
            reach_y = tl.where(near, tl.maximum(reach_y, to_y), reach_y)
            at_x += fields_x * I
            at_y += fields_y * step_y
    if again:
        n = tl.zeros([I, J, B], tl.int32)
        n_x = n
        n_y = n
        at_x = from_x + (none + i)
        at_y = from_y + (none + j)
        for s in range(samples):
            to_x = _distances(x0, x1, x2, x3, x4, x5, x6, x7, at_x, CX, MASKED_X, I)
            joint = tl.where(t == s, float("inf"), to_x)
            at_x += fields_x * I
            if fields_y > 0:
                to_y = _distances(y0, y1, y2, y3, y4, y5, y6, y7, at_y, CY, MASKED_Y, step_y)
                joint = tl.maximum(joint, to_y)
                at_y += fields_y * step_y
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
        tl.store(store + 1, tl.sum(tied.to(tl.float64), axis=2), mask=there)
        tl.store(store + 2, tl.sum(value, axis=2), mask=there)
