"""Random numbers of the twin branch, which leave those of the view branch as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def fork_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws from `seed`, on the CPU and on `device`; outside nothing has happened.

    Like `torch.random.fork_rng`, with a seed. Kornia and solo-learn's methods draw from torch's
    global generators.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def draw_seeds(seed: int, rank: int, epoch: int, step: int) -> tuple[int, int]:
    """Two seeds that depend on these four alone: of the choice of pairs, and of all else."""
    sequence = np.random.SeedSequence([seed, rank, epoch, step])
    pairs, rest = (int(n) for n in sequence.generate_state(2, np.uint64) >> 1)
    return pairs, rest
