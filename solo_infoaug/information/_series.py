"""The tracks that the estimators work on, and their properties."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

ESTIMATORS = ("3kl", "ksg1", "ksg2")

Field = TypeVar("Field", int | Tensor, Tensor)


class Frame(NamedTuple):
    """A track in coordinates of equal spread, and its original spreads."""

    z: Tensor  # [P, T, d], each column of spread 1, or 0 where the column is determined by others
    narrow: Tensor  # [P, 2]: the narrowest direction, as standard deviation and quartile range
    wide: Tensor  # [P, 2]: the widest column


class Series(NamedTuple):
    x: Tensor  # [P, T, d]
    valid: Tensor | None  # [P, T]
    rank: Tensor | None = None  # [P], float64: independent columns; d where it is not given
    frame: Frame | None = None
    log_scale: Tensor | None = None  # [P]: log of the volume of z's unit cube in x
    recurs: Tensor | None = None  # [P], bool: a column has recurring values and others, or is ranks
    cell: Tensor | None = None  # [P, T, d]: width of a discrete column's cell; 0 in other columns
    source: Tensor | None = None  # [P]: rows of one number are one track, circularly shifted
    distinct: bool | None = None  # known: no track has two samples at one place

    @property
    def d(self) -> int:
        return self.x.shape[2]

    def counts(self) -> Tensor:
        if self.valid is None:
            samples = float(self.x.shape[1])
            return torch.full(self.x.shape[:1], samples, dtype=torch.float64, device=self.x.device)
        return self.valid.sum(-1).double()

    def dimensions(self) -> int | Tensor:
        return self.d if self.rank is None else self.rank

    def part(self, rows: slice | Tensor) -> Series:
        """These tracks alone."""

        def cut(field: Any) -> Any:
            if not isinstance(field, Tensor):
                return field
            if isinstance(rows, Tensor) and rows.dtype != torch.bool:
                return field.index_select(0, rows)  # faster than indexing
            return field[rows]

        frame = None if self.frame is None else Frame(*map(cut, self.frame))
        return Series(*map(cut, self._replace(frame=None)))._replace(frame=frame)

    def rolled(self, shifts: list[int]) -> Series:
        """`[S·P, ...]`: all tracks, circularly delayed by the first shift, then by the second,
        ..."""

        def roll(field: Tensor | None) -> Any:
            return None if field is None else torch.cat([field.roll(s, 1) for s in shifts])

        every = self.part(torch.arange(len(self.x), device=self.x.device).repeat(len(shifts)))
        if self.frame is not None and every.frame is not None:
            every = every._replace(frame=every.frame._replace(z=roll(self.frame.z)))
        return every._replace(x=roll(self.x), valid=roll(self.valid), cell=roll(self.cell))

    def even(self) -> Series:
        """In the coordinates of equal spread."""
        if self.frame is None:
            return self
        return self._replace(x=self.frame.z, frame=None, distinct=None)


def facing(x: Field, y: Field, layout: str) -> tuple[Field, Field]:
    """A property of the tracks x and the tracks y, `[P]` and `[Q]`, to broadcast over pairs."""
    if layout == "paired":
        return x, y
    return x if isinstance(x, int) else x[:, None], y if isinstance(y, int) else y[None, :]
