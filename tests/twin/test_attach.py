"""Methods that registration has given a twin branch: plain without it, whole with it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from twin_methods import KIND, METHODS

from solo_infoaug.errors import ConfigError, DictionaryError


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
    prefix = "backbone." if KIND == "current" else "encoder."
    picked = {name.replace(prefix, ""): w for name, w in state.items() if prefix[:-1] in name}
    expected = module.backbone.state_dict()
    assert picked.keys() >= expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(picked[name], weight, rtol=0, atol=0)


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


@pytest.mark.parametrize("how", COPIES)
def test_copies_keep_their_objective(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path, steps: type, how: str
) -> None:
    cfg = make_cfg("simclr", {"twins": str(twins_folder), "objective": "kl"}, fmicl="js")
    module = host.methods["simclr"](host.parse_cfg(cfg))
    losses = []
    for each in (module, COPIES[how](module)):
        run = steps(each, cfg)
        losses.append(run.step())
        assert {"train_fmicl_loss", "twin_fmicl_loss"} <= run.logged.keys()
    assert losses[0] == losses[1]


@pytest.mark.skipif(KIND == "current", reason="the current solo-learn takes cfg alone")
def test_the_releases_own_arguments_make_its_own_method(
    host: Any, make_cfg: Callable[..., Any], steps: type
) -> None:
    from solo_infoaug.host.release_config import method_arguments

    method = host.methods["simclr"]
    cfg = host.parse_cfg(make_cfg("simclr"))
    arguments = method_arguments(method.infoaug_plain.release_method, cfg)
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
    from solo_infoaug.twin.attach import extend

    own = extend("my_method", host.methods["simclr"].infoaug_plain, host)
    with pytest.raises(ConfigError, match=r"my_method.*no twin branch.*simclr.*add_method"):
        own(host.parse_cfg(make_cfg("simclr", {"twins": str(twins_folder)})))
    own(host.parse_cfg(make_cfg("simclr", False)))


def test_finished_run_is_read_without_its_dictionary(
    host: Any, make_cfg: Callable[..., Any], tmp_path: Path
) -> None:
    gone = {"twins": str(tmp_path / "gone"), "fingerprint": "0123"}
    module = host.methods["simclr"](host.parse_cfg(make_cfg("simclr", gone)))
    with pytest.raises(DictionaryError, match="gone"):
        module.on_train_start()
