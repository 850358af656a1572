"""The operations as Triton's kernels, without a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import python


@pytest.mark.slow
def test_the_interpreted_kernels_are_plain_torch() -> None:
    """In a process of its own: how a kernel runs is settled when its module is imported."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("interpreted.py")
    found = json.loads(python(script, OMP_NUM_THREADS="1").stdout)
    assert len(found) == 14
    # where a level lies on the edge between two, rounding may fall to either
    assert {name: share for name, share in found.items() if not share < 1e-3} == {}


@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        ("_resample", {"AXIS": 1}),
        ("_jitter", {}),
        ("_levels", {"SOLARIZE": True}),
        ("_box", {"FIRST": True, "LAST": False, "REACH": 3}),
        ("_flip", {}),
    ],
)
def test_the_kernels_compile_for_a_card_that_is_not_here(kernel: str, constants: Any) -> None:
    """The interpreter takes more of Python than the compiler does."""
    pytest.importorskip("triton")
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from solo_infoaug.views import kernels

    function = getattr(kernels, kernel)
    constants = {**constants, "BLOCK": 1024}
    pointers = dict.fromkeys(("image", "source", "target", "boxes", "turns", "sigma"), "*fp32")
    types = {**pointers, "some": "*i64", **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "i32") for name in function.arg_names}
    compiled = compile_kernel(
        ASTSource(function, signature, constants),
        target=GPUTarget("cuda", 80, 32),
        options={"num_warps": 4, "enable_fp_fusion": False},
    )
    assert "st.global" in compiled.asm["ptx"]
