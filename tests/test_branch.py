"""The twin branch in the seven methods: whose gradients, whose weights, whose loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError, DictionaryError

SEVEN = ("simclr", "mocov2plus", "byol", "simsiam", "barlow_twins", "vicreg", "nnclr")
MOMENTUM = ("mocov2plus", "byol")


@pytest.fixture
def build(
    host: Any, make_cfg: Callable[..., Any], steps: Any, twins_folder: Path
) -> Callable[..., Any]:
    """A registered method, InfoAug on, ready to step."""

    def make(method: str, infoaug: Any = None, **overrides: Any) -> Any:
        settings = {"twins": str(twins_folder)} if infoaug is None else infoaug
        cfg = host.parse_cfg(make_cfg(method, settings, **overrides))
        torch.manual_seed(0)
        return steps(host.methods[method](cfg), cfg)

    return make


def _own_twin_parameters(module: Any) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in module.named_parameters() if n.startswith("twin.")}


def _twin_loss(run: Any) -> torch.Tensor:
    return run.module.twin.training_step(run.module._twin_batch(0), 0)


@pytest.mark.parametrize("method", SEVEN)
def test_gradients_stay_on_their_side(build: Callable[..., Any], method: str) -> None:
    run = build(method)
    module = run.module
    backbone = dict(module.backbone.named_parameters())
    twin_heads = {n: p for n, p in _own_twin_parameters(module).items() if p.requires_grad}
    view_heads = {
        n: p
        for n, p in module.named_parameters()
        if p.requires_grad and not n.startswith(("twin.", "backbone.", "encoder.", "classifier."))
    }
    assert twin_heads
    assert view_heads

    _twin_loss(run).backward()
    assert all(p.grad is not None for p in backbone.values())
    assert any(p.grad.abs().sum() > 0 for p in backbone.values())
    assert all(p.grad is not None for n, p in twin_heads.items() if "momentum" not in n), (
        "find_unused_parameters=False needs a gradient for every parameter"
    )
    assert all(p.grad is None for p in view_heads.values())
    assert module.classifier.weight.grad is None

    module.zero_grad(set_to_none=True)
    type(module).infoaug_plain.training_step(module, run.batch(), 0).backward()
    assert all(p.grad is None for p in twin_heads.values())
    assert all(p.grad is not None for n, p in view_heads.items() if "momentum" not in n)


@pytest.mark.parametrize("method", SEVEN)
def test_three_steps_train_both_heads(build: Callable[..., Any], method: str) -> None:
    run = build(method)
    before = copy.deepcopy(run.module.state_dict())
    losses = run.run(3)
    after = run.module.state_dict()
    assert torch.tensor(losses).isfinite().all()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    own = {name for name, p in run.module.twin.named_parameters() if p.requires_grad}
    assert {f"twin.{name}" for name in own if "momentum" not in name} <= moved | _WITHOUT_EFFECT
    assert any(name.startswith(("projector.", "predictor.")) for name in moved)
    assert "twin_loss" in run.logged
    assert any(n.startswith("twin_") and n != "twin_loss" for n in run.logged)
    assert not any(n.startswith("twin_") and ("acc" in n or "class" in n) for n in run.logged)


@pytest.mark.parametrize("method", SEVEN)
def test_state_dict_has_one_backbone(build: Callable[..., Any], method: str) -> None:
    module = build(method).module
    twin = [name for name in module.state_dict() if name.startswith("twin.")]
    assert twin
    assert not [name for name in twin if "backbone" in name or "encoder" in name]
    assert module.twin.backbone is module.backbone
    if method in MOMENTUM:
        assert module.twin.momentum_backbone is module.momentum_backbone


@pytest.mark.parametrize("method", MOMENTUM)
def test_momentum_heads_move_by_the_methods_rule(build: Callable[..., Any], method: str) -> None:
    run = build(method)
    module = run.module
    pairs = module.momentum_pairs
    assert sum(pair[1] is module.momentum_backbone for pair in pairs) == 1
    assert any(pair[1] is module.twin.momentum_projector for pair in pairs)
    old = copy.deepcopy(module.twin.momentum_projector.state_dict())
    tau = module.momentum_updater.cur_tau
    run.step(0)
    for name, parameter in module.twin.momentum_projector.named_parameters():
        online = dict(module.twin.projector.named_parameters())[name]
        torch.testing.assert_close(parameter, tau * old[name] + (1 - tau) * online)


def test_queues_are_separate(build: Callable[..., Any]) -> None:
    run = build("mocov2plus")
    run.step(0)
    module = run.module
    assert int(module.queue_ptr) == int(module.twin.queue_ptr) == 8
    assert not torch.equal(module.queue, module.twin.queue)


@pytest.mark.parametrize("method", SEVEN)
def test_twin_loss_is_the_methods_own_on_the_branchs_outputs(
    build: Callable[..., Any], host: Any, method: str
) -> None:
    run = build(method)
    module, branch = run.module, run.module.twin
    batch = module._twin_batch(0)
    _indices, (x1, x2), _ = batch
    state = copy.deepcopy(module.state_dict())
    loss = branch.training_step(batch, 0)
    module.load_state_dict(state)  # batch-norm statistics and queues as before the step

    backbone = module.backbone
    h1, h2 = backbone(x1), backbone(x2)
    z1, z2 = branch.projector(h1), branch.projector(h2)
    expected = _REFERENCE[method](module, branch, (x1, x2), (z1, z2))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


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


# A bias before a batch norm has no gradient but rounding errors.
_WITHOUT_EFFECT = {
    f"twin.{head}.{layer}.bias" for head in ("projector", "predictor") for layer in (0, 3, 6)
}

_REFERENCE = {
    "simclr": _simclr,
    "mocov2plus": _mocov2plus,
    "byol": _byol,
    "simsiam": _simsiam,
    "barlow_twins": _barlow_twins,
    "vicreg": _vicreg,
    "nnclr": _nnclr,
}


@pytest.mark.parametrize("infoaug", [None, False])
@pytest.mark.parametrize("method", SEVEN)
def test_off_is_plain_solo_learn_bit_for_bit(
    host: Any,
    make_cfg: Callable[..., Any],
    plain_method: Callable[[str, Any], Any],
    steps: Any,
    method: str,
    infoaug: bool | None,
) -> None:
    results = []
    for setting, build in (
        (None, lambda cfg: plain_method(method, cfg)),
        (infoaug, lambda cfg: host.methods[method](cfg)),
    ):
        cfg = host.parse_cfg(make_cfg(method, setting))
        torch.manual_seed(0)
        run = steps(build(cfg), cfg)
        results.append((run.run(5), run.module.state_dict(), torch.get_rng_state()))
    (losses, weights, random), (our_losses, our_weights, our_random) = results
    assert losses == our_losses
    assert weights.keys() == our_weights.keys()
    assert all(torch.equal(weights[name], our_weights[name]) for name in weights)
    assert torch.equal(random, our_random)


def test_on_starts_from_the_same_weights_and_random_state(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path
) -> None:
    states = []
    for infoaug in (None, {"twins": str(twins_folder)}):
        cfg = host.parse_cfg(make_cfg("byol", infoaug))
        torch.manual_seed(0)
        module = host.methods["byol"](cfg)
        states.append((module.state_dict(), torch.get_rng_state()))
    (plain, random), (ours, our_random) = states
    assert all(torch.equal(plain[name], ours[name]) for name in plain)
    assert torch.equal(random, our_random)


def test_weight_scales_the_twin_loss(build: Callable[..., Any], twins_folder: Path) -> None:
    losses = {}
    for weight in (0.0, 1.0, 3.0):
        run = build("simclr", {"twins": str(twins_folder), "weight": weight})
        losses[weight] = run.step(0)
        twin = run.logged["twin_loss"]
    assert losses[1.0] == pytest.approx(losses[0.0] + twin, rel=1e-5)
    assert losses[3.0] == pytest.approx(losses[0.0] + 3 * twin, rel=1e-5)


def test_batches_repeat_and_differ_by_step_and_epoch(build: Callable[..., Any]) -> None:
    first, again = build("simclr").module, build("simclr").module
    a, b, c = first._twin_batch(0), again._twin_batch(0), first._twin_batch(1)
    assert torch.equal(a[0], b[0])
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    assert not torch.equal(a[1][0], c[1][0])


def test_one_view_is_of_the_patch_and_one_of_its_twin(
    build: Callable[..., Any], twins_folder: Path
) -> None:
    module = build("simclr").module
    dictionary = TwinDictionary.load(twins_folder)
    pixels = torch.zeros_like(dictionary.pixels)
    pixels[::2] = 255  # patches are white and their twins black, or the other way
    module.twin_dictionary.crops = lambda index, moment=0: pixels[index, 0]
    indices, (first, second), _ = module._twin_batch(0)
    brightness = (first.mean((1, 2, 3)), second.mean((1, 2, 3)))
    white = indices % 2 == 0
    assert ((brightness[0] > brightness[1]) == white).all()


@pytest.mark.parametrize(
    ("infoaug", "message"),
    [
        ({"wieght": 1.0}, "infoaug.wieght.*did you mean weight"),
        ({"arm": "best"}, "infoaug.arm.*mi, random, self.*best"),
        ({"weight": -1}, "infoaug.weight.*≥ 0.*-1"),
        ({"weight": "heavy"}, "infoaug.weight"),
        ({"batch_size": 0}, "infoaug.batch_size"),
        ({"top_k": 0}, "infoaug.top_k"),
        ("yes please", "infoaug: expected true, false or a mapping"),
    ],
)
def test_bad_settings_are_named(
    host: Any, make_cfg: Callable[..., Any], infoaug: Any, message: str
) -> None:
    cfg = host.parse_cfg(make_cfg("simclr", infoaug))
    with pytest.raises(ConfigError, match=message):
        host.methods["simclr"](cfg)


def test_method_without_branch_is_refused_only_when_on(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path
) -> None:
    kwargs = {"method_kwargs.num_prototypes": [4], "method_kwargs.kmeans_iters": 1}
    kwargs["method_kwargs.temperature"] = 0.1
    cfg = host.parse_cfg(make_cfg("deepclusterv2", {"twins": str(twins_folder)}, **kwargs))
    with pytest.raises(ConfigError, match=r"deepclusterv2.*no twin branch.*simclr"):
        host.methods["deepclusterv2"](cfg)
    cfg.infoaug = False
    host.methods["deepclusterv2"](cfg)


def test_missing_dictionary_is_an_error_before_training(
    host: Any, make_cfg: Callable[..., Any], tmp_path: Path
) -> None:
    cfg = host.parse_cfg(make_cfg("simclr", {"twins": str(tmp_path / "none")}))
    with pytest.raises(DictionaryError, match=r"infoaug.twins.*solo-infoaug mine"):
        host.methods["simclr"](cfg)


def test_finished_run_is_read_without_its_dictionary(
    host: Any, make_cfg: Callable[..., Any], tmp_path: Path
) -> None:
    gone = {"twins": str(tmp_path / "gone"), "fingerprint": "0123"}
    module = host.methods["simclr"](host.parse_cfg(make_cfg("simclr", gone)))
    with pytest.raises(DictionaryError, match="gone"):
        module.on_train_start()


def test_queue_must_hold_whole_twin_batches(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path
) -> None:
    cfg = host.parse_cfg(make_cfg("mocov2plus", {"twins": str(twins_folder), "batch_size": 5}))
    with pytest.raises(ConfigError, match=r"infoaug.batch_size.*queue_size \(32\).*got 5"):
        host.methods["mocov2plus"](cfg)


def test_settings_are_written_back_for_args_json(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", str(twins_folder))
    cfg = host.parse_cfg(make_cfg("simclr", True))
    host.methods["simclr"](cfg)
    assert cfg.infoaug.fingerprint == TwinDictionary.load(twins_folder).fingerprint
    assert cfg.infoaug.twins == str(twins_folder)
    assert cfg.infoaug.batch_size == 8
    off = host.parse_cfg(make_cfg("simclr", False))
    host.methods["simclr"](off)
    assert OmegaConf.select(off, "infoaug") is None
