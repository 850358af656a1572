"""Sums over nearest neighbours on the CPU, compiled by numba: the fast path behind `estimators`.

The scheme, from the outside in:

1. Tracks are taken in blocks of `SIDE` x `SIDE` pairs; a block (or a range of its samples) is one
   task for a pool of threads. The kernels hold no lock, so plain Python threads do.
2. Within a task, `LANES` samples t are handled at a time, and the other samples s in chunks. For
   each track the distances from the lanes to a chunk make a strip `[s, lane]`; the strips of a
   block stay in the second-level cache, where each serves `SIDE` pairs. No distance matrix is ever
   stored.
3. For a pair, the L∞ distance in the joint space is the larger of two strips; its k smallest are
   kept by an insertion in vector registers: one load, one maximum, 2k - 1 minima and maxima a
   vector.

Distances are not negative, so their bits order as integers do, and integers compare faster. A
sample that is absent (masked, or past the end) has infinite coordinates: its distance to anything,
+inf or NaN, has bits of at least those of +inf.

`_kernels` has what is compiled: steps 2 and 3. Here the tasks are cut and shared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solo_infoaug.information._kernels import CHUNK, LANES, SIDE, Block, run_block, run_paired
from solo_infoaug.information._series import ESTIMATORS, Series

INTERRUPT = 2**29  # distances in a task, at most: about half a second, in which Ctrl-C waits
INLINE = 2**22  # distances up to which starting threads costs more than it saves
K_LIMIT = 32  # above it the insertion spills far out of the registers


class Shape(NamedTuple):
    """What all tasks of a call share; `rows` counts a track's coordinates."""

    rows_x: int
    rows_y: int
    samples: int
    padded: int
    kind: int
    side: int  # at most so many tracks of y at a time
    same: bool  # x and y are the same tracks
    alone: bool  # y has no coordinates: x by itself, for which nearest distances are added too


class Work(NamedTuple):
    """Memory of one thread: integers as wide as the numbers of the tracks."""

    strips_x: Any  # [SIDE, CHUNK, LANES]
    strips_y: Any
    best: Any  # [pairs, k, LANES]
    product: Any  # [pairs, (mantissa, exponent), LANES]
    mantissa: Any  # the same memory as floating point; a second half for marginals
    limits: Any  # [pairs, (x, y, joint), LANES]
    counts: Any
    active: Any  # [pairs]: which pairs the second pass looks at
    infinity: Any


def neighbour_sums(x: Series, y: Series, k: int, kind: str, layout: str) -> Tensor:
    """See `_plain.neighbour_sums`."""
    many, others, samples = len(x.x), len(y.x), x.x.shape[1]
    same = x.x is y.x and x.valid is y.valid
    flat_x = _coordinates(x.x, x.valid)
    flat_y = flat_x if same else _coordinates(y.x, y.valid)
    padded = flat_x.shape[-1]
    rows = flat_x.shape[1], flat_y.shape[1]
    psi = torch.digamma(torch.arange(samples + 2, dtype=torch.float64)).numpy()
    psi[0] = 0.0
    paired = layout == "paired"
    work_to_do = many * (1 if paired else others) * samples**2
    threads = torch.get_num_threads() if work_to_do > INLINE else 1
    out = np.zeros((1 if paired else many, others, 4))
    blocks, side = _blocks(many, others, padded, layout, threads)
    shape = Shape(*rows, samples, padded, ESTIMATORS.index(kind), side, same, y.d == 0)
    run, ks = (run_paired if paired else run_block), (0,) * k
    flat_x, flat_y = flat_x.reshape(-1), flat_y.reshape(-1)

    def run_one(block: Block, work: Work) -> tuple[Any, np.ndarray]:
        target = (slice(block.i0, block.i1), slice(block.j0, block.j1))
        sums = np.zeros_like(out[target])
        run(flat_x, flat_y, block, shape, ks, psi, work, sums)
        return target, sums

    _share(blocks, threads, lambda: _work(flat_x.dtype, SIDE, k), run_one, out)
    return torch.from_numpy(out[0] if paired else out)


