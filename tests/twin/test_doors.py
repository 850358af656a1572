"""One component, three doors: registration, solo-learn's own hook, a loop of one's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from solo_infoaug import FMICLConfig, InfoAugConfig, TwinBranch
from solo_infoaug.errors import ConfigError, DictionaryError
from solo_infoaug.twin.component import twin_pipelines
from solo_infoaug.views import Pipeline, build_pipeline

STEPS = 10


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`TwinLoss`, on a solo-learn that may lack the hook; test_upstream.py has the real one."""
    plugins: Any = ModuleType("solo.utils.plugins")

    class ExtraLoss:
        def __init__(self, method: Any) -> None:
            self.method = method

    plugins.ExtraLoss, plugins.Plugin = ExtraLoss, object
    monkeypatch.setitem(sys.modules, "solo.utils.plugins", plugins)
    monkeypatch.delitem(sys.modules, "solo_infoaug.twin.hook", raising=False)
    from solo_infoaug.twin.hook import TwinLoss

    yield TwinLoss
    del sys.modules["solo_infoaug.twin.hook"]


def _through(run: Any, loss: Callable[[Any, int], Any], hooks: Any, groups: Any) -> dict[str, Any]:
    """The backbone's weights after ten steps of the method's loss and another."""
    module = run.module
    run.optimizer = torch.optim.SGD(module.learnable_params + groups, lr=0.05, momentum=0.9)
    for _ in range(STEPS):
        number = run.start()
        if number == 0:
            for name in ("on_train_start", "on_train_epoch_start")[run.done > 0 :]:
                hooks(name)
        batch = run.batch(number)
        run.optimizer.zero_grad()
        (module.training_step(batch, number) + loss(batch, number)).backward()
        run.optimizer.step()
        run.done += 1
    return {name: value.clone() for name, value in module.backbone.state_dict().items()}


