"""The choice of patches and partners: pure functions of random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


class TwinPairs(NamedTuple):
    """A batch of patches and their partners."""

    patch: torch.Tensor
    """uint8 [B, 3, H, W]."""

    partner: torch.Tensor
    """uint8 [B, 3, H, W]: the twin of each patch, or what `positives` puts in its place."""

    patch_index: torch.Tensor
    """int64 [B]: the number of each patch in the dictionary."""


def draw(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """`size` of `count` numbers, without repetition where that is possible and cheap."""
    if size > count or count > 1 << 16:
        return torch.randint(count, (size,), generator=generator)
    return torch.randperm(count, generator=generator)[:size]


MANY = 1 << 16
"""Of more numbers than this, not all are put in an order to draw a few of them."""


def draw_apart(
    windows: torch.Tensor, size: int, generator: torch.Generator, taken: torch.Tensor | None = None
) -> torch.Tensor:
    """int64 [size]: places in `windows`, none of a window twice while another window is left.

    `windows` int64 [N] are those of the patches to draw from, `taken` int64 [T] those of patches
    that are in the batch already. The more patches a window has, the likelier one is drawn.
    """
    count = len(windows)
    some = draw(count, max(size, min(count, MANY)), generator)
    chosen, turns = _in_turns(windows[some], size, taken)
    if count > MANY and turns[-1] > 0:  # not enough windows among those
        some = torch.randperm(count, generator=generator)
        chosen, _ = _in_turns(windows[some], size, taken)
    return some[chosen]


def _in_turns(
    windows: torch.Tensor, size: int, taken: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `size` places if each window has one in turn; and how often each had one before."""
    order = torch.argsort(windows, stable=True)
    ordered = windows[order]
    starts = torch.searchsorted(ordered, ordered)
    turns = torch.empty_like(windows)
    turns[order] = torch.arange(len(windows)) - starts
    if taken is not None:
        most = int(torch.cat([windows, taken]).max()) + 1
        turns += torch.bincount(taken, minlength=most)[windows]
    chosen = torch.argsort(turns, stable=True)[:size]
    return chosen, turns[chosen]


def at_least(
    twins: torch.Tensor, x: np.ndarray, y: np.ndarray, size: np.ndarray, distance: float
) -> torch.Tensor:
    """bool [N, K]: which twins int64 [N, K] are `distance` sides of their patch away, or more.

    By the miner's rule: the larger of the distances of the centres along the axes, and half a
    pixel less is enough. False where there is no twin (−1).
    """
    rows = twins.numpy()
    gap = np.maximum(abs(x[rows] - x[:, None]), abs(y[rows] - y[:, None]))
    return torch.from_numpy((rows >= 0) & (gap >= distance * size[:, None] - 0.5))


def another(own: torch.Tensor, count: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """int64 [B]: a place below `count` that is not the `own`, by `choice` in [0, 1)."""
    other = (choice * (count - 1).clamp(min=1)).long()
    return torch.where(count > 1, other + (other >= own), own)


def two_from_one(choice: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two draws from one: bool [B], true with probability `share`; and a number in [0, 1)."""
    first = choice < share
    left = torch.where(first, choice / share, (choice - share) / (1 - share))
    return first, left.clamp(max=1 - 2**-24)  # float32 may round up to 1


def twin(twins: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """int64 [B]: one of each patch's twins int64 [B, K] (padded with −1), by `choice` in [0, 1)."""
    available = (twins >= 0).sum(dim=1)
    return twins.gather(1, (choice * available).long()[:, None])[:, 0]


@dataclass(frozen=True)
class WindowMates:
    """Which patches share a window, for random partners.

    `window_of` int64 [N], `anchors` int64 [A], `without_twin` int64 [N − A]; of each window
    `tracked` int64 [W], how many patches it had, and int64 [W, 2] where it begins in `anchors`
    and in `without_twin`, and how many it has there.
    """

    window_of: torch.Tensor
    anchors: torch.Tensor
    without_twin: torch.Tensor
    tracked: torch.Tensor
    anchors_of: torch.Tensor
    without_of: torch.Tensor

    @classmethod
    def of(
        cls,
        window_of: torch.Tensor,
        anchors: torch.Tensor,
        without_twin: torch.Tensor,
        tracked: torch.Tensor,
    ) -> WindowMates:
        """Of patches in the order of their windows."""
        # Patches of a window are neighbours in `anchors` and in `without_twin`
        anchors_of, without_of = (
            _runs(window_of[index], len(tracked)) for index in (anchors, without_twin)
        )
        return cls(window_of, anchors, without_twin, tracked, anchors_of, without_of)

    def mate(self, index: torch.Tensor, choice: torch.Tensor, anchors: bool) -> torch.Tensor:
        """Another patch of the same window; with `anchors`, one that has a twin, if there is
        another.

        Otherwise each patch that was not lost is equally likely. Stored patches without a twin
        stand for the ones that were not stored; without this, most partners would have a twin and
        lie on the same object.
        """
        window = self.window_of[index]
        first, count = self.anchors_of[window].unbind(1)
        start, stored = self.without_of[window].unbind(1)
        if anchors:
            share = (count > 1).float()
        else:
            rest = torch.where(stored > 0, self.tracked[window] - count, 0)
            share = (count - 1).float() / (count - 1 + rest).clamp(min=1).float()
        has_twin, choice = two_from_one(choice, share)
        own = torch.searchsorted(self.anchors, index) - first
        mate = self.anchors[first + another(own, count, choice)]
        if len(self.without_twin) == 0:
            return mate
        place = (start + (choice * stored).long()).clamp(max=len(self.without_twin) - 1)
        return torch.where(has_twin | (stored == 0), mate, self.without_twin[place])


def _runs(windows: torch.Tensor, count: int) -> torch.Tensor:
    """int64 [count, 2]: where each window begins in `windows`, and how often it comes."""
    found = torch.bincount(windows, minlength=count)
    return torch.stack([found.cumsum(0) - found, found], dim=1)