def _share(
    tasks: Sequence[Any],
    threads: int,
    make_work: Callable[[], Work],
    run: Callable[[Any, Work], tuple[Any, np.ndarray]],
    out: np.ndarray,
) -> None:
    """Run the tasks on the threads, and add each result at its place in `out`."""
    own = threading.local()

    def run_one(task: Any) -> tuple[Any, np.ndarray]:
        if not hasattr(own, "work"):
            own.work = make_work()
        return run(task, own.work)

    threads = min(threads, len(tasks))
    if threads == 1:
        for target, sums in map(run_one, tasks):
            out[target] += sums
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            for target, sums in pool.map(run_one, tasks):
                out[target] += sums
        except BaseException:  # Ctrl-C: the threads finish the task at hand and take no other
            pool.shutdown(cancel_futures=True)
            raise


def _blocks(
    rows: int, columns: int, padded: int, layout: str, threads: int
) -> tuple[list[Block], int]:
    """The tasks, enough of them to occupy the threads; and the side of the blocks in each."""
    tasks = 8 * threads if threads > 1 else 1
    side = SIDE
    if layout == "paired":
        step = max(1, min(-(-columns // tasks), INTERRUPT // padded**2))
        pairs = [(0, 1, j, min(j + step, columns), False) for j in range(0, columns, step)]
    else:
        # Equal blocks: 196 tracks make seven of 28, not six of 32 and one of 4.
        upper, side_x, side = layout == "upper", _even(rows), _even(columns)
        if upper:
            side_x = side
        many = -(-rows // side_x) * -(-columns // side) // (2 if upper else 1)
        step = side * max(1, min(many // tasks, INTERRUPT // (side_x * side * padded**2)))
        pairs = [
            (i, min(i + side_x, rows), j, min(j + step, columns), upper and i == j)
            for i in range(0, rows, side_x)
            for j in range(i if upper else 0, columns, step)
        ]
    largest = max((i1 - i0) * (j1 - j0) for i0, i1, j0, j1, _ in pairs)
    parts = max(-(-tasks // len(pairs)), -(-largest * padded**2 // INTERRUPT))
    parts = max(1, min(parts, padded // (4 * LANES)))
    step = -(-padded // (parts * LANES)) * LANES
    blocks = [
        Block(i0, i1, j0, j1, t0, min(t0 + step, padded), triangle)
        for i0, i1, j0, j1, triangle in pairs
        for t0 in range(0, padded, step)
    ]
    return blocks, side


def _even(length: int) -> int:
    return -(-length // -(-length // SIDE))


def _coordinates(x: Tensor, valid: Tensor | None) -> np.ndarray:
    """`[P, d, T padded]`, infinite where a sample is absent; a row of zeros where d is 0."""
    tracks, samples, d = x.shape
    padded = -(-samples // LANES) * LANES
    # numpy, not torch: OpenMP threads that torch has woken spin on for a while, on our cores.
    out = np.zeros((tracks, max(d, 1), padded), x.numpy().dtype)
    out[:, :d, :samples] = x.numpy().transpose(0, 2, 1)
    out[:, :, samples:] = np.inf
    if valid is not None:
        np.copyto(out[:, :, :samples], np.inf, where=~valid.numpy()[:, None])
    return out


def _work(dtype: np.dtype, side: int, k: int) -> Work:
    integer = np.int32 if dtype == np.float32 else np.int64
    pairs = side * side

    def empty(count: int) -> np.ndarray:
        return np.empty(count * LANES, integer)

    product = empty(4 * pairs)
    return Work(
        strips_x=empty(side * CHUNK),
        strips_y=empty(side * CHUNK),
        best=empty(pairs * k),
        product=product,
        mantissa=product.view(dtype),
        limits=empty(3 * pairs),
        counts=empty(3 * pairs),
        active=np.empty(pairs, np.bool_),
        infinity=np.array(np.inf, dtype).view(integer)[()],
    )
