"""Medians of many short columns, compiled: several at a time in the lanes of a vector register."""

from __future__ import annotations

import numpy as np

from solo_infoaug._compile import compiled

# This many columns at a time stay in the first-level cache.
LANES = 64


# min and max become single instructions if no number is NaN
@compiled(fastmath={"nnan", "nsz"})
def sort_columns(values):  # type: ignore[no-untyped-def]
    """Sort each column of `values` [n, L] in place, by odd-even transposition: n is small."""
    count, lanes = values.shape
    for turn in range(count):
        for i in range(turn % 2, count - 1, 2):
            for lane in range(lanes):
                a, b = values[i, lane], values[i + 1, lane]
                values[i, lane] = a if a < b else b
                values[i + 1, lane] = b if a < b else a


@compiled()
def median(ordered, lane, count):  # type: ignore[no-untyped-def]
    """The median of the first `count` numbers of a column that is sorted."""
    half = count // 2
    if count % 2:
        return ordered[half, lane]
    return (ordered[half - 1, lane] + ordered[half, lane]) / np.float32(2)
