"""Pretraining from configurations, checkpoints and resuming, and what reads a checkpoint."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18

from solo_infoaug import evaluation
from solo_infoaug.errors import ConfigError, DataError, InfoAugError
from solo_infoaug.host.small import SMALL, SmallResNet
from solo_infoaug.training import TrainingResult, choose_device, load_config, pretrain
from solo_infoaug.twin.config import write_infoaug


def _rows(result: TrainingResult) -> list[dict[str, str]]:
    assert result.folder is not None
    with (result.folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(
    host: Any, twins_folder: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrainingResult]:
    """A baseline and an InfoAug run of one epoch, in the same checkpoint folder."""
    results = {}
    folder = tmp_path_factory.mktemp("trained")
    for name, infoaug in (("baseline", None), ("infoaug", {"twins": str(twins_folder)})):
        cfg = OmegaConf.create(
            json.loads(json.dumps(OmegaConf.to_container(_small(image_folder, folder))))
        )
        if infoaug is not None:
            cfg.infoaug = infoaug
        results[name] = pretrain(cfg)
    return results


def _small(image_folder: Path, folder: Path) -> Any:
    from solo_infoaug.resources import config_folder

    return load_config(
        config_folder() / "demo",
        "simclr",
        [
            f"data.train_path='{image_folder}'",
            f"checkpoint.dir='{folder}'",
            "optimizer.batch_size=8",
            "max_epochs=1",
            "method_kwargs.proj_hidden_dim=16",
            "method_kwargs.proj_output_dim=8",
            "++enable_progress_bar=false",
            "++enable_model_summary=false",
            "augmentations.0.crop_size=16",
        ],
    )


def test_run_leaves_checkpoint_args_and_metrics(trained: dict[str, TrainingResult]) -> None:
    for name, result in trained.items():
        assert result.folder is not None
        assert result.checkpoint is not None
        assert result.checkpoint.is_file()
        args = json.loads((result.folder / "args.json").read_text())
        assert ("infoaug" in args) == (name == "infoaug")
        rows = _rows(result)
        assert any(row.get("train_nce_loss_step") for row in rows)
        assert any(row.get("twin_loss_step") for row in rows) == (name == "infoaug")
    args = json.loads((trained["infoaug"].folder / "args.json").read_text())  # type: ignore[operator]
    assert len(args["infoaug"]["fingerprint"]) >= 8
    assert args["infoaug"]["positives"] == "twins"


def test_both_runs_see_the_same_data(trained: dict[str, TrainingResult]) -> None:
    """The first loss is computed before any update: equal weights and views give equal losses."""
    first = [
        next(row["train_nce_loss_step"] for row in _rows(result) if row["train_nce_loss_step"])
        for result in trained.values()
    ]
    assert first[0] == first[1]


def test_auto_resume_takes_only_its_own_kind(
    host: Any, trained: dict[str, TrainingResult], image_folder: Path, twins_folder: Path
) -> None:
    for name, infoaug in (("baseline", None), ("infoaug", {"twins": str(twins_folder)})):
        folder = trained[name].folder
        assert folder is not None
        cfg = _small(image_folder, folder.parent.parent)
        if infoaug is not None:
            cfg.infoaug = infoaug
        cfg.auto_resume = {"enabled": True}
        choose_device(cfg)
        cfg = host.parse_cfg(cfg)
        host.methods["simclr"](cfg)
        found, _ = host.find_checkpoint(cfg)
        assert found is not None
        assert Path(found) == trained[name].checkpoint
        if infoaug is not None:
            cfg.infoaug.weight = 0.5
            assert host.find_checkpoint(cfg)[0] is None
            write_infoaug(cfg, None)
            assert Path(host.find_checkpoint(cfg)[0]) == trained["baseline"].checkpoint


_TODAY = {"positives": "twins", "without_twin_share": 0.0}
_LATER = {"random_share": 0.0, "distinct_windows": False, "min_distance": 0.0}
"""Keys that came after those runs, at their defaults."""


def test_auto_resume_says_that_a_run_has_former_keys(
    host: Any,
    trained: dict[str, TrainingResult],
    image_folder: Path,
    twins_folder: Path,
    tmp_path: Path,
) -> None:
    """solo-learn itself would pass over the run and train from the beginning."""
    done = trained["infoaug"].folder
    assert done is not None
    args = tmp_path / "simclr" / "former" / "args.json"
    shutil.copytree(done, args.parent)
    today = json.loads(args.read_text())
    new = {*_TODAY, *_LATER}
    kept = {key: value for key, value in today["infoaug"].items() if key not in new}
    assert len(kept) > 10

    def start(key: str = "auto_resume.enabled", value: object = True) -> None:
        cfg = _small(image_folder, tmp_path)
        cfg.infoaug = {"twins": str(twins_folder)}
        cfg.auto_resume = {"enabled": True}
        OmegaConf.update(cfg, key, value, force_add=True)
        choose_device(cfg)
        host.methods["simclr"](host.parse_cfg(cfg))

    args.write_text(json.dumps({**today, "infoaug": {**kept, "arm": "mi", "others": 0.0}}))
    message = (
        r"auto_resume: .*former.* is from this run, but its args.json has the former keys "
        r"infoaug.arm and infoaug.others; to resume, replace them there by positives: twins and "
        r"without_twin_share: 0.0; to start again, choose another checkpoint.dir"
    )
    with pytest.raises(ConfigError, match=message):
        start()
    # other runs, and where nothing is looked for
    start("infoaug.positives", "random")
    start("auto_resume.enabled", False)
    start("auto_resume.max_hours", 0)
    start("resume_from_checkpoint", str(trained["infoaug"].checkpoint))
    # what the message says is enough
    args.write_text(json.dumps({**today, "infoaug": {**kept, **_TODAY}}))
    start()


def test_auto_resume_takes_a_missing_key_for_its_default(
    host: Any,
    trained: dict[str, TrainingResult],
    image_folder: Path,
    twins_folder: Path,
    tmp_path: Path,
) -> None:
    """Of runs that were saved before there was the key."""
    done = trained["infoaug"].folder
    assert done is not None
    folder = tmp_path / "simclr" / "before"
    shutil.copytree(done, folder)
    run = json.loads((folder / "args.json").read_text())

    def save(**later: object) -> None:
        before = {key: value for key, value in run["infoaug"].items() if key not in _LATER}
        saved = {**run, "infoaug": {**before, **later}}
        (folder / "args.json").write_text(json.dumps(saved))

    def found(**infoaug: object) -> bool:
        cfg = _small(image_folder, tmp_path)
        cfg.infoaug = {"twins": str(twins_folder), **infoaug}
        cfg.auto_resume = {"enabled": True}
        choose_device(cfg)
        cfg = host.parse_cfg(cfg)
        host.methods["simclr"](cfg)
        checkpoint, _ = host.find_checkpoint(cfg)
        assert checkpoint is None or Path(checkpoint).parent == folder
        return checkpoint is not None

    other = {"random_share": 0.5, "distinct_windows": True, "min_distance": 0.01}
    save()
    assert found()
    assert found(**_LATER)
    for key, value in other.items():
        assert not found(**{key: value}), key
    save(**other)
    assert found(**other)
    for key, value in _LATER.items():
        assert not found(**{**other, key: value}), key


@pytest.mark.parametrize("wanted", ["baseline", "infoaug"])
def test_explicit_resume_of_the_other_kind_is_refused(
    trained: dict[str, TrainingResult],
    image_folder: Path,
    twins_folder: Path,
    tmp_path: Path,
    wanted: str,
) -> None:
    other = trained["infoaug" if wanted == "baseline" else "baseline"]
    cfg = _small(image_folder, tmp_path)
    cfg.max_epochs = 2
    cfg.resume_from_checkpoint = str(other.checkpoint)
    if wanted == "infoaug":
        cfg.infoaug = {"twins": str(twins_folder)}
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint: the checkpoint is that of"):
        pretrain(cfg)


def test_checkpoint_evaluates_and_exports(
    trained: dict[str, TrainingResult], tmp_path: Path
) -> None:
    checkpoint = trained["infoaug"].checkpoint
    assert checkpoint is not None
    scores = evaluation.evaluate(checkpoint)
    assert set(scores) == {"knn", "linear"}
    assert all(10 < value <= 100 for value in scores.values())

    for ending in (".safetensors", ".pth"):
        out = tmp_path / f"backbone{ending}"
        evaluation.export(checkpoint, out)
        state = load_file(out) if ending == ".safetensors" else torch.load(out, weights_only=True)
        model = resnet18()
        model.fc = nn.Identity()
        keys = model.load_state_dict(state, strict=True)
        assert not keys.missing_keys
        assert not keys.unexpected_keys
        backbone = evaluation.load_backbone(checkpoint).module
        image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model.eval()(image), backbone.cpu()(image))


def test_exported_small_backbone_brings_its_standardisation(
    host: Any, image_folder: Path, tmp_path: Path
) -> None:
    cfg = _small(image_folder, tmp_path / "run")
    cfg.backbone = {"name": SMALL, "kwargs": {"standardize": True}}
    checkpoint = pretrain(cfg).checkpoint
    assert checkpoint is not None
    out = tmp_path / "backbone.safetensors"
    backbone = evaluation.export(checkpoint, out)
    assert backbone.standardize is True
    with safe_open(out, "pt") as file:
        assert file.metadata()["standardize"] == "True"
    model = SmallResNet()  # not told
    model.load_state_dict(load_file(out))
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = backbone.module.cpu()(image)
    torch.testing.assert_close(model.eval()(image), expected)
    torch.testing.assert_close(model(0.5 * image), expected, atol=1e-3, rtol=1e-3)


def test_knn_and_probe_on_separable_and_random_features() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    centres = torch.randn(4, 16, generator=random) * 5
    near = centres[labels] + torch.randn(200, 16, generator=random)
    noise = torch.randn(200, 16, generator=random)
    for accuracy in (evaluation.knn_accuracy, evaluation.linear_accuracy):
        assert accuracy((near[:100], labels[:100]), (near[100:], labels[100:])) > 98
        assert accuracy((noise[:100], labels[:100]), (noise[100:], labels[100:])) < 50


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"method": "simclearly"}, "method: 'simclearly' is not in this solo-learn"),
        ({"infoaug": {"positives": "none"}}, "infoaug.positives"),
        ({"infoaug": {"twin": "x"}}, "infoaug.twin.*did you mean twins"),
        ({"data.train_path": "/nowhere/at/all"}, "data.train_path: expected the path"),
        ({"data.format": "dali"}, "data.format"),
        ({"optimizer.batch_size": 4096}, "optimizer.batch_size: expected at most the 24 images"),
        ({"logger": "carrier-pigeon"}, "logger: expected one of csv, tensorboard, none"),
    ],
)
def test_bad_configurations_are_named_before_training(
    make_cfg: Callable[..., Any], override: dict[str, Any], message: str
) -> None:
    cfg = make_cfg("simclr")
    for key, value in override.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises(ConfigError, match=message):
        pretrain(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.name", "adamm"),
        ("optimizer.lr", "abc"),
        ("optimizer.lr", True),
        ("optimizer.batch_size", 0),
        ("optimizer.batch_size", 2.5),
        ("optimizer.weight_decay", -1),
        ("scheduler.name", "cosin"),
        ("backbone.name", "resnet19"),
        ("max_epochs", 0),
        ("seed", "x"),
        ("data.dataset", "cifar11"),
        ("data.num_workers", -1),
        ("augmentations.0.crop_size", 0),
        ("augmentations.0.num_crops", "two"),
        ("resume_from_checkpoint", "none.ckpt"),
        ("checkpoint.frequency", 0),
    ],
)
def test_values_that_cannot_be_used_are_named(
    make_cfg: Callable[..., Any], key: str, value: Any
) -> None:
    cfg = make_cfg("simclr", **{key: value})
    with pytest.raises(ConfigError, match=f"^{key}: "):
        pretrain(cfg)


def test_what_lightning_refuses_is_one_message(make_cfg: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"Trainer refuses this configuration: .*17"):
        pretrain(make_cfg("simclr", precision="17"))


def test_what_solo_learn_refuses_is_one_message(host: Any, make_cfg: Callable[..., Any]) -> None:
    """It asserts without a word: its own line is what there is to say."""
    if host.info.kind != "current":
        pytest.skip("the release has defaults")
    cfg = make_cfg("simclr")
    del cfg.method_kwargs.temperature
    with pytest.raises(ConfigError, match=r"^method_kwargs\.temperature: "):
        pretrain(cfg)
    cfg = make_cfg("simclr", **{"method_kwargs.temperature": "???"})
    with pytest.raises(ConfigError, match=r"^method_kwargs\.temperature: .*mandatory"):
        pretrain(cfg)


def test_folders_that_are_no_image_folders_are_named(
    make_cfg: Callable[..., Any], image_folder: Path, tmp_path: Path
) -> None:
    def refused(message: str, **overrides: Any) -> None:
        with pytest.raises(InfoAugError, match=message):
            pretrain(make_cfg("simclr", **overrides))

    flat = image_folder / "a"
    refused(r"data\.train_path: .*data\.no_labels=true", **{"data.train_path": str(flat)})
    refused(
        r"data\.train_path: with data\.no_labels expected only images",
        **{"data.train_path": str(image_folder), "data.no_labels": True},
    )
    more = tmp_path / "more"
    shutil.copytree(image_folder, more)
    (more / ".ipynb_checkpoints").mkdir()
    refused(r"\.ipynb_checkpoints is a class without", **{"data.train_path": str(more)})
    (more / ".ipynb_checkpoints").rmdir()
    shutil.copytree(flat, more / "c")
    refused(r"data\.val_path: expected the classes of", **{"data.val_path": str(more)})
    file = flat / "0.png"
    refused(r"data\.train_path: expected a folder", **{"data.train_path": str(file)})
    refused(r"checkpoint\.dir: .* cannot be written", **{"checkpoint.dir": str(file / "runs")})


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("labels", [True, False])
def test_damaged_image_is_named(
    make_cfg: Callable[..., Any], image_folder: Path, tmp_path: Path, workers: int, labels: bool
) -> None:
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    for name in "ab":
        whole = (images / name / "3.png").read_bytes()
        (images / name / "3.png").write_bytes(whole[: len(whole) // 2])
    cfg = make_cfg("simclr", max_epochs=1, **{"optimizer.batch_size": 12})
    cfg.data.update({"train_path": str(images if labels else images / "a")})
    cfg.data.update({"no_labels": not labels, "num_workers": workers})
    with pytest.raises(DataError, match=r"^\S+3\.png: cannot be read as an image \(") as error:
        pretrain(cfg)
    assert "Traceback" not in str(error.value)


def test_damaged_image_of_an_evaluation_is_named(
    trained: dict[str, TrainingResult], image_folder: Path, tmp_path: Path
) -> None:
    checkpoint = trained["baseline"].checkpoint
    assert checkpoint is not None
    shutil.copytree(image_folder, tmp_path / "images")
    (tmp_path / "images" / "b" / "3.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"3\.png"):
        evaluation.evaluate(checkpoint, "folder", tmp_path / "images", image_folder)


def test_evaluation_uses_or_refuses_each_option(
    trained: dict[str, TrainingResult], image_folder: Path, tmp_path: Path
) -> None:
    checkpoint = trained["baseline"].checkpoint
    assert checkpoint is not None

    def refused(message: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            evaluation.evaluate(checkpoint, *arguments, **options)

    with pytest.warns(UserWarning, match="--k: 20 neighbours of 15 images"):
        few = evaluation.evaluate(checkpoint, limit=15)
    assert few != evaluation.evaluate(checkpoint)
    nowhere = tmp_path / "nowhere"
    refused("--val-path: expected a folder .*nowhere", "folder", image_folder, nowhere)
    refused("--train-path: expected a folder .*nowhere", "folder", nowhere, image_folder)
    refused("--train-path: --data digits does not use it", "digits", image_folder)
    refused("--val-path: --data cifar10 does not use it", "cifar10", nowhere, nowhere)
    one = tmp_path / "one"
    shutil.copytree(image_folder / "a", one / "a")
    refused("--train-path: expected images of at least two classes", "folder", one, one)
    refused("--limit", limit=1)
    refused("--k", k=0)


def test_finished_run_has_nothing_to_do(
    trained: dict[str, TrainingResult],
    image_folder: Path,
    twins_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, infoaug in (("baseline", None), ("infoaug", {"twins": str(twins_folder)})):
        before = trained[name]
        assert before.folder is not None
        for how in ({"auto_resume": {"enabled": True}}, {"resume_from_checkpoint": None}):
            cfg = _small(image_folder, before.folder.parent.parent)
            cfg.update(how)
            if cfg.get("resume_from_checkpoint", "") is None:
                cfg.resume_from_checkpoint = str(before.checkpoint)
            if infoaug is not None:
                cfg.infoaug = infoaug
            again = pretrain(cfg)
            assert again.checkpoint == before.checkpoint
            assert again.folder == before.folder
            assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["64", "bf16-true", "bf16-mixed"])
def test_precisions_of_plain_solo_learn(
    slim_backbone: None, image_folder: Path, twins_folder: Path, tmp_path: Path, precision: str
) -> None:
    cfg = _small(image_folder, tmp_path)
    cfg.precision = precision
    cfg.infoaug = {"twins": str(twins_folder)}
    assert math.isfinite(pretrain(cfg).metrics["twin_loss"])


def test_views_are_the_same_in_any_default_precision(host: Any, make_cfg: Any) -> None:
    """What Kornia draws must not depend on it; the loader's views do not."""
    from solo_infoaug.twin.component import twin_pipelines
    from solo_infoaug.twin.config import InfoAugConfig
    from solo_infoaug.twin.randomness import fork_rng
    from solo_infoaug.views import make_views

    cfg = host.parse_cfg(make_cfg("simclr"))
    pipelines = twin_pipelines(host, cfg, InfoAugConfig())
    patches = torch.randint(0, 256, (8, 3, 20, 20), dtype=torch.uint8)
    made = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            with fork_rng(3, torch.device("cpu")):
                made.append(torch.stack(make_views(pipelines, patches, patches)))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_reading_a_checkpoint_is_not_resuming(
    host: Any, trained: dict[str, TrainingResult], image_folder: Path, twins_folder: Path
) -> None:
    """Weights that were loaded start another run; its random state is its own."""
    result = trained["infoaug"]
    cfg = _small(image_folder, Path("unused"))
    cfg.infoaug = {"twins": str(twins_folder)}
    choose_device(cfg)
    cfg = host.parse_cfg(cfg)
    method = host.methods["simclr"]
    loaded = method.load_from_checkpoint(result.checkpoint, cfg=cfg, weights_only=False)
    assert loaded.resumption is None
    expected = result.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_missing_configurations_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config-path"):
        load_config(tmp_path / "none", "simclr")
    (tmp_path / "byol.yaml").write_text("method: byol\n")
    with pytest.raises(ConfigError, match=r"--config-name: no 'simclr'.*byol.yaml"):
        load_config(tmp_path, "simclr")
    # Hydra would look for other.yml.yaml
    (tmp_path / "other.yml").write_text("method: byol\n")
    (tmp_path / "plain").write_text("method: byol\n")
    for name in ("other", "other.yml", "plain", str(tmp_path / "plain"), "x/byol"):
        with pytest.raises(ConfigError, match=r"--config-name: no '.*'.*; there is byol\.yaml$"):
            load_config(tmp_path, name)
    with pytest.raises(ConfigError, match="nothing_there"):
        load_config(tmp_path, "byol", ["nothing_there.x=1"])
    assert load_config(tmp_path, "byol", ["++infoaug=true"]).infoaug is True


