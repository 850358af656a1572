"""`fmicl:` in configurations of solo-learn's methods, on whichever host is here.

The embedded release is the host unless SOLO_LEARN_HOME names a clone of the current solo-learn;
then these tests run on that one, and once more, in a process of their own, on the release.
"""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.host import Host
from solo_infoaug.objectives import DIVERGENCES, fmicl_loss
from solo_infoaug.twin.attach import InfoAugMethod
from solo_infoaug.twin.spec import fmicl_methods

BATCH, SIDE, QUEUE = 8, 8, 32

pytestmark = pytest.mark.filterwarnings("ignore")


def configuration(method: str, **extra: Any) -> Any:
    """As the current solo-learn's `parse_cfg` would leave it."""
    off = {"prob": 0.0}
    views = {
        "rrc": {"enabled": True, "crop_min_scale": 0.5, "crop_max_scale": 1.0},
        "color_jitter": off,
        "grayscale": off,
        "gaussian_blur": off,
        "solarization": off,
        "equalization": off,
        "horizontal_flip": {"prob": 0.5},
        "crop_size": SIDE,
        "num_crops": 2,
    }
    return OmegaConf.create(
        {
            "name": method,
            "method": method,
            "backbone": {"name": "resnet18", "kwargs": {}},
            "method_kwargs": {
                "proj_hidden_dim": 16,
                "proj_output_dim": 12,
                "pred_hidden_dim": 16,
                "temperature": 0.2,
                "queue_size": QUEUE,
            },
            "momentum": {"base_tau": 0.9, "final_tau": 1.0},
            "data": {
                "dataset": "custom",
                "num_classes": 10,
                "num_large_crops": 2,
                "num_small_crops": 0,
            },
            "augmentations": [views],
            "optimizer": {
                "name": "sgd",
                "batch_size": BATCH,
                "lr": 0.01,
                "classifier_lr": 0.1,
                "weight_decay": 1e-4,
                "kwargs": {"momentum": 0.9},
            },
            "scheduler": {"name": "none"},
            "max_epochs": 1,
            "accumulate_grad_batches": 1,
            "seed": 0,
            **extra,
        }
    )


def build(host: Host, cfg: Any, kind: type | None = None) -> Any:
    """A method over a tiny backbone, the same weights each time."""
    if cfg.method not in host.methods:
        pytest.skip(f"{cfg.method} is not in solo-learn {host.info.version} ({host.info.kind})")
    seed_everything(0, verbose=False)
    model: Any = (kind or host.methods[cfg.method])(cfg)
    for name in ("backbone", "encoder", "momentum_backbone", "momentum_encoder"):
        if name in model._modules:
            seed_everything(1, verbose=False)
            tiny = nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1),
                nn.BatchNorm2d(8),
                nn.Flatten(),
                nn.Linear(128, model.features_dim),
            )
            setattr(model, name, tiny.requires_grad_("momentum" not in name))
    return model.train()