def test_all_doors_train_the_same_weights(
    host: Any,
    make_cfg: Callable[..., Any],
    steps: Any,
    twins_folder: Path,
    hook: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SimCLR, with f-MICL in the twin branch, whose loss a loop can have as well; to the bit."""
    monkeypatch.setattr(TwinBranch, "one_pass", False)  # the hook has no say in the method's views

    def start(kind: str) -> tuple[Any, Any]:
        infoaug = {
            "twins": str(twins_folder),
            "objective": "js",
            "positives": "random",
            "heads": "none",  # the same as the batch norm of the loop below
        }
        layout = {"performance.disable_channel_last": True}  # another one rounds in another way
        cfg = host.parse_cfg(make_cfg("simclr", None if kind == "loop" else infoaug, **layout))
        method = host.methods["simclr"]
        torch.manual_seed(0)
        return steps((method if kind == "registered" else method.infoaug_plain)(cfg), cfg), cfg

    def nothing(*args: Any) -> int:
        return 0

    found = {}
    run, _ = start("registered")
    found["registered"] = _through(run, nothing, nothing, [])

    run, _ = start("hook")
    extra = hook(run.module)
    found["hook"] = _through(
        run, extra.loss, lambda name: getattr(extra, name)(None, None), extra.learnable_params
    )

    run, cfg = start("loop")
    module, objective = run.module, FMICLConfig("js")
    loss = objective.loss(gather=True)
    settings = InfoAugConfig(twins=str(twins_folder), batch_size=8, positives="random")
    branch = TwinBranch.around(
        module.backbone,
        lambda *features: loss.view_terms(list(features)).loss(objective.alpha),
        settings,
        twin_pipelines(host, cfg, settings),
        heads=nn.BatchNorm1d(module.features_dim, affine=False),
        seed=cfg.seed,
    )

    def loss_of(_: Any, number: int) -> torch.Tensor:
        branch.learner.epoch = run.trainer.current_epoch
        return branch.loss(number)

    found["loop"] = _through(run, loss_of, nothing, branch.parameter_groups)

    run, _ = start("loop")
    found["none"] = _through(run, nothing, nothing, [])

    for door in ("hook", "loop"):
        assert all(torch.equal(found[door][n], value) for n, value in found["registered"].items())
    different = [not torch.equal(found["none"][n], v) for n, v in found["registered"].items()]
    assert all(different)


# --- a loop of one's own ---------------------------------------------------------------------


def _network(*norms: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), *norms, nn.ReLU(), nn.Flatten(), nn.Linear(392, 6))


def _views() -> list[Pipeline]:
    entry = {"crop_size": 16, "num_crops": 2, "horizontal_flip": {"prob": 0.5}}
    return [build_pipeline(entry, [0.5] * 3, [0.25] * 3)]


def _distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).square().sum(1).mean()


def test_a_loop_trains_heads_and_backbone(twins_folder: Path) -> None:
    backbone, heads = _network(), nn.Linear(6, 4)
    settings = InfoAugConfig(twins=str(twins_folder), batch_size=8, weight=3.0)
    branch = TwinBranch.around(backbone, _distance, settings, _views(), heads=heads)
    twins, state = branch.batch(4), torch.get_rng_state()
    loss = branch.loss(4)
    x, y = (heads(backbone(view)) for view in twins.views)
    torch.testing.assert_close(loss, 3.0 * _distance(x, y))
    torch.testing.assert_close(branch.learner.logged["train_loss"], loss.detach() / 3)
    assert torch.equal(torch.get_rng_state(), state)
    loss.backward()
    assert all(p.grad is not None for p in [*backbone.parameters(), *heads.parameters()])
    (group,) = branch.parameter_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in heads.parameters()}
    # the backbone is the loop's to save and to move
    assert branch.state_dict().keys() == {"learner.heads.weight", "learner.heads.bias"}


@pytest.mark.parametrize("batch_norm", ["shared", "separate", "frozen"])
def test_a_loops_batch_norms_see_twins_as_they_were_told(
    twins_folder: Path, batch_norm: str
) -> None:
    norm = nn.BatchNorm2d(8)
    settings = InfoAugConfig(twins=str(twins_folder), batch_size=8, batch_norm=batch_norm)
    branch = TwinBranch.around(_network(norm), _distance, settings, _views())
    branch.loss(0).backward()
    assert (int(norm.num_batches_tracked) == 2) == (batch_norm == "shared")
    assert (norm.weight.grad is None) == (batch_norm == "separate")
    own = [p for group in branch.parameter_groups for p in group["params"]]
    assert len(own) == (2 if batch_norm == "separate" else 0)
    assert all(p.grad is not None for p in own)


def test_what_a_loop_cannot_have_is_named(twins_folder: Path, tmp_path: Path) -> None:
    def around(**settings: Any) -> TwinBranch:
        given = {"twins": str(twins_folder), "batch_size": 8, **settings}
        return TwinBranch.around(_network(), _distance, InfoAugConfig(**given), _views())

    with pytest.raises(ConfigError, match=r"batch_size: expected the number of pairs per step"):
        around(batch_size=None)
    with pytest.raises(ConfigError, match=r"infoaug.batch_norm: 'separate'.*Sequential has none"):
        around(batch_norm="separate")
    with pytest.raises(DictionaryError, match=r"infoaug.twins.*solo-infoaug mine"):
        around(twins=str(tmp_path / "none"))
    for key, value in (("heads", "full"), ("objective", "js"), ("augmentations", [{}])):
        with pytest.raises(ConfigError, match=rf"infoaug.{key}: .* `TwinBranch.around`"):
            around(**{key: value})


def test_an_entry_may_be_a_mapping_or_a_configuration() -> None:
    entry = {"crop_size": 16, "num_crops": 2, "rrc": {"enabled": False}}
    made = [build_pipeline(e, [0.5] * 3, [0.25] * 3) for e in (entry, OmegaConf.create(entry))]
    assert repr(made[0]) == repr(made[1])
