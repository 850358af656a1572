"""The Triton kernel: under Triton's interpreter on the CPU, compiled for a card, and on one."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from processes import python

from solo_infoaug.information import _backend, _plain, pairwise_mutual_information

_SCRIPT = Path(__file__).with_name("triton_interpreted.py")


@pytest.mark.slow
def test_the_interpreted_kernel_is_the_cpu_engine() -> None:
    """In a process of its own: how a kernel runs is settled when its module is imported."""
    pytest.importorskip("triton")
    found = json.loads(python(_SCRIPT, OMP_NUM_THREADS="1").stdout)
    assert len(found) == 21
    assert {name: value for name, value in found.items() if not value < 1e-4} == {}


@pytest.mark.parametrize(("k", "kind", "masked"), [(3, 0, False), (3, 2, True), (8, 1, False)])
def test_the_kernel_compiles_for_a_card_that_is_not_here(k: int, kind: int, masked: bool) -> None:
    """The interpreter takes more of Python than the compiler does."""
    pytest.importorskip("triton", "3.3", reason="before 3.3 it is asked to compile in another way")
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from solo_infoaug.information import _triton

    constants = {"K": k, "KIND": kind, "PAIRED": False, "UPPER": True, "CX": 3, "CY": 2}
    constants |= {"MASKED_X": masked, "MASKED_Y": masked, "I": 4, "J": 2, "B": 64}
    pointers = {"x": "*fp32", "y": "*fp32", "psi": "*fp64", "out": "*fp64"}
    names = _triton._kernel.arg_names
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in pointers}
    compiled = compile_kernel(
        ASTSource(_triton._kernel, signature, constants, aligned),
        target=GPUTarget("cuda", 80, 32),
        options={"num_warps": 2, "enable_fp_fusion": False},
    )
    # two samples are merged into the neighbours of each of the 8 pairs, no more; and what a thread
    # needs it has in its registers, other threads are not asked
    assert compiled.asm["ptx"].count("min.f32") == 8 * (1 + k + k // 2)
    loop = compiled.asm["ttgir"].split("scf.for")[1].split("scf.yield")[0]
    assert loop.count("tt.load") == 2 * (5 + 2 * masked)
    ptx = compiled.asm["ptx"]
    assert "ld.global.v4" in ptx
    assert ptx.index("st.shared") > ptx.rindex("min.f32")


def test_what_the_kernel_does_not_take_is_left_to_plain_torch() -> None:
    pytest.importorskip("triton")
    from solo_infoaug.information import _triton

    x = torch.zeros(2, 20, 3)
    assert _triton.fits(x, x, 8)
    assert not _triton.fits(x, x, 9)
    assert not _triton.fits(x.double(), x.double(), 3)
    assert not _triton.fits(x, torch.zeros(2, 20, 9), 3)


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("k", [1, 3, 8, 9])
@pytest.mark.parametrize("estimator", ["3kl", "ksg1", "ksg2"])
@pytest.mark.filterwarnings("ignore::solo_infoaug.information.EstimateWarning")
def test_cuda_is_the_cpu_engine(cuda, estimator, k, tied, masked) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 150, 3, generator=generator)
    x[1:] += x[:1]
    x = x.round() if tied else x
    mask = torch.rand(9, 150, generator=generator) < 0.8 if masked else None
    expected = pairwise_mutual_information(x, estimator, k, mask=mask)
    there = None if mask is None else mask.to(cuda)
    got = pairwise_mutual_information(x.to(cuda), estimator, k, mask=there)
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_cuda_uses_the_kernel_and_repeats_to_the_bit(cuda, monkeypatch) -> None:
    pytest.importorskip("triton")
    x = torch.randn(40, 300, 3, generator=torch.Generator().manual_seed(0)).to(cuda)
    first = pairwise_mutual_information(x)
    assert _backend._triton().works(x.device)
    monkeypatch.setattr(_plain, "neighbour_sums", None)
    assert torch.equal(pairwise_mutual_information(x), first)


@pytest.mark.gpu
def test_cuda_is_waited_for_as_often_for_many_scenes(cuda) -> None:
    pytest.importorskip("triton")
    x = torch.randn(6, 12, 100, 3, generator=torch.Generator().manual_seed(0)).to(cuda)
    pairwise_mutual_information(x)
    found = []
    for scenes in (1, 6):
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                pairwise_mutual_information(x[:scenes])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append(sum("called a synchronizing" in str(one.message) for one in met))
    assert 0 < found[0] == found[1] <= 4
