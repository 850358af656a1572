"""The order of patches if packs are fetched and only some of them fit on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Visit:
    """Packs that are on the disk at the same time, and the draws from them.

    Their patches are drawn in `rounds` orders, each of which has every one of them once. `first` is
    the number of the first draw, counted from the beginning of the pass.
    """

    seed: int
    packs: tuple[int, ...]
    first: int
    patches: int
    rounds: int

    @property
    def stop(self) -> int:
        """The number of the first draw of the next visit."""
        return self.first + self.patches * self.rounds


def visits(
    seed: int, turn: int, sizes: Sequence[int], patches: Sequence[int], room: int, rounds: int
) -> list[Visit]:
    """The visits of pass `turn` through all packs that have patches to draw.

    They are in random order, each with the packs of `sizes` bytes that have `room`, at least one.
    `patches` of each pack are drawn `rounds` times.
    """
    generator = torch.Generator().manual_seed(_seed(seed, turn))
    found: list[Visit] = []
    packs: list[int] = []
    first = taken = 0

    def close() -> None:
        nonlocal first, taken
        if packs:
            count = sum(patches[pack] for pack in packs)
            found.append(Visit(_seed(seed, turn, len(found)), tuple(packs), first, count, rounds))
            first, taken = found[-1].stop, 0
            packs.clear()

    for pack in torch.randperm(len(sizes), generator=generator).tolist():
        if not patches[pack]:
            continue
        if taken + sizes[pack] > room:
            close()
        packs.append(pack)
        taken += sizes[pack]
    close()
    return found


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")


class PackOrder:
    """Draws patches in an order that is a function of the run's seed and of the draw's number.

    `rows` ascending int64 [A] are the patches to draw. Blocks follow each other: `block_first`
    int64 [B] is the first patch of each, `block_pack` int64 [B] its pack. The rest is as in
    `visits`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        rows: np.ndarray,
        block_first: np.ndarray,
        block_pack: np.ndarray,
        room: int,
        rounds: int,
    ) -> None:
        self._sizes, self._rows, self._room, self._rounds = list(sizes), rows, room, rounds
        self._start = np.searchsorted(rows, block_first)
        self._stop = np.append(self._start[1:], len(rows))
        self._pack = block_pack
        counts = np.bincount(block_pack, self._stop - self._start, minlength=len(self._sizes))
        self._counts = [int(count) for count in counts]
        self._pass: tuple[tuple[int, int], list[Visit]] = ((-1, -1), [])
        self._round: tuple[tuple[Visit, int] | None, np.ndarray] = (None, rows[:0])

    def visit(self, seed: int, draw: int) -> tuple[Visit, int, Visit]:
        """The visit of a draw, the place of the draw in it, and the next visit."""
        turn, inside = divmod(draw, len(self._rows) * self._rounds)
        if self._pass[0] != (seed, turn):
            self._pass = (seed, turn), self._visits(seed, turn)
        visits = self._pass[1]
        at = next(number for number, visit in enumerate(visits) if inside < visit.stop)
        following = visits[at + 1] if at + 1 < len(visits) else self._visits(seed, turn + 1)[0]
        return visits[at], inside - visits[at].first, following

    def draws(self, seed: int, first: int, count: int) -> list[tuple[Visit, np.ndarray]]:
        """The patches of `count` draws from the number `first` on, visit by visit."""
        found: list[tuple[Visit, np.ndarray]] = []
        while count:
            visit, inside, _ = self.visit(seed, first)
            number, place = divmod(inside, visit.patches)
            drawn = self._ordered(visit, number)[place : place + count]
            found.append((visit, drawn))
            first, count = first + len(drawn), count - len(drawn)
        return found

    def rows_of(self, visit: Visit) -> np.ndarray:
        """int64: the patches of a visit's packs, those to draw."""
        blocks = np.flatnonzero(np.isin(self._pack, visit.packs))
        slices = [self._rows[self._start[b] : self._stop[b]] for b in blocks]
        return np.concatenate([self._rows[:0], *slices])

    def _visits(self, seed: int, turn: int) -> list[Visit]:
        return visits(seed, turn, self._sizes, self._counts, self._room, self._rounds)

    def _ordered(self, visit: Visit, number: int) -> np.ndarray:
        """int64: the patches of a visit, in the order of one of its rounds; the latest is kept."""
        if self._round[0] != (visit, number):
            generator = torch.Generator().manual_seed(_seed(visit.seed, number))
            rows = self.rows_of(visit)
            order = torch.randperm(len(rows), generator=generator).numpy()
            self._round = (visit, number), rows[order]
        return self._round[1]
