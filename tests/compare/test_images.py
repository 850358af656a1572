"""Grids on named image data sets, with twins from video, and on the videos' patches alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from solo_infoaug.compare.grid import Planner, Run, parse_grid
from solo_infoaug.compare.images import evaluate_images, mean_colours
from solo_infoaug.compare.run import execute
from solo_infoaug.compare.tables import tables
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation import (
    evaluate,
    extract_features,
    knn_accuracy,
    load_backbone,
    load_images,
)

ARMS = ["baseline", "baseline_images", "random", "random_anchor", "self", "infoaug"]


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """Ten colours to tell apart, as folders of images: 12 to learn from and 2 to test of each."""
    random = np.random.default_rng(0)
    for half, count in (("train", 12), ("test", 2)):
        for name in range(10):
            for i in range(count):
                colour = [25 * name, 250 - 25 * name, 128]
                noise = random.integers(-20, 20, (32, 32, 3))
                file = tmp_path / "cifar10" / half / f"class{name}" / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(file)
    return tmp_path / "cifar10"


@pytest.fixture
def plan(cifar10: Path, twins_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Run]]:
    """The runs of a small grid by their arms."""

    def build(*more: str, arms: list[str] = ARMS) -> dict[str, Run]:
        overrides = [
            f"out='{tmp_path / 'grid'}'",
            "methods=simclr",
            f"arms=[{','.join(arms)}]",
            "seeds=0",
            f"infoaug.twins='{twins_folder}'",
            "backbone.name=small_resnet",
            "data.num_workers=0",
            "max_epochs=1",
            "optimizer.batch_size=8",
            "method_kwargs.proj_hidden_dim=16",
            "method_kwargs.proj_output_dim=8",
            *more,
        ]
        runs = Planner(parse_grid(overrides)).plan()
        for run in runs:
            run.write(False)
        return {run.cell.arm: run for run in runs}

    return build


def test_images_and_video_with_every_arm(
    host: Any, plan: Callable[..., dict[str, Run]], cifar10: Path
) -> None:
    more = ["data=cifar10", f"data.train_path='{cifar10}'", "data.fraction=0.25"]
    runs = plan(*more, "data.whole_batches=true")
    assert list(runs) == ARMS
    for arm, run in runs.items():
        assert run.config.data.val_path == run.config.data.train_path == str(cifar10)
        assert run.evaluate["fraction"] == 0.25
        assert run.evaluate["fraction_seed"] == run.config.data.fraction_seed == 0
        result = execute(run.folder)
        assert set(result["metrics"]) == {"online", "linear", "knn"}
        assert result["metrics"]["linear"] > 50  # ten colours
        # 30 images in batches of 8
        assert result["steps"] == (6 if arm == "baseline_images" else 3)


def test_a_run_validates_once_at_its_end(
    host: Any, plan: Callable[..., dict[str, Run]], cifar10: Path
) -> None:
    more = ["data=cifar10", f"data.train_path='{cifar10}'", "data.fraction=0.25", "max_epochs=3"]
    run = plan(*more, "arms=baseline")["baseline"]
    result = execute(run.folder)
    with (run.folder / "metrics.csv").open() as file:
        validated = [row for row in csv.DictReader(file) if row["val_acc1"]]
    assert [int(row["epoch"]) for row in validated] == [2]
    assert result["metrics"]["online"] == pytest.approx(float(validated[0]["val_acc1"]), abs=1e-3)


def test_video_alone_and_images_for_the_evaluation(
    host: Any,
    plan: Callable[..., dict[str, Run]],
    cifar10: Path,
    twins_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = plan("data=patches", "evaluate.dataset=cifar10", f"evaluate.train_path='{cifar10}'")
    dictionary = TwinDictionary.load(twins_folder)
    stored = {row.numpy().tobytes() for row in dictionary.pixels[:, 0]}
    stored |= {row.numpy().tobytes() for row in dictionary.pixels[:, 1]}
    (folder,) = {run.config.data.train_path for run in runs.values()}
    images = [np.asarray(Image.open(file)) for file in Path(folder).rglob("*.png")]
    seen = {image.transpose(2, 0, 1).tobytes() for image in images}
    assert seen <= stored
    assert len(images) >= len(dictionary)
    assert "cifar10: folders of images" in capsys.readouterr().err
    for arm in ("baseline", "infoaug"):
        result = execute(runs[arm].folder)
        assert result["steps"] == len(images) // 8
        assert {"linear", "knn"} <= set(result["metrics"])
    # another dictionary gives the baselines other images
    other = tmp_path / "other"
    pixels = torch.randint(0, 256, (24, 1, 3, 20, 20), dtype=torch.uint8)
    twins = torch.arange(24).view(-1, 2).flip(1).reshape(-1, 1)
    TwinDictionary.create(other, pixels, twins, torch.ones(24, 1))
    same = ["data=patches", "evaluate.dataset=cifar10", f"evaluate.train_path='{cifar10}'"]
    again = plan(*same, f"infoaug.twins='{other}'", arms=["baseline"])["baseline"]
    assert again.hash != runs["baseline"].hash
    assert plan(*same, arms=["baseline"])["baseline"].hash == runs["baseline"].hash
    assert "infoaug" not in again.config


def test_probes_on_other_images_than_those_of_pretraining(
    plan: Callable[..., dict[str, Run]], cifar10: Path, image_folder: Path
) -> None:
    more = ["data=custom", f"data.train_path='{image_folder}'", "data.whole_batches=true"]
    evaluation = ["evaluate.dataset=cifar10", f"evaluate.train_path='{cifar10}'"]
    run = plan(*more, *evaluation, "evaluate.k=200", "evaluate.temperature=0.1")["baseline"]
    assert run.config.data.train_path == str(image_folder)
    read = json.loads((run.folder / "run.json").read_text())["evaluate"]
    assert read["train_path"] == str(cifar10)
    assert (read["val_path"], read["k"], read["temperature"]) == (None, 200, 0.1)


def test_one_pretraining_is_evaluated_on_several_data_sets(
    host: Any, plan: Callable[..., dict[str, Run]], cifar10: Path, tmp_path: Path
) -> None:
    more = f"{{dataset: folder, train_path: '{cifar10 / 'test'}', val_path: '{cifar10 / 'train'}'"
    evaluation = ["evaluate.dataset=cifar10", f"evaluate.train_path='{cifar10}'", "evaluate.k=3"]
    also = f"evaluate.also={{swapped: {more}, limit: 15, size: 8}}, digits: {{k: 5}}}}"
    runs = plan("data=patches", *evaluation, also, arms=["baseline", "infoaug"])
    assert runs["baseline"].evaluate["also"]["swapped"] == {
        "dataset": "folder",
        "train_path": str(cifar10 / "test"),
        "val_path": str(cifar10 / "train"),
        "limit": 15,
        "fraction": -1,
        "fraction_seed": 0,
        "size": 8,
        "k": 3,
        "temperature": 0.07,
    }
    for run in runs.values():
        run.write(True)
    result = execute(runs["baseline"].folder)
    (checkpoint,) = runs["baseline"].folder.rglob("*.ckpt")
    for name, how in {"": {}, **runs["baseline"].evaluate["also"]}.items():
        alone = evaluate(
            checkpoint, **(how or {"dataset": "cifar10", "train_path": cifar10, "k": 3})
        )
        for probe, value in alone.items():
            assert result["metrics"][f"{probe}_{name}" if name else probe] == value, (probe, name)
    assert result["references"]["chance"] == {
        **dict.fromkeys(("linear", "knn", "linear_digits", "knn_digits"), 10.0),
        **dict.fromkeys(("linear_swapped", "knn_swapped"), pytest.approx(100 / 8, abs=3)),
    }
    # ten colours to tell apart, and digits in grey
    assert result["references"]["mean colour"]["knn"] == 100
    assert result["references"]["mean colour"]["knn_digits"] < 30

    # random weights by the run's seed, as the host makes them
    (backbone, blank), seed = (load_backbone(checkpoint) for _ in range(2)), 0
    torch.manual_seed(seed)
    module = host.build_backbone(blank.cfg).eval()
    train, test = load_images("cifar10", backbone.crop_size, cifar10)
    ours, asked = (
        (extract_features(replace(blank, module=module), x), y) for x, y in (train, test)
    )
    assert result["references"]["untrained network"]["knn"] == knn_accuracy(ours, asked, 3)

    # the other run of the grid reads the references; other images have others
    (folder,) = (tmp_path / "grid").rglob("references")
    stored = {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    assert len(stored) == 2 * 3
    again = execute(runs["infoaug"].folder)
    assert again["references"] == result["references"]
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*.json")} == stored
    # as are the decoded images, unless a file comes or goes
    decoded = folder.parent / "images"
    assert len(list(decoded.glob("*.pt"))) == 3
    next((cifar10 / "train" / "class0").iterdir()).unlink()
    fewer, _ = evaluate_images(checkpoint, {"": runs["baseline"].evaluate}, folder)
    assert len(list(decoded.glob("*.pt"))) == 4
    assert fewer == evaluate(checkpoint, dataset="cifar10", train_path=cifar10, k=3)
    (accuracies,) = [t for t in tables([result, again]) if "swapped, k-NN (" in t.title]
    assert [row[0] for row in accuracies.rows] == [
        "simclr",
        "chance",
        "untrained network",
        "mean colour",
    ]


def test_mean_colours_are_those_of_the_pixels(host: Any) -> None:
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    backbone: Any = SimpleNamespace(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    found = mean_colours(backbone, images)
    for n, channel in np.ndindex(5, 3):
        values = [int(value) / 255 for value in images[n, channel].flatten()]
        expected = (sum(values) / 24 - backbone.mean[channel]) / backbone.std[channel]
        assert float(found[n, channel]) == pytest.approx(expected, abs=1e-6)


def test_without_further_data_sets_a_run_is_what_it_was(
    plan: Callable[..., dict[str, Run]], cifar10: Path
) -> None:
    same = ["data=cifar10", f"data.train_path='{cifar10}'"]

    def run(*more: str) -> Run:
        return plan(*same, *more, arms=["baseline"])["baseline"]

    assert "also" not in run().evaluate
    assert run().hash == run("evaluate.also={}").hash
    one = run(f"+evaluate.also.cifar10.train_path='{cifar10}'")
    assert one.hash != run().hash
    assert one.evaluate["also"]["cifar10"]["train_path"] == str(cifar10)


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("3", r"evaluate\.also: expected a mapping of data sets"),
        ("{cifar100: x}", r"evaluate\.also\.cifar100: expected a mapping"),
        ("{cifar100: {path: x}}", r"evaluate\.also\.cifar100\.path: expected one of the keys"),
        ("{flowers: {train_path: x}}", r"evaluate\.also\.flowers\.dataset: expected one of"),
        ("{cifar100: {}}", r"evaluate\.also\.cifar100\.train_path: expected the path of cifar100"),
        (
            "{tiny_imagenet: {train_path: nowhere}}",
            r"evaluate\.also\.tiny_imagenet\.train_path: expected tiny_imagenet as folders",
        ),
        (
            "{flowers: {dataset: folder, train_path: nowhere, val_path: nowhere}}",
            r"evaluate\.also\.flowers\.train_path: expected a folder with a folder of images",
        ),
        ("{digits: {limit: 1}}", r"evaluate\.also\.digits\.limit: expected a whole number ≥ 2"),
        ("{digits: {k: none}}", r"evaluate\.also\.digits\.k: expected a whole number ≥ 1"),
        ("{digits: {fraction: 3}}", r"evaluate\.also\.digits\.fraction: expected a number in"),
        ("{across: {dataset: digits}}", r"evaluate\.also\.across: expected a name"),
    ],
)
def test_bad_further_data_sets_fail_before_anything_is_trained(
    plan: Callable[..., dict[str, Run]], cifar10: Path, also: str, message: str
) -> None:
    evaluation = ["evaluate.dataset=cifar10", f"evaluate.train_path='{cifar10}'"]
    with pytest.raises(ConfigError, match=message):
        plan("data=patches", *evaluation, f"evaluate.also={also}", arms=["baseline"])


def test_a_bad_path_to_evaluate_on_fails_before_anything_is_trained(
    plan: Callable[..., dict[str, Run]], cifar10: Path
) -> None:
    evaluation = ["evaluate.dataset=tiny_imagenet", "evaluate.train_path=nowhere"]
    with pytest.raises(ConfigError, match=r"evaluate\.train_path: expected tiny_imagenet as"):
        plan("data=patches", *evaluation, arms=["baseline"])
    folder = ["evaluate.dataset=folder", f"evaluate.train_path='{cifar10 / 'test'}'"]
    with pytest.raises(ConfigError, match=r"evaluate\.val_path: expected a folder with a folder"):
        plan("data=patches", *folder, "evaluate.val_path=nowhere", arms=["baseline"])


def test_evaluation_has_to_be_named(plan: Callable[..., dict[str, Run]]) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.dataset: expected the images to evaluate on"):
        plan("data=patches")


def test_every_data_set_has_the_same_keys(plan: Callable[..., dict[str, Run]]) -> None:
    for data in ("cifar10", "cifar100", "stl10", "custom", "tiny_imagenet", "patches"):
        with pytest.raises(ConfigError, match=r"data\.fraction: expected a number in \(0, 1\)"):
            plan(
                f"data={data}",
                "data.fraction=2",
                "data.whole_batches=true",
                "data.train_path=.",
                "evaluate.dataset=folder",
                "evaluate.val_path=.",
                "evaluate.train_path=.",
            )
