"""The twin branch in every method: whose gradients, whose weights, whose loss."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from augmentations import augmentation
from omegaconf import OmegaConf
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError, DictionaryError
from solo_infoaug.host import find_host
from solo_infoaug.twin import joined
from solo_infoaug.twin.batch_norm import norms_of
from solo_infoaug.twin.config import InfoAugConfig
from solo_infoaug.twin.spec import HOOKS, find_method, supported_methods
from solo_infoaug.views import pipeline

_KIND = find_host().kind
METHODS = [name for name in supported_methods() if _KIND in find_method(name).hosts]
MOMENTUM = [name for name in METHODS if find_method(name).momentum_heads]


@pytest.fixture
def build(
    host: Any, make_cfg: Callable[..., Any], steps: Any, twins_folder: Path
) -> Callable[..., Any]:
    """A registered method, InfoAug on, ready to step."""

    def make(method: str, infoaug: Any = None, **overrides: Any) -> Any:
        full = {"twins": str(twins_folder), "heads": "full"}
        settings = full if infoaug is None else infoaug
        cfg = host.parse_cfg(make_cfg(method, settings, **overrides))
        torch.manual_seed(0)
        return steps(host.methods[method](cfg), cfg)

    return make


def _twin_batch(module: Any, step: int = 0) -> list[Any]:
    return module._twin_batch(module._twin_seeds(step))[0]


def _twin_loss(run: Any, step: int = 0) -> torch.Tensor:
    module = run.module
    batch, drawn = module._twin_batch(module._twin_seeds(step))
    with module._twin_randomness(step, after=drawn), module.twin.backbone_for_twins():
        return module.twin.training_step(batch, step)


def _trained(parameters: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in parameters if p.requires_grad}


def test_every_method_of_the_host_has_a_patch(host: Any) -> None:
    assert set(METHODS) == set(host.methods) - {"base", "linear"}
    assert len(METHODS) == {"current": 19, "release": 14}[_KIND]


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
    plain = type(module).infoaug_plain.fmicl_plain
    own_class = plain if _KIND == "current" else plain.release_method
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
    twin_heads = _trained(module.twin.named_parameters())
    view_heads = {
        name: p
        for name, p in _trained(module.named_parameters()).items()
        if name.partition(".")[0] in view_names
    }
    assert twin_heads
    assert view_heads.keys() - twin_heads.keys() == {
        name for name in view_heads if name.startswith("transformer_encoder.")
    }

    _twin_loss(run).backward()
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
    own = _trained(run.module.twin.named_parameters())
    assert {f"twin.{name}" for name in own} <= moved | _WITHOUT_EFFECT
    assert any(name.startswith(find_method(method).heads) for name in moved)
    assert "twin_loss" in run.logged
    assert any(n.startswith("twin_") and n != "twin_loss" for n in run.logged)
    assert not any(n.startswith("twin_") and ("acc" in n or "class" in n) for n in run.logged)


@pytest.mark.parametrize("method", METHODS)
def test_linear_evaluation_reads_the_view_branchs_backbone(
    build: Callable[..., Any], method: str
) -> None:
    separate = {} if method == "mae" else {"infoaug.batch_norm": "separate"}
    run = build(method, **separate)
    run.run(1)
    module = run.module
    state = module.state_dict()
    twin = [name for name in state if name.startswith("twin.")]
    assert twin
    assert not [name for name in twin if "backbone" in name or "encoder" in name]
    assert module.twin.backbone is module.backbone
    if hasattr(module, "momentum_backbone"):
        assert module.twin.momentum_backbone is module.momentum_backbone
    # as solo-learn's main_linear.py picks the backbone's weights
    prefix = "backbone." if _KIND == "current" else "encoder."
    picked = {name.replace(prefix, ""): w for name, w in state.items() if prefix[:-1] in name}
    expected = module.backbone.state_dict()
    assert picked.keys() >= expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(picked[name], weight, rtol=0, atol=0)


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
    drawn = torch.cat([_twin_batch(run.module, step)[0] for step in range(3)])
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
    index, _, labels = _twin_batch(run.module)
    assert torch.equal(index, labels)
    assert len(labels.unique()) > 1


@pytest.mark.skipif("mae" not in METHODS, reason="mae is not in solo-learn 1.0.2 (release)")
def test_mae_reconstructs_the_twin(build: Callable[..., Any]) -> None:
    run = build("mae", **{"method_kwargs.norm_pix_loss": False})
    module = run.module
    _, views, _ = batch = _twin_batch(module)
    assert len(views) == 4
    torch.manual_seed(5)
    loss = module.twin.training_step(batch, 0)
    torch.manual_seed(5)
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


@pytest.mark.parametrize("method", list(_REFERENCE))
def test_twin_loss_is_the_methods_own_on_the_branchs_outputs(
    build: Callable[..., Any], host: Any, method: str
) -> None:
    run = build(method)
    module, branch = run.module, run.module.twin
    batch = _twin_batch(module)
    _indices, (x1, x2), _ = batch
    state = copy.deepcopy(module.state_dict())
    loss = branch.training_step(batch, 0)
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
    batch = _twin_batch(module)
    _indices, (x1, x2), _ = batch
    state = copy.deepcopy(module.state_dict())
    loss = branch.training_step(batch, 0)
    loss.backward()
    assert all(p.grad is not None for p in module.backbone.parameters() if p.requires_grad)
    module.load_state_dict(state)  # batch-norm statistics and queues as before the step
    z = [F.batch_norm(module.backbone(x), None, None, training=True) for x in (x1, x2)]
    expected = _REFERENCE[method](module, branch, (x1, x2), z)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_heads_are_the_methods_own_choice_and_dino_needs_its_own(
    build: Callable[..., Any], twins_folder: Path
) -> None:
    default = {"twins": str(twins_folder)}
    kept = {name: build(name, default).module.infoaug.heads for name in ("byol", "swav")}
    assert kept == {"byol": "none", "swav": "full"}
    with pytest.raises(ConfigError, match=r"infoaug\.heads: expected full for DINO"):
        build("dino", {**default, "heads": "none"})


@pytest.mark.parametrize("infoaug", [None, False])
@pytest.mark.parametrize("method", METHODS)
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
    np.testing.assert_array_equal(losses, our_losses)  # NaN in DeepCluster V2's first epoch
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
        losses[weight] = run.step()
        twin = run.logged["twin_loss"]
    assert losses[1.0] == pytest.approx(losses[0.0] + twin, rel=1e-5)
    assert losses[3.0] == pytest.approx(losses[0.0] + 3 * twin, rel=1e-5)


def test_batches_repeat_and_differ_by_step_and_epoch(build: Callable[..., Any]) -> None:
    first, again = build("simclr").module, build("simclr").module
    a, b, c = _twin_batch(first), _twin_batch(again), _twin_batch(first, 1)
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
    indices, (first, second), _ = _twin_batch(module)
    brightness = (first.mean((1, 2, 3)), second.mean((1, 2, 3)))
    white = indices % 2 == 0
    assert ((brightness[0] > brightness[1]) == white).all()


@pytest.mark.parametrize(
    ("infoaug", "message"),
    [
        ({"wieght": 1.0}, "infoaug.wieght.*did you mean weight"),
        ({"arm": "best"}, "infoaug.arm.*mi, random, random_anchor, self.*best"),
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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"arm": "best"}, "infoaug.arm"),
        ({"weight": "heavy"}, "infoaug.weight"),
        ({"weight": float("nan")}, "infoaug.weight"),
        ({"batch_size": 2.5}, "infoaug.batch_size"),
        ({"top_k": True}, "infoaug.top_k"),
        ({"temporal": "yes"}, "infoaug.temporal"),
        ({"temporal": 0}, "infoaug.temporal: expected true, false or a number of seconds > 0"),
        ({"others": 1}, r"infoaug.others: expected a number in \[0, 1\), got 1"),
        ({"twins": 3}, "infoaug.twins"),
        ({"augmentations": []}, "infoaug.augmentations"),
        ({"objective": "jensen"}, "infoaug.objective"),
    ],
)
def test_settings_are_checked_where_they_are_made(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InfoAugConfig(**setting)


@pytest.mark.parametrize(
    ("infoaug", "error", "message"),
    [
        ({"top_k": 2}, ConfigError, "infoaug.top_k: expected at most 1"),
        ({"temporal": True}, ConfigError, "infoaug.temporal: .* one moment"),
        ({"temporal": 2}, ConfigError, "infoaug.temporal: no patch .* is linked .* got 2 seconds"),
        ({"others": 0.5}, ConfigError, "infoaug.others: .* no patch without a twin"),
        ({}, DictionaryError, "no patch in .* has a twin"),
    ],
)
def test_what_the_dictionary_cannot_give_is_refused(
    host: Any,
    make_cfg: Callable[..., Any],
    tmp_path: Path,
    infoaug: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    pixels = torch.zeros(4, 1, 3, 16, 16, dtype=torch.uint8)
    twins = torch.tensor([[1], [0], [3], [2]]) if infoaug else torch.full((4, 1), -1)
    TwinDictionary.create(tmp_path / "twins", pixels, twins, torch.ones(4, 1))
    cfg = host.parse_cfg(make_cfg("simclr", {"twins": str(tmp_path / "twins"), **infoaug}))
    with pytest.raises(error, match=message):
        host.methods["simclr"](cfg)


def test_risks_are_said_once_each(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path, steps: type
) -> None:
    def warned(method: str, **overrides: Any) -> list[str]:
        twins = {"twins": str(twins_folder), "batch_size": overrides.pop("pairs", 8)}
        cfg = make_cfg(method, twins, **overrides)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steps(host.methods[method](host.parse_cfg(cfg)), cfg).start()
        return [str(w.message).partition(":")[0] for w in caught if "infoaug" in str(w.message)]

    assert warned("simclr") == []
    assert warned("simclr", pairs=32) == ["infoaug.batch_size"]
    assert warned("simclr", **{"augmentations.0.crop_size": 64}) == ["infoaug.twins"]


def test_queue_longer_than_the_dictionary_is_said(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path, steps: type
) -> None:
    cfg = make_cfg("mocov2plus", {"twins": str(twins_folder)})
    run = steps(host.methods["mocov2plus"](host.parse_cfg(cfg)), cfg)
    with pytest.warns(UserWarning, match=r"queue of 32 and 8 pairs a step, but 24 patches"):
        run.start()


def test_configuration_says_which_dictionary_by_what_rule(
    host: Any,
    make_cfg: Callable[..., Any],
    twins_folder: Path,
    steps: type,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", str(twins_folder))
    cfg = host.parse_cfg(make_cfg("simclr", True))
    steps(host.methods["simclr"](cfg), cfg).start()
    assert cfg.infoaug.chosen_by == "SOLO_INFOAUG_TWINS"
    assert cfg.infoaug.videos == ["patches"]
    assert cfg.infoaug.written in (said := capsys.readouterr().out)
    assert f"24 patches with a twin in {twins_folder} (SOLO_INFOAUG_TWINS; written" in said
    # a saved configuration is read again, and still says it
    again = host.methods["simclr"](cfg)
    assert again.infoaug.chosen_by == "SOLO_INFOAUG_TWINS"


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "pickle 2": lambda module: pickle.loads(pickle.dumps(module, 2)),  # as torch.save does
}


# They hold the product of a weight normalisation, which torch does not copy, plain or not.
_NOT_DEEPCOPIED = ("dino", "swav")


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("method", METHODS)
def test_copies_are_whole_and_their_own(
    host: Any,
    make_cfg: Callable[..., Any],
    plain_method: Callable[..., Any],
    twins_folder: Path,
    steps: type,
    method: str,
    how: str,
) -> None:
    if how == "deepcopy" and method in _NOT_DEEPCOPIED:
        with pytest.raises(RuntimeError, match="deepcopy"):
            copy.deepcopy(plain_method(method, host.parse_cfg(make_cfg(method))))
        return
    cfg = make_cfg(method, {"twins": str(twins_folder)})
    module = host.methods[method](host.parse_cfg(cfg))
    copied = COPIES[how](module)
    assert type(copied) is type(module)
    assert copied.twin.view_branch is copied
    assert copied.twin.backbone is copied.backbone
    assert copied.backbone is not module.backbone
    ours, theirs = module.state_dict(), copied.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = []
    for each in (module, copied):
        torch.manual_seed(0)
        losses.append(steps(each, cfg).step())
    first, second = losses
    assert first == second or (first != first and second != second)  # DeepCluster's is NaN


@pytest.mark.skipif(_KIND == "current", reason="the current solo-learn takes cfg alone")
def test_the_releases_own_arguments_make_its_own_method(
    host: Any, make_cfg: Callable[..., Any], steps: type
) -> None:
    from solo_infoaug.host.release import method_arguments

    method = host.methods["simclr"]
    cfg = host.parse_cfg(make_cfg("simclr"))
    arguments = method_arguments(method.infoaug_plain.fmicl_plain.release_method, cfg)
    losses = []
    for given in ({"cfg": cfg}, arguments):
        torch.manual_seed(0)
        module = method(**given)
        assert (module.infoaug, module.fmicl) == (None, None)
        losses.append(steps(module, cfg).run(2))
    assert losses[0] == losses[1]


def test_method_without_patch_is_refused_only_when_on(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path
) -> None:
    from solo_infoaug.twin.branch import extend

    own = extend("my_method", host.methods["simclr"].infoaug_plain, host)
    with pytest.raises(ConfigError, match=r"my_method.*no twin branch.*simclr.*add_method"):
        own(host.parse_cfg(make_cfg("simclr", {"twins": str(twins_folder)})))
    own(host.parse_cfg(make_cfg("simclr", False)))


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


# --- batch norm ------------------------------------------------------------------------------


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
    _twin_loss(run).backward()
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
    own = _trained(twin.norms.named_parameters()) if twin.norms is not None else {}
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


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each convolution is given while gradients are recorded."""
    seen: list[int] = []
    forward = torch.nn.Conv2d.forward

    def watched(layer: Any, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append(len(images))
        return forward(layer, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched)
    return seen


def _check_both_ways(run: Any, rounding: float = 1e-6) -> None:
    """Views together give what each alone does: what is logged, gradients, and the state."""
    module, number, batch = run.module, run.start(), run.batch()
    state, results = copy.deepcopy(module.state_dict()), []
    for module.one_pass in (True, False):
        module.load_state_dict(state)
        module.zero_grad(set_to_none=True)
        module.training_step(batch, number).backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        results.append((dict(run.logged), gradients, copy.deepcopy(module.state_dict())))
        assert not any("forward" in vars(layer) for layer in module.modules())
    one, each = results
    assert one[1].keys() == each[1].keys()
    for name, gradient in each[1].items():
        assert (one[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name
    torch.testing.assert_close(one[::2], each[::2], rtol=1e-4, atol=rounding)


def _alone(monkeypatch: pytest.MonkeyPatch, channels: tuple[int, ...]) -> None:
    """Let views pass one by one the stages that begin with these numbers of channels."""

    def largest(stage: Any, images: Any) -> float:
        first = stage[0] if len(stage) > 1 else stage[0][0].conv1
        return float("inf") if first.in_channels in channels else 0

    monkeypatch.setattr(joined, "_largest", largest)


# the tests' ResNet-18 has 21 convolutions, 1 in its stem and 5 in its first layer
@pytest.mark.parametrize(("alone", "together"), [((), 21), ((3,), 20), ((3, 64), 15)])
@pytest.mark.parametrize("batch_norm", ["shared", "separate", "frozen"])
@pytest.mark.parametrize("method", ["byol", "simclr"])
def test_views_in_one_pass_are_those_of_a_pass_each(
    build: Callable[..., Any],
    twins_folder: Path,
    method: str,
    batch_norm: str,
    alone: tuple[int, ...],
    together: int,
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever layers they pass together; there are 8 images and 4 pairs."""
    _alone(monkeypatch, alone)
    run = build(method, {"twins": str(twins_folder), "batch_norm": batch_norm, "batch_size": 4})
    _check_both_ways(run)
    assert Counter(passes) == Counter([24] * together + [8, 8, 4, 4] * (42 - together))


def test_views_pass_layers_together_whose_weights_outweigh_activations(
    build: Callable[..., Any], passes: list[int]
) -> None:
    """32 images of 64 channels and 8 × 8 pixels have 512 KiB, the stem's weights 37."""
    run = build("simclr")
    run.module.training_step(run.batch(), run.start())
    assert passes == [8] * 4 + [32] * 20
    # somebody may have taken a layer's place
    assert joined._largest([torch.nn.Identity()], [torch.zeros(2, 3, 5, 5)] * 4) == 8 * 75 * 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch_norm", ["shared", "separate", "frozen"])
@pytest.mark.parametrize("method", ["byol", "simclr", "mocov2plus"])
def test_views_side_by_side_are_those_of_a_pass_each(
    build: Callable[..., Any],
    twins_folder: Path,
    method: str,
    batch_norm: str,
    layout: torch.memory_format,
    passes: list[int],
) -> None:
    """What a card does, where views of one size share a batch norm; twice, as counts go on."""
    run = build(method, {"twins": str(twins_folder), "batch_norm": batch_norm, "batch_size": 8})
    run.module.to(memory_format=layout)
    run.module.few_operations = True
    _check_both_ways(run, rounding=1e-5)  # convolutions of another layout round in another way
    if batch_norm != "frozen":
        assert Counter(passes) == Counter([32] * 21 + [8] * 84)


def test_side_by_side_takes_the_operations_of_the_plain_method(
    build: Callable[..., Any], twins_folder: Path
) -> None:
    """Beside the plain method with twice the images, and half of a pass for each view."""
    counts = []
    for infoaug, batch, one_pass in ((None, 16, None), (True, 8, True), (True, 8, False)):
        run = build("simclr", {"twins": str(twins_folder), "batch_size": 8} if infoaug else None)
        module = run.module
        module.one_pass, module.few_operations = one_pass, True
        given = run.batch()
        views = [torch.cat([view, view])[:batch] for view in given[1]]
        given = [torch.cat([given[0]] * 2)[:batch], views, torch.cat([given[2]] * 2)[:batch]]
        number = run.start()
        if infoaug:
            twins = module._twin_batch(module._twin_seeds(number))
            module._twin_batch = lambda _, twins=twins: twins
        module.training_step(given, number).backward()
        module.zero_grad()
        with _Operations() as seen:
            module.training_step(given, number).backward()
        counts.append(seen.number)
    plain, together, each = counts
    assert together <= 1.25 * plain
    assert together <= 0.65 * each


class _Operations(TorchDispatchMode):
    """How many are asked for that are more than another view of the same memory."""

    _VIEWS = ("view", "_unsafe_view", "t", "transpose", "expand", "split", "split_with_sizes",
              "unbind", "select", "slice", "detach", "unsqueeze", "squeeze", "permute", "alias",
              "as_strided")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.number += function.overloadpacket.__name__ not in self._VIEWS
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(_KIND == "release", reason="solo-learn 1.0.2's SwAV takes two crops")
def test_crops_of_a_size_pass_together(
    build: Callable[..., Any], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _alone(monkeypatch, ())
    views = [augmentation(), augmentation(crop_size=8, num_crops=4)]
    run = build("swav", augmentations=views)
    _check_both_ways(run)
    assert passes[:84] == ([2 * 8] * 21 + [4 * 8] * 21) * 2  # running statistics keep their order


@pytest.mark.parametrize("strange", ["hook", "another", "changed", "twice"])
def test_what_must_pass_alone_does(
    build: Callable[..., Any], passes: list[int], strange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks see views as they are given; another backbone may draw random numbers.

    A method may give its backbone something else than the loader's views, or a view again.
    """
    _alone(monkeypatch, ())
    run = build("simclr")
    module = run.module
    given: list[int] = []
    step = module._base_shared_step

    def other(images: torch.Tensor, *args: Any) -> Any:
        if strange == "changed":
            return step(images + 0, *args)
        step(images, *args)
        return step(images, *args)

    if strange == "hook":
        layer = module.backbone.layer4
        layer.register_forward_hook(lambda _, images, __: given.append(len(images[0])))
    elif strange == "another":

        class Dropping(type(module.backbone)):  # type: ignore[misc]
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return F.dropout(super().forward(images), 0.5)

        module.backbone.__class__ = Dropping
    else:
        monkeypatch.setattr(module, "_base_shared_step", other)
    module.training_step(run.batch(), run.start())
    expected = {
        "hook": [8] * 84,
        "another": [8] * 84,
        "changed": [8] * 42 + [16] * 21,
        "twice": [32] * 21 + [8] * 42,
    }
    assert passes == expected[strange]
    assert given == ([8] * 4 if strange == "hook" else [])


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


@pytest.mark.skipif("mae" not in METHODS, reason="no ViT in solo-learn 1.0.2's tests")
@pytest.mark.parametrize("batch_norm", ["separate", "frozen"])
def test_backbone_without_batch_norm_is_named(
    build: Callable[..., Any], twins_folder: Path, batch_norm: str
) -> None:
    with pytest.raises(ConfigError, match=r"infoaug.batch_norm.*vit_tiny has none; use shared"):
        build("mae", {"twins": str(twins_folder), "batch_norm": batch_norm})


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


@pytest.fixture
def compiler() -> Iterator[None]:
    """As if nothing had been compiled, afterwards too: then views pass the backbone together."""
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


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
    module.prefetch_twins, module.one_pass = prefetched, together
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
    module._prefetch.clear()
    assert len(pieces) == 2 + prefetched
    # the second step's piece was sent by another thread, which this does not see
    assert moved == ["to"] * (1 if prefetched else 2)
    assert all(p.grad is not None for p in _trained(module.twin.named_parameters()).values())
