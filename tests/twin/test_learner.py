"""What a twin branch learns by, in every method: whose gradients, whose weights, whose loss."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from twin_methods import KIND, METHODS, MOMENTUM, trained

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.twin.spec import HOOKS, find_method


def test_every_method_of_the_host_has_a_patch(host: Any) -> None:
    assert set(METHODS) == set(host.methods) - {"base", "linear"}
    assert len(METHODS) == {"current": 19, "release": 14}[KIND]


@pytest.mark.parametrize("method", METHODS)
def test_patch_tells_the_truth(build: Callable[..., Any], method: str) -> None:
    patch, run = find_method(method), build(method)
    module, twin = run.module, run.module.twin
    run.start()
    heads = {name.partition(".")[0] for name, _ in twin.named_parameters()}
    assert heads == {*patch.heads, *patch.momentum_heads}
    moving = [pair[1] for pair in getattr(twin, "momentum_pairs", [])]
    assert moving == [getattr(twin, name) for name in patch.momentum_heads]
    constant = "inv_freq"
    norm = ("running_mean", "running_var", "num_batches_tracked", "running_wm", "running_cov")
    buffers = {name for name, _ in twin.named_buffers() if not name.endswith((*norm, constant))}
    assert buffers == set(patch.state)
    plain = type(module).infoaug_plain
    own_class = plain if KIND == "current" else plain.release_method
    assert {name for name in vars(own_class) if name.startswith("on_")} == set(patch.hooks)
    assert set(patch.hooks) <= set(HOOKS)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_stay_on_their_side(build: Callable[..., Any], method: str) -> None:
    run = build(method)
    module = run.module
    run.run(3)
    run.start()  # of the second epoch: DeepCluster V2 has clusters now
    module.zero_grad(set_to_none=True)
    backbone = dict(module.backbone.named_parameters())
    view_names = find_method(method).renamed.keys() | {*find_method(method).heads}
    twin_heads = trained(module.twin.named_parameters())
    view_heads = {
        name: p
        for name, p in trained(module.named_parameters()).items()
        if name.partition(".")[0] in view_names
    }
    assert twin_heads
    assert view_heads.keys() - twin_heads.keys() == {
        name for name in view_heads if name.startswith("transformer_encoder.")
    }

    run.module.twin_branch.loss(0).backward()
    used = {name: p for name, p in backbone.items() if p.requires_grad}
    assert all(p.grad is not None for p in used.values())
    assert any(p.grad.abs().sum() > 0 for p in used.values())
    assert all(p.grad is not None for p in twin_heads.values()), (
        "find_unused_parameters=False needs a gradient for every parameter"
    )
    assert all(p.grad is None for p in view_heads.values())
    assert module.classifier.weight.grad is None

    module.zero_grad(set_to_none=True)
    type(module).infoaug_plain.training_step(module, run.batch(), 0).backward()
    assert all(p.grad is None for p in twin_heads.values())
    assert all(p.grad is not None for p in view_heads.values())


@pytest.mark.parametrize("method", METHODS)
def test_steps_train_both_heads(build: Callable[..., Any], method: str) -> None:
    run = build(method)
    losses = run.run(3)
    before = copy.deepcopy(run.module.state_dict())
    losses = [*losses[method == "deepclusterv2" and 3 :], *run.run(3)]
    after = run.module.state_dict()
    assert torch.tensor(losses).isfinite().all()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    own = trained(run.module.twin.named_parameters())
    assert {f"twin.{name}" for name in own} <= moved | _WITHOUT_EFFECT
    assert any(name.startswith(find_method(method).heads) for name in moved)
    assert "twin_loss" in run.logged
    assert any(n.startswith("twin_") and n != "twin_loss" for n in run.logged)
    assert not any(n.startswith("twin_") and ("acc" in n or "class" in n) for n in run.logged)


# A bias before a batch norm has no gradient but rounding errors.
_WITHOUT_EFFECT = {
    f"twin.{head}.{layer}.bias" for head in ("projector", "predictor") for layer in (0, 3, 6)
}


@pytest.mark.parametrize("method", MOMENTUM)
def test_momentum_heads_move_by_the_methods_rule(build: Callable[..., Any], method: str) -> None:
    run = build(method)
    module = run.module
    (head,) = find_method(method).momentum_heads
    pairs = module.momentum_pairs
    assert sum(pair[1] is module.momentum_backbone for pair in pairs) == 1
    assert any(pair[1] is getattr(module.twin, head) for pair in pairs)
    old = copy.deepcopy(getattr(module.twin, head).state_dict())
    tau = module.momentum_updater.cur_tau
    run.step()
    online = dict(getattr(module.twin, head.removeprefix("momentum_")).named_parameters())
    for name, parameter in getattr(module.twin, head).named_parameters():
        torch.testing.assert_close(parameter, tau * old[name] + (1 - tau) * online[name])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moving_average_of_all_weights_is_solo_learns(
    build: Callable[..., Any], layout: torch.memory_format
) -> None:
    """To the bit and in the same memory layout, by which a convolution rounds."""
    run = build("byol")
    module = run.module.to(memory_format=layout)
    ours = module.momentum_updater
    theirs = type(ours)(ours.base_tau, ours.final_tau)
    random = torch.Generator().manual_seed(0)
    pairs = [(copy.deepcopy(a), copy.deepcopy(b)) for a, b in module.momentum_pairs]
    assert len(list(pairs[0][0].parameters())) > 50
    for online, momentum in pairs:
        for weight in (*online.parameters(), *momentum.parameters()):
            weight.data.copy_(torch.randn(weight.shape, generator=random))
    expected = copy.deepcopy(pairs)
    for ours.cur_tau in (0.93, 1.0):
        theirs.cur_tau = ours.cur_tau
        for given in pairs:
            ours.update(*given)
        for given in expected:
            theirs.update(*given)
        for (_, got), (_, wanted) in zip(pairs, expected, strict=True):
            for a, b in zip(got.parameters(), wanted.parameters(), strict=True):
                assert torch.equal(a, b)
                assert a.stride() == b.stride()
                assert a.requires_grad == b.requires_grad
    again = pickle.loads(pickle.dumps(ours))
    again.cur_tau = 0.0
    again.update(*pairs[0])
    assert all(map(torch.equal, pairs[0][0].parameters(), pairs[0][1].parameters()))


@pytest.mark.parametrize("method", [name for name in METHODS if find_method(name).state])
def test_state_is_the_branchs_own(build: Callable[..., Any], method: str) -> None:
    run = build(method)
    run.run(4)
    module = run.module
    names = [name for name in find_method(method).state if not name.endswith(("ptr", "_y"))]
    for name in names:
        ours, theirs = module.twin.get_buffer(name), module.get_buffer(name)
        assert ours is not theirs
        assert not torch.equal(ours, theirs), name


def test_clusters_are_over_the_dictionary(build: Callable[..., Any], twins_folder: Path) -> None:
    run = build("deepclusterv2", {"twins": str(twins_folder), "batch_size": 10})
    run.run(3)
    twin = run.module.twin
    drawn = torch.cat([run.module.twin_branch.batch(step).index for step in range(3)])
    run.trainer.current_epoch = 1
    twin.on_train_epoch_start()
    assert twin.assignments.shape == (2, len(TwinDictionary.load(twins_folder)))
    assert torch.equal(twin.local_memory_index, drawn)
    has_cluster = (twin.assignments >= 0).all(0)
    assert set(torch.where(has_cluster)[0].tolist()) == set(twin.local_memory_index.tolist())


def test_more_clusters_than_pairs_are_refused_before_training(build: Callable[..., Any]) -> None:
    kwargs = {"method_kwargs.num_prototypes": [25]}
    run = build("deepclusterv2", **kwargs)
    with pytest.raises(ConfigError, match=r"num_prototypes: expected at most 24.*got 25"):
        run.start()


@pytest.mark.skipif("supcon" not in METHODS, reason="supcon is not in solo-learn 1.0.2 (release)")
def test_supcons_labels_are_patches(build: Callable[..., Any]) -> None:
    run = build("supcon")
    branch = run.module.twin_branch
    given: list[Any] = []
    step = branch.learner.training_step
    branch.learner.training_step = lambda batch, number: given.append(batch) or step(batch, number)
    branch.loss(0)
    ((index, _, labels),) = given
    assert torch.equal(index, labels)
    assert torch.equal(index, branch.batch(0).index)
    assert len(labels.unique()) > 1


@pytest.mark.skipif("mae" not in METHODS, reason="mae is not in solo-learn 1.0.2 (release)")
def test_mae_reconstructs_the_twin(build: Callable[..., Any]) -> None:
    run = build("mae", **{"method_kwargs.norm_pix_loss": False})
    module = run.module
    twins = module.twin_branch.batch(0)
    views = twins.views
    assert len(views) == 4
    loss = module.twin_branch.loss(0)
    torch.set_rng_state(twins.random)
    expected = []
    for patch, twin in ((views[0], views[1]), (views[2], views[3])):
        _, tokens, _, order = module.backbone(patch, 0.5)
        pixels = module.twin.decoder(tokens, order)
        tiles = twin.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 3, 2, 2, 8, 8]
        target = tiles.permute(0, 2, 3, 4, 5, 1).reshape(len(twin), 4, -1)
        expected.append(F.mse_loss(pixels, target))
    torch.testing.assert_close(loss, sum(expected) / 2)


def _simclr(module: Any, branch: Any, x: Any, z: Any) -> torch.Tensor:
    both = F.normalize(torch.cat(z), dim=1)
    n = len(z[0])
    logits = (both @ both.T / branch.temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


def _mocov2plus(module: Any, branch: Any, x: Any, z: Any) -> torch.Tensor:
    q1, q2 = (F.normalize(out, dim=1) for out in z)
    with torch.no_grad():
        k1, k2 = (
            F.normalize(branch.momentum_projector(module.momentum_backbone(view)), dim=1)
            for view in x
        )

    def info_nce(q: torch.Tensor, k: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], dim=1)
        return F.cross_entropy(logits / branch.temperature, torch.zeros(len(q), dtype=torch.long))

    return (info_nce(q1, k2, branch.queue[1]) + info_nce(q2, k1, branch.queue[0])) / 2


def _byol(module: Any, branch: Any, x: Any, z: Any) -> torch.Tensor:
    p1, p2 = (branch.predictor(out) for out in z)
    with torch.no_grad():
        t1, t2 = (branch.momentum_projector(module.momentum_backbone(view)) for view in x)
    return sum(2 - 2 * F.cosine_similarity(p, t, dim=1).mean() for p, t in ((p2, t1), (p1, t2)))


def _simsiam(module: Any, branch: Any, x: Any, z: Any) -> torch.Tensor:
    p1, p2 = (branch.predictor(out) for out in z)
    return (
        -sum(F.cosine_similarity(p, t.detach(), dim=1).mean() for p, t in ((p1, z[1]), (p2, z[0])))
        / 2
    )


def _barlow_twins(module: Any, branch: Any, x: Any, z: Any) -> torch.Tensor:
    a, b = ((out - out.mean(0)) / (out.var(0, unbiased=False) + 1e-5).sqrt() for out in z)
    correlation = a.T @ b / len(a)
    off = correlation - torch.diag(torch.diagonal(correlation))
    loss = (torch.diagonal(correlation) - 1).square().sum() + branch.lamb * off.square().sum()
    return branch.scale_loss * loss


def _vicreg(module: Any, branch: Any, x: Any, z: Any) -> torch.Tensor:
    invariance = F.mse_loss(*z)
    variance = sum(F.relu(1 - (out.var(0) + 1e-4).sqrt()).mean() for out in z)
    covariance = torch.zeros(())
    for out in z:
        c = torch.cov(out.T)
        covariance = covariance + (c - torch.diag(torch.diagonal(c))).square().sum() / len(c)
    return (
        branch.sim_loss_weight * invariance
        + branch.var_loss_weight * variance
        + branch.cov_loss_weight * covariance
    )


def _nnclr(module: Any, branch: Any, x: Any, z: Any) -> torch.Tensor:
    p1, p2 = (F.normalize(branch.predictor(out), dim=1) for out in z)
    queue = F.normalize(branch.queue, dim=1)
    n1, n2 = (queue[(F.normalize(out, dim=1) @ queue.T).argmax(1)] for out in z)
    labels = torch.arange(len(p1))
    return (
        sum(F.cross_entropy(n @ p.T / branch.temperature, labels) for n, p in ((n1, p2), (n2, p1)))
        / 2
    )


_REFERENCE = {
    "simclr": _simclr,
    "mocov2plus": _mocov2plus,
    "byol": _byol,
    "simsiam": _simsiam,
    "barlow_twins": _barlow_twins,
    "vicreg": _vicreg,
    "nnclr": _nnclr,
}


@pytest.mark.parametrize("method", list(_REFERENCE))
def test_twin_loss_is_the_methods_own_on_the_branchs_outputs(
    build: Callable[..., Any], host: Any, method: str
) -> None:
    run = build(method)
    module, branch = run.module, run.module.twin
    x1, x2 = module.twin_branch.batch(0).views
    state = copy.deepcopy(module.state_dict())
    loss = module.twin_branch.loss(0)
    module.load_state_dict(state)  # batch-norm statistics and queues as before the step

    backbone = module.backbone
    h1, h2 = backbone(x1), backbone(x2)
    z1, z2 = branch.projector(h1), branch.projector(h2)
    expected = _REFERENCE[method](module, branch, (x1, x2), (z1, z2))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", list(_REFERENCE))
def test_without_heads_the_loss_is_of_normalised_features(
    build: Callable[..., Any], twins_folder: Path, method: str
) -> None:
    run = build(method, {"twins": str(twins_folder), "heads": "none"})
    module, branch = run.module, run.module.twin
    assert not list(branch.parameters())
    x1, x2 = module.twin_branch.batch(0).views
    state = copy.deepcopy(module.state_dict())
    loss = module.twin_branch.loss(0)
    loss.backward()
    assert all(p.grad is not None for p in module.backbone.parameters() if p.requires_grad)
    module.load_state_dict(state)  # batch-norm statistics and queues as before the step
    z = [F.batch_norm(module.backbone(x), None, None, training=True) for x in (x1, x2)]
    expected = _REFERENCE[method](module, branch, (x1, x2), z)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_the_branch_has_heads_by_default_and_dino_needs_its_own(
    build: Callable[..., Any], twins_folder: Path
) -> None:
    default = {"twins": str(twins_folder)}
    kept = {name: build(name, default).module.infoaug.heads for name in ("byol", "swav")}
    assert kept == {"byol": "full", "swav": "full"}
    with pytest.raises(ConfigError, match=r"infoaug\.heads: expected full for DINO"):
        build("dino", {**default, "heads": "none"})


@pytest.mark.parametrize(
    "method", [name for name in METHODS if "queue_ptr" in find_method(name).state]
)
def test_queue_must_hold_whole_twin_batches(
    build: Callable[..., Any], twins_folder: Path, method: str
) -> None:
    with pytest.raises(ConfigError, match=r"infoaug.batch_size.*queue_size \(32\).*got 5"):
        build(method, {"twins": str(twins_folder), "batch_size": 5})
    run = build(method)
    run.trainer.world_size = 3
    with pytest.raises(ConfigError, match=r"queue_size \(32\).*got 8 times 3 processes"):
        run.start()


def test_whitening_needs_whole_slices(build: Callable[..., Any], twins_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"infoaug.batch_size.*whitening_size \(8\).*got 12"):
        build("wmse", {"twins": str(twins_folder), "batch_size": 12})
