"""Patches that continue each other from window to window, and how far they reach in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

# Seconds that rounding may add to a distance in time; a frame takes more.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Chains:
    """Patches in the order in which they continue each other.

    `order` int64 [N] has the patches chain by chain, each in order of time; `place` int64 [N] is
    where each stands there. `first` and `stop` int64 [N] say, by place, where its chain begins and
    ends. `times` float64 [N] grow from place to place, by seconds inside a chain.
    """

    order: np.ndarray
    place: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, following: np.ndarray, seconds: np.ndarray) -> Chains:
        """Chains of patches at `seconds`, float64 [N].

        `following` int64 [N] is the patch that continues each, −1 for none; none comes twice.
        """
        count = len(following)
        root = np.arange(count)
        there = np.flatnonzero(following >= 0)
        root[following[there]] = there
        while not np.array_equal(root, further := root[root]):
            root = further
        order = np.lexsort((seconds, root))
        place = np.empty(count, np.int64)
        place[order] = np.arange(count)
        _, first, chain, length = np.unique(
            root[order], return_index=True, return_inverse=True, return_counts=True
        )
        # One axis for all chains, on which no two overlap
        times = seconds[order] - seconds.min(initial=np.inf)
        times = times + chain * (times.max(initial=0.0) + 1.0)
        return cls(order, place, first[chain], (first + length)[chain], times)

    def reach(self, index: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """int64 [B] each: where in `order` the patches at most `seconds` from each patch begin and
        end."""
        place, within = self.place[index], seconds + _ROUNDING
        first = np.searchsorted(self.times, self.times[place] - within, "left")
        stop = np.searchsorted(self.times, self.times[place] + within, "right")
        return np.maximum(first, self.first[place]), np.minimum(stop, self.stop[place])

    def draw(self, index: torch.Tensor, seconds: float, choice: torch.Tensor) -> torch.Tensor:
        """int64 [B]: for each patch, itself or a patch of its chain at most `seconds` away.

        All are equally likely; `choice` in [0, 1) decides.
        """
        first, stop = self.reach(index.numpy(), seconds)
        steps = (choice.double().numpy() * (stop - first)).astype(np.int64)
        return torch.from_numpy(self.order[first + steps])


def relinked(following: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """int64 [M]: the links int64 [N] of the patches `kept` int64 [M], renumbered within `kept`.

    A link to a patch that is not kept becomes −1.
    """
    place = np.full(len(following) + 1, -1)
    place[kept] = np.arange(len(kept))
    return place[following[kept]]  # −1 finds the last, which is none
