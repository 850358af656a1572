"""Pretraining that begins with weights there are already."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import DictConfig
from safetensors.torch import save_file

from solo_infoaug.errors import ConfigError
from solo_infoaug.training import pretrain
from solo_infoaug.training.start import begin_with

# The narrow ResNet-18 of the tests, as timm makes it.
NARROW = {"channels": (8, 16, 32, 64)}


@pytest.fixture(scope="module")
def strong() -> dict[str, torch.Tensor]:
    """Weights of a model of timm, with its classifier; running statistics are not those of a new
    one."""
    torch.manual_seed(11)
    model = timm.create_model("resnet18", num_classes=5, **NARROW)
    model.train()(torch.randn(8, 3, 32, 32))
    return model.state_dict()


def _is_strong(backbone: Any, strong: dict[str, torch.Tensor], but: str = "no name") -> bool:
    own = backbone.state_dict()
    assert len(own) > 100
    same = {name: torch.equal(tensor, strong[name]) for name, tensor in own.items()}
    return all(good for name, good in same.items() if name != but)


@pytest.fixture
def build(host: Any, make_cfg: Callable[..., DictConfig], twins_folder: Path) -> Any:
    def make(method: str, infoaug: dict[str, Any] | None = None) -> Any:
        settings = None if infoaug is None else {"twins": str(twins_folder), **infoaug}
        cfg = host.parse_cfg(make_cfg(method, settings))
        torch.manual_seed(0)
        return host.methods[method](cfg)

    return make


def _written(folder: Path, kind: str, strong: dict[str, torch.Tensor]) -> Path:
    path = folder / f"{kind}.ckpt"
    if kind == "safetensors":
        save_file(strong, path := folder / "weights.safetensors")
    elif kind == "plain":
        torch.save(strong, path)
    elif kind == "parallel":
        torch.save({"epoch": 3, "model": {f"module.{n}": t for n, t in strong.items()}}, path)
    else:
        own = {f"{kind}.{name}": tensor for name, tensor in strong.items()}
        others = {
            f"momentum_{kind}.conv1.weight": torch.zeros(3),
            "projector.0.bias": torch.ones(4),
        }
        saved: dict[str, Any] = {"state_dict": others | own, "lr_schedulers": [os.getcwd]}
        torch.save(saved, path)
    return path


@pytest.mark.parametrize("kind", ["plain", "parallel", "backbone", "encoder", "safetensors"])
@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_the_backbone_alone_begins_with_a_file(
    build: Any, strong: dict[str, torch.Tensor], tmp_path: Path, kind: str, method: str
) -> None:
    model = build(method, {})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = begin_with(model, str(_written(tmp_path, kind, strong)))
    assert found.told == "126 tensors of the backbone; unexpected: fc.bias, fc.weight"
    assert _is_strong(model.backbone, strong)
    assert model.twin.view_branch.backbone is model.backbone
    shared = {id(tensor) for tensor in model.backbone.state_dict(keep_vars=True).values()}
    if method == "byol":
        assert _is_strong(model.momentum_backbone, strong)
        shared |= {id(t) for t in model.momentum_backbone.state_dict(keep_vars=True).values()}
    others = [n for n, t in model.state_dict(keep_vars=True).items() if id(t) not in shared]
    assert len(others) > 5
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in others)


def test_batch_norms_of_the_twins_begin_alike(
    build: Any, strong: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    model = build("byol", {"batch_norm": "separate"})
    begin_with(model, str(_written(tmp_path, "plain", strong)))
    assert _is_strong(model.backbone, strong)
    for norms in (model.twin.norms, model.twin.momentum_norms):
        assert torch.equal(norms[0].running_mean, strong["bn1.running_mean"])
        assert norms[0].running_mean is not model.backbone.bn1.running_mean
        last = norms[-1].running_var
        assert torch.equal(last, strong["layer4.1.bn2.running_var"])


def test_what_does_not_fit_is_named(
    build: Any, strong: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """As the first layer of a ResNet for CIFAR, in weights of one for ImageNet."""
    changed = {name: tensor for name, tensor in strong.items() if not name.startswith("layer4.1")}
    changed["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(changed, tmp_path / "changed.pth")
    model = build("simclr")
    first = model.backbone.conv1.weight.clone()
    assert begin_with(model, str(tmp_path / "changed.pth")).told == (
        "113 tensors of the backbone; missing: layer4.1.conv1.weight, layer4.1.bn1.weight, "
        "layer4.1.bn1.bias, layer4.1.bn1.running_mean and 6 more; unexpected: fc.bias, fc.weight; "
        "of another shape: conv1.weight [64, 3, 3, 3] for [64, 3, 7, 7]"
    )
    assert torch.equal(model.backbone.conv1.weight, first)
    assert torch.equal(model.backbone.bn1.running_var, strong["bn1.running_var"])


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_files_that_cannot_be_used(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = build("simclr")
    torch.save({"head.weight": torch.ones(3)}, "other.ckpt")
    torch.save([1, 2], "list.ckpt")
    torch.save({"state_dict": {"backbone.conv1.weight": _Bomb()}}, "bomb.ckpt")
    Path("text.ckpt").write_text("no checkpoint")
    Path("pickle.ckpt").write_bytes(pickle.dumps(_Bomb()))
    Path("bad.safetensors").write_text("no weights")
    for name, message in (
        ("other.ckpt", r"nothing in other.ckpt fits the backbone \(0 tensors .* conv1.weight"),
        ("bomb.ckpt", "nothing in bomb.ckpt fits"),
        ("list.ckpt", "list.ckpt holds no weights by name, but a list"),
        ("text.ckpt", "text.ckpt cannot be read as a checkpoint"),
        ("pickle.ckpt", "init: pickle.ckpt "),
        ("bad.safetensors", "bad.safetensors cannot be read"),
        ("none.ckpt", "got none.ckpt, which is not a file"),
    ):
        with pytest.raises(ConfigError, match=message) as found:
            begin_with(model, name)
        assert str(found.value).startswith("init: ")
        assert "\n" not in str(found.value)
    assert not Path("exploded").exists()


def test_a_model_of_timm(
    build: Any, strong: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights come from a file here, by timm's own way of loading what it has downloaded."""
    real = timm.create_model
    path = tmp_path / "downloaded.safetensors"
    # 1000 classes, as timm's configuration of this model says
    whole = {**strong, "fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}
    save_file(whole, path)

    def downloaded(name: str, **options: Any) -> Any:
        assert options["pretrained"]
        overlay = {"file": str(path), "num_classes": 1000}
        return real(name, pretrained_cfg_overlay=overlay, **options, **NARROW)

    monkeypatch.setattr(timm, "create_model", downloaded)
    model = build("byol")
    assert begin_with(model, "timm:resnet18").told == "126 tensors of the backbone"
    assert _is_strong(model.backbone, strong)
    assert _is_strong(model.momentum_backbone, strong)


def test_a_model_that_timm_cannot_give(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("simclr")
    with pytest.raises(ConfigError, match=r"^init: timm has no model 'resnet19'; it has resnet"):
        begin_with(model, "timm:resnet19")

    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to\nthe hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ConfigError,
        match=r"^init: the weights of timm:resnet18 could not be downloaded \(We couldn't connect "
        r"to the hub\); try again with a network, or name a file that holds them$",
    ):
        begin_with(model, "timm:resnet18")


def test_pretraining_begins_with_it(
    make_cfg: Callable[..., DictConfig],
    strong: dict[str, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At a learning rate of zero the weights at the end are those of the beginning."""
    path = _written(tmp_path, "plain", strong)
    settings = {"optimizer.lr": 0.0, "max_epochs": 1, "logger": "none"}
    trained = pretrain(make_cfg("simclr", init=str(path), **settings))
    own = dict(trained.model.backbone.named_parameters())
    assert all(torch.equal(tensor, strong[name]) for name, tensor in own.items())
    told = f"Beginning with {path}: 126 tensors of the backbone; unexpected: fc.bias, fc.weight"
    assert told in capsys.readouterr().out
    for wrong, message in (
        (3, "init: expected a checkpoint or timm:NAME, got 3"),
        ("timm:", "init: expected a checkpoint or timm:NAME, got 'timm:'"),
        ("none.ckpt", "got none.ckpt, which is not a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            pretrain(make_cfg("simclr", init=wrong, **settings))


def test_a_run_goes_on_from_its_own_checkpoint_alone(
    make_cfg: Callable[..., DictConfig], strong: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Not from one that began with other weights; and what goes on is not begun again."""
    path = _written(tmp_path, "plain", strong)
    settings = {"max_epochs": 1, "logger": "none"}
    settings |= {"auto_resume.enabled": True, "auto_resume.max_hours": 100}
    plain = pretrain(make_cfg("simclr", **settings))
    begun = pretrain(make_cfg("simclr", init=str(path), **settings))
    assert begun.checkpoint != plain.checkpoint
    again = pretrain(make_cfg("simclr", init=str(path), **settings))
    assert again.checkpoint == begun.checkpoint
    ours, theirs = (dict(one.model.backbone.named_parameters()) for one in (again, begun))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
