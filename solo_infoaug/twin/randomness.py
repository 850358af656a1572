"""Random numbers of the twin branch, which do not affect those of the view branch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fork_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws from `seed`, on the CPU and on `device`. Afterwards its state is as
    before.

    `torch.random.fork_rng` with a seed. Kornia and solo-learn's methods draw from torch's
    global generators.
    """
    cards = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(cards):
        torch.default_generator.manual_seed(seed)
        for card in cards:
            torch.cuda.default_generators[card].manual_seed(seed)
        yield
