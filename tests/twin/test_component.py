"""The twin branch as a component: its loss, its batch norms, what a step may cost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from augmentations import augmentation
from torch.overrides import TorchFunctionMode
from twin_methods import METHODS, trained

from solo_infoaug.errors import ConfigError
from solo_infoaug.twin.batch_norm import norms_of
from solo_infoaug.views import pipeline


def test_weight_scales_the_twin_loss(build: Callable[..., Any], twins_folder: Path) -> None:
    losses = {}
    for weight in (0.0, 1.0, 3.0):
        run = build("simclr", {"twins": str(twins_folder), "weight": weight})
        losses[weight] = run.step()
        twin = run.logged["twin_loss"]
    assert losses[1.0] == pytest.approx(losses[0.0] + twin, rel=1e-5)
    assert losses[3.0] == pytest.approx(losses[0.0] + 3 * twin, rel=1e-5)


def _statistics(backbone: Any) -> list[torch.Tensor]:
    return [norm.running_mean.clone() for norm in norms_of(backbone)]


@pytest.mark.parametrize("batch_norm", ["shared", "separate", "frozen"])
def test_batch_norm_sees_twins_as_it_was_told(
    build: Callable[..., Any], twins_folder: Path, batch_norm: str
) -> None:
    run = build("byol", {"twins": str(twins_folder), "batch_norm": batch_norm})
    module, twin = run.module, run.module.twin
    before = _statistics(module.backbone), _statistics(module.momentum_backbone)
    weights = [norm.weight for norm in norms_of(module.backbone)]
    run.module.twin_branch.loss(0).backward()
    after = _statistics(module.backbone), _statistics(module.momentum_backbone)
    changed = any(
        not torch.equal(a, b)
        for x, y in zip(before, after, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert changed == (batch_norm == "shared")
    assert all(norm.training for norm in norms_of(module.backbone))
    assert all(
        norm.weight is weight
        for norm, weight in zip(norms_of(module.backbone), weights, strict=True)
    )
    own = trained(twin.norms.named_parameters()) if twin.norms is not None else {}
    assert bool(own) == (batch_norm == "separate")
    assert all(p.grad is not None for p in own.values())
    assert all((w.grad is None) == (batch_norm == "separate") for w in weights)
    if batch_norm == "separate":
        groups = [g for g in module.learnable_params if g.get("name") == "twin_norms"]
        assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in own.values()}
        assert any((twin.norms, twin.momentum_norms) == pair for pair in module.momentum_pairs)
        assert any(
            not torch.equal(n.running_mean, o) for n, o in zip(twin.norms, before[0], strict=True)
        )


@pytest.mark.skipif("mae" not in METHODS, reason="no ViT in solo-learn 1.0.2's tests")
@pytest.mark.parametrize("batch_norm", ["separate", "frozen"])
def test_backbone_without_batch_norm_is_named(
    build: Callable[..., Any], twins_folder: Path, batch_norm: str
) -> None:
    with pytest.raises(ConfigError, match=r"infoaug.batch_norm.*vit_tiny has none; use shared"):
        build("mae", {"twins": str(twins_folder), "batch_norm": batch_norm})


def test_what_the_view_branch_would_leave_out_is_an_error(build: Callable[..., Any]) -> None:
    """solo-learn's own views would lack it without a word, and the twins' would not."""
    for name in ("RandomInvert", "kornia"):
        entries = [augmentation(**{name: True})]
        with pytest.raises(ConfigError, match=rf"augmentations\.{name}: .*infoaug\.augmentations"):
            build("simclr", augmentations=entries)
        build("simclr", augmentations=entries, **{"data.whole_batches": True})


def test_an_error_in_the_branch_gives_the_backbone_back(
    build: Callable[..., Any], twins_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build("simclr", {"twins": str(twins_folder), "batch_norm": "separate"})
    module = run.module
    weights = [norm.weight for norm in norms_of(module.backbone)]
    random = torch.get_rng_state()

    def fail(*args: Any) -> None:
        torch.rand(3)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module.twin, "training_step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        module.training_step(run.batch(), 0)
    assert [id(norm.weight) for norm in norms_of(module.backbone)] == [id(w) for w in weights]
    assert torch.equal(torch.get_rng_state(), random)


# PyTorch warns of each place that it cannot trace, and goes on without compiling it
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_models_train(
    host: Any, make_cfg: Any, twins_folder: Path, steps: Any, compiler: None
) -> None:
    """Without code generation, which would take minutes: the tracing is what may fail."""
    losses = []
    for compiled in (False, True):
        small = {"backbone.name": "small_resnet"}  # each layer is traced
        cfg = host.parse_cfg(make_cfg("simclr", {"twins": str(twins_folder)}, **small))
        torch.manual_seed(0)
        run = steps(host.methods["simclr"](cfg), cfg)
        number = run.start()
        step = run.module.training_step
        step = torch.compile(step, backend="eager") if compiled else step
        graphs = []
        for turn in range(3):
            loss = step(run.batch(), number + turn)
            loss.backward()
            losses.append(float(loss.detach()))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert graphs[1] == graphs[2], "compiled anew every step"
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5)


@pytest.mark.parametrize(("prefetched", "together"), [(False, None), (True, None), (True, True)])
@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_a_step_never_waits_for_the_device(
    build: Callable[..., Any],
    method: str,
    prefetched: bool,
    together: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    compiler: None,
) -> None:
    """On the device `meta` there are no values: whoever asks for one there fails.

    A step sends one piece to the device: patches, twins, indices and all that is drawn for views.
    """
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    pieces = []
    packed = pipeline.packed
    monkeypatch.setattr(
        pipeline, "packed", lambda *args, **kwargs: pieces.append(1) or packed(*args, **kwargs)
    )
    run = build(method)
    run.start()
    module = run.module.to("meta")
    branch = module.twin_branch
    branch.prefetch, branch.one_pass = prefetched, together
    module.log = module.log_dict = lambda *args, **kwargs: None  # the tests' own, which read
    moved = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            found = function(*args, **(kwargs or {}))
            devices = [getattr(one, "device", None) for one in (args[0], found)]
            if devices == [torch.device("cpu"), torch.device("meta")]:
                moved.append(function.__name__)
            return found

    for step in range(2):
        index, views, labels = run.batch()
        batch = [index.to("meta"), [view.to("meta") for view in views], labels.to("meta")]
        with Watch():
            loss = module.training_step(batch, step)
        loss.backward()
        assert loss.device.type == "meta"
    branch.close()
    assert len(pieces) == 2 + prefetched
    # the second step's piece was sent by another thread, which this does not see
    assert moved == ["to"] * (1 if prefetched else 2)
    assert all(p.grad is not None for p in trained(module.twin.named_parameters()).values())
