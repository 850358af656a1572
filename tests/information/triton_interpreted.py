"""What `test_triton.py` runs under Triton's interpreter; not a test by itself.

Prints a line of JSON: for each case the largest difference between the kernel's sums and those of
the plain backend, and between the MI by the kernel and by the engine for CPUs.
"""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is defined

import torch

from solo_infoaug.information import (
    EstimateWarning,
    _plain,
    _triton,
    formulas,
    pairwise_mutual_information,
)
from solo_infoaug.information._position import Series


def scene(seed: int, tracks: int, samples: int, d: int, tied: bool) -> torch.Tensor:
    """Coupled tracks, float32 `[tracks, samples, d]`; some tied ones rest, one is constant."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tracks, samples, d, generator=generator)
    x[1:] += x[:1]
    if tied:
        x = torch.where(x > 1.5, x, x.round())
        x[0] = 3.5
    return x


def by_the_kernel(*args: Any) -> torch.Tensor:
    """In the place of `_backend.neighbour_sums`."""
    *arguments, _ = args
    if arguments[0].x.dtype == torch.float64:  # with noise in the cells of whole numbers
        return _plain.neighbour_sums(*args)
    assert _triton.fits(arguments[0].x, arguments[1].x, arguments[2])
    return _triton.neighbour_sums(*arguments)


def sums(x: Any, valid_x: Any, y: Any, valid_y: Any, k: int, kind: str, layout: str) -> float:
    sides = Series(x, valid_x), Series(y, valid_y)
    got = _triton.neighbour_sums(*sides, k, kind, layout)
    expected = _plain.neighbour_sums(*sides, k, kind, layout, 2**22)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    columns = [0, 1, 2] if kind == "3kl" else [2]
    if kind == "3kl" and y.shape[2] == 0 and k > 1:
        columns.append(3)
    difference = (got - expected).abs()[..., columns] / x.shape[1]
    if layout == "upper":
        difference = difference[torch.triu(torch.ones(difference.shape[:2], dtype=torch.bool))]
    return float(difference.max())


def main() -> None:
    found = {}
    for kind, layout, masked in (
        ("3kl", "all", True),
        ("3kl", "upper", False),
        ("ksg1", "all", False),
        ("ksg1", "paired", True),
        ("ksg2", "upper", True),
        ("ksg2", "all", False),
    ):
        tied = layout != "all"
        x, y = scene(0, 5, 12, 3, tied), scene(1, 5, 12, 2, tied)
        masks = torch.rand(2, 5, 12, generator=torch.Generator().manual_seed(2)) < 0.7
        valid = list(masks) if masked else [None, None]
        name = f"sums {kind} {layout}{' masked' * masked}"
        found[name] = sums(x, valid[0], y, valid[1], 3, kind, layout)
    x = scene(3, 3, 12, 3, True)
    mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(4)) < 0.7
    nothing = x.new_empty(2, 12, 0)
    found["sums alone masked"] = sums(x, None, nothing, mask, 3, "3kl", "all")
    for k in (1, 2, 4, 5, 6, 7, 8):
        x = scene(k, 2, 12, 1, False)
        found[f"sums k={k}"] = sums(x, None, x, None, k, "3kl", "all")
    for d in (5, 8):
        x = scene(d, 3, 13, d, False)
        found[f"sums d={d}, odd"] = sums(x, None, x, None, 3, "ksg2" if d == 5 else "3kl", "upper")
    x = scene(3, 2, 70, 1, False)  # blocks of samples, one after another
    _triton.PARTIAL_SUMS = 16
    found["sums of blocks"] = sums(x, None, x, None, 3, "3kl", "all")

    warnings.simplefilter("ignore", EstimateWarning)
    for estimator, tied, masked in (
        ("3kl", False, False),
        ("3kl", True, True),
        ("ksg1", False, True),
        ("ksg2", True, False),
    ):
        x = scene(5, 5, 16, 3, tied)
        mask = torch.rand(5, 16, generator=torch.Generator().manual_seed(6)) < 0.8

        def way(x: Any = x, mask: Any = mask if masked else None, name: str = estimator) -> Any:
            return pairwise_mutual_information(x, name, mask=mask, min_samples=6)

        expected = way()
        assert expected.any()
        plain = formulas.neighbour_sums
        formulas.neighbour_sums = by_the_kernel
        try:
            got = way()
        finally:
            formulas.neighbour_sums = plain
        name = f"MI {estimator}{' tied' * tied}{' masked' * masked}"
        found[name] = float((got - expected).abs().max())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
