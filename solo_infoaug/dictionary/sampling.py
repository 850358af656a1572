"""The choice of patches and partners: pure functions of what was drawn."""

from __future__ import annotations

import torch


def draw(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """`size` of `count` numbers, without repetition where that is possible and cheap."""
    if size > count or count > 1 << 16:
        return torch.randint(count, (size,), generator=generator)
    return torch.randperm(count, generator=generator)[:size]


def another(own: torch.Tensor, count: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """int64 [B]: a place below `count` that is not the `own`, by `choice` in [0, 1)."""
    other = (choice * (count - 1).clamp(min=1)).long()
    return torch.where(count > 1, other + (other >= own), own)


def two_from_one(choice: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two draws from one: bool [B], true with probability `share`; and a number in [0, 1)."""
    first = choice < share
    left = torch.where(first, choice / share, (choice - share) / (1 - share))
    return first, left.clamp(max=1 - 2**-24)  # float32 may round up to 1