def batch(seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    views = [images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(2)]
    return [torch.arange(BATCH), views, torch.randint(0, 10, (BATCH,), generator=generator)]


def trainer(steps: int = 3) -> Trainer:
    return Trainer(
        max_epochs=1,
        limit_train_batches=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(model: Any, steps: int = 3) -> dict[str, float]:
    """Train; the metrics that were logged."""
    run = trainer(steps)
    seed_everything(2, verbose=False)
    run.fit(model, DataLoader([batch(seed) for seed in range(steps)], batch_size=None))
    return {name: float(value) for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("method", fmicl_methods())
def test_trains(host: Host, method: str, divergence: str) -> None:
    model = build(host, configuration(method, fmicl=divergence))
    before = copy.deepcopy(model.state_dict())
    metrics = fit(model)
    for name in ("fmicl_loss", "fmicl_positive", "fmicl_negative", "alignment", "uniformity"):
        assert torch.tensor(metrics[f"train_{name}"]).isfinite(), name
    assert metrics["train_fmicl_loss"] == pytest.approx(
        40 * metrics["train_fmicl_negative"] - metrics["train_fmicl_positive"], rel=1e-4
    )
    assert not {"train_nce_loss", "train_contrastive_loss"} & set(metrics)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all()
        if name.endswith("weight") and "momentum" not in name:
            assert not torch.equal(parameter, before[name]), f"{name} was not trained"


def features_by_hand(
    model: Any, views: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Backbone features, and the queries and keys of the method's own definition."""
    feats = [model.backbone(x) for x in views]
    z = [model.projector(f) for f in feats]
    if not hasattr(model, "momentum_pairs"):
        return feats, z, []
    with torch.no_grad():
        keys = [model.momentum_projector(model.momentum_backbone(x)) for x in views]
    return feats, [model.predictor(p) for p in z] if hasattr(model, "predictor") else z, keys


@pytest.mark.parametrize("method", fmicl_methods())
def test_loss_is_that_of_the_methods_own_features(host: Host, method: str) -> None:
    settings = {"divergence": "js", "alpha": 3.0, "sigma": 0.6}
    model = build(host, configuration(method, fmicl=settings))
    twin = copy.deepcopy(model)
    _, views, labels = batch()
    loss = model.training_step(batch(), 0)

    feats, queries, keys = features_by_hand(twin, views)
    a, b = queries
    sides = {
        "simclr": lambda: [fmicl_loss(a, b, **settings), fmicl_loss(b, a, **settings)],
        "mocov2plus": lambda: [
            fmicl_loss(a, keys[1], **settings, queue=twin.queue[1].T),
            fmicl_loss(b, keys[0], **settings, queue=twin.queue[0].T),
        ],
        "mocov3": lambda: [
            fmicl_loss(a, keys[1], **settings, negatives="keys"),
            fmicl_loss(b, keys[0], **settings, negatives="keys"),
        ],
    }[method]()
    class_loss = sum(F.cross_entropy(twin.classifier(f.detach()), labels) for f in feats) / 2
    torch.testing.assert_close(loss, sum(sides) / 2 + class_loss)


def test_queue_takes_the_keys_in(host: Host) -> None:
    model = build(host, configuration("mocov2plus", fmicl="js"))
    twin = copy.deepcopy(model)
    _, _, keys = features_by_hand(twin, batch()[1])
    model.training_step(batch(), 0)
    for view in range(2):
        torch.testing.assert_close(model.queue[view, :, :BATCH], F.normalize(keys[view], dim=1).T)
        assert torch.equal(model.queue[view, :, BATCH:], twin.queue[view, :, BATCH:])
    assert int(model.queue_ptr) == BATCH


@pytest.mark.parametrize("method", fmicl_methods())
@pytest.mark.parametrize("off", [{}, {"fmicl": None}, {"fmicl": False}], ids=str)
def test_off_is_plain_solo_learn_bit_for_bit(host: Host, method: str, off: dict[str, Any]) -> None:
    model = build(host, configuration(method, **off))
    plain_kind = type(model).infoaug_plain
    assert not issubclass(plain_kind, InfoAugMethod)
    plain = build(host, configuration(method), plain_kind)
    assert fit(model) == fit(plain)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "fmicl" not in model.cfg


def test_other_methods_are_refused_by_name(host: Host) -> None:
    for method in ("byol", "simsiam", "barlow_twins"):
        with pytest.raises(ConfigError, match=rf"fmicl: .*'{method}' .*mocov2plus, mocov3, simclr"):
            build(host, configuration(method, fmicl="js"))


def test_errors_before_anything_is_built(host: Host) -> None:
    with pytest.raises(ConfigError, match=r"fmicl.alhpa: unknown key"):
        build(host, configuration("simclr", fmicl={"alhpa": 3}))
    with pytest.raises(ConfigError, match=r"fmicl: expected .*, got \?\?\?"):
        build(host, configuration("simclr", fmicl="???"))
    with pytest.raises(ConfigError, match=r"fmicl.divergence: 'neyman' .* refused"):
        build(host, configuration("simclr", fmicl="neyman"))


def test_supervised_simclr_of_the_release_is_refused(host: Host) -> None:
    cfg = configuration("simclr", fmicl="js")
    cfg.method_kwargs.supervised = True
    if host.info.kind == "current":
        pytest.skip("the current solo-learn's simclr has no `supervised`")
    with pytest.raises(ConfigError, match=r"method_kwargs.supervised: expected False"):
        build(host, cfg)


def test_auto_resume_sees_the_objective_in_full(host: Host) -> None:
    model = build(host, configuration("simclr", fmicl="tsallis"))
    assert {"fmicl", "infoaug.objective"} <= set(host.should_match)
    assert model.cfg.fmicl == model.fmicl.asdict()
    assert model.cfg.fmicl.alpha == 40


@pytest.mark.parametrize(("saved", "resumed"), [("js", None), (None, "js"), ("js", "kl")])
def test_resuming_with_another_objective_is_an_error(
    host: Host, tmp_path: Path, saved: str | None, resumed: str | None
) -> None:
    first = build(host, configuration("simclr", fmicl=saved))
    run = trainer(1)
    loader: Any = DataLoader([batch()], batch_size=None)
    known = "weights_only" in inspect.signature(Trainer.fit).parameters
    options: Any = {"weights_only": False} if known else {}
    run.fit(first, loader)
    run.save_checkpoint(tmp_path / "last.ckpt")
    second = build(host, configuration("simclr", fmicl=resumed))
    with pytest.raises(ConfigError, match=r"^fmicl: the checkpoint to resume was trained with"):
        trainer(1).fit(second, loader, ckpt_path=tmp_path / "last.ckpt", **options)


# ---- the twin branch ----


@pytest.fixture
def twins(tmp_path: Path) -> str:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 1, 3, 12, 12), generator=generator, dtype=torch.uint8)
    partner = torch.arange(16).view(8, 2).flip(1).reshape(16, 1)
    mi = torch.ones(16, 1)
    return str(
        TwinDictionary.create(tmp_path / "twins", pixels, partner, mi, windows=[0] * 16).path
    )


@pytest.mark.parametrize(
    ("fmicl", "objective", "view_term", "twin_term"),
    [
        ("js", None, "train_fmicl_loss", "twin_fmicl_loss"),
        (None, "js", "train_nce_loss", "twin_fmicl_loss"),
        ("js", False, "train_fmicl_loss", "twin_nce_loss"),
        (None, None, "train_nce_loss", "twin_nce_loss"),
    ],
)
@pytest.mark.parametrize("method", ["simclr", "mocov2plus"])
def test_twin_branch(
    host: Host,
    twins: str,
    method: str,
    fmicl: Any,
    objective: Any,
    view_term: str,
    twin_term: str,
) -> None:
    infoaug = {"twins": twins, "objective": objective}
    model = build(host, configuration(method, fmicl=fmicl, infoaug=infoaug))
    metrics = fit(model)
    terms = {f"{branch}_{term}_loss" for branch in ("train", "twin") for term in ("nce", "fmicl")}
    assert terms & set(metrics) == {view_term, twin_term}
    assert ("twin_alignment" in metrics) == (twin_term == "twin_fmicl_loss")


def test_twin_branch_may_have_another_divergence(host: Host, twins: str) -> None:
    infoaug = {"twins": twins, "objective": {"divergence": "pearson", "alpha": 2}}
    model = build(host, configuration("simclr", fmicl="js", infoaug=infoaug))
    assert model.fmicl.divergence == "js"
    assert (model.twin.fmicl.divergence, model.twin.fmicl.alpha) == ("pearson", 2)
    assert model.cfg.infoaug.objective == model.twin.fmicl.asdict()


def test_objective_errors_name_their_key(host: Host, twins: str) -> None:
    with pytest.raises(ConfigError, match=r"infoaug.objective.divergence: expected one of kl"):
        build(host, configuration("simclr", infoaug={"twins": twins, "objective": "jss"}))
    with pytest.raises(ConfigError, match=r"infoaug.objective: .*'byol'.*mocov2plus, mocov3"):
        build(host, configuration("byol", infoaug={"twins": twins, "objective": "js"}))


# ---- the other host ----


@pytest.mark.slow
@pytest.mark.current_host
def test_these_tests_pass_on_the_release_too() -> None:
    if not os.environ.get("SOLO_LEARN_HOME"):
        pytest.skip(
            "SOLO_LEARN_HOME names no clone of the current solo-learn: this was the release"
        )
    environment = {key: value for key, value in os.environ.items() if key != "SOLO_LEARN_HOME"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", str(Path(__file__))],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:]