def test_a_precision_that_a_cpu_has_not_is_said(
    make_cfg: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = make_cfg("simclr", precision="16-mixed", accelerator="cpu")
    choose_device(cfg)
    assert cfg.precision == 32
    assert "Training on the CPU (precision: 16-mixed → 32" in capsys.readouterr().out


@pytest.mark.parametrize("imitated", [True, False])
def test_bfloat16_that_a_cpu_only_imitates_is_said(
    imitated: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: not imitated, raising=False
    )
    for precision in ("bf16-mixed", "32"):
        cfg = OmegaConf.create({"accelerator": "cpu", "precision": precision})
        choose_device(cfg)
        assert cfg.precision == precision
        assert ("precision=32" in capsys.readouterr().out) == (imitated and precision != "32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_configuration_runs_on_the_cpu() -> None:
    cfg = OmegaConf.create(
        {
            "accelerator": "gpu",
            "devices": [0, 1],
            "strategy": "ddp",
            "precision": "16-mixed",
            "sync_batchnorm": True,
        }
    )
    choose_device(cfg)
    assert cfg == {
        "accelerator": "cpu",
        "devices": "1",
        "strategy": "auto",
        "precision": 32,
        "sync_batchnorm": False,
    }


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("none.ckpt", "expected a .ckpt file"), ("text.ckpt", "expected an args.json next to")],
)
def test_unreadable_checkpoints_are_named(tmp_path: Path, checkpoint: str, message: str) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ConfigError, match=message):
        evaluation.load_backbone(tmp_path / checkpoint)
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(ConfigError):
        evaluation.load_backbone(tmp_path / checkpoint)


def test_export_names_its_endings(trained: dict[str, TrainingResult], tmp_path: Path) -> None:
    checkpoint = trained["baseline"].checkpoint
    assert checkpoint is not None
    with pytest.raises(ConfigError, match=r"\.safetensors or \.pth"):
        evaluation.export(checkpoint, tmp_path / "backbone.onnx")
