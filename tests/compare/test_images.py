"""Grids on named image data sets, with twins from video, and on the videos' patches alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from solo_infoaug.compare.grid import Planner, Run, parse_grid
from solo_infoaug.compare.run import execute
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError

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
