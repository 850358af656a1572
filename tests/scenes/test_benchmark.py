"""The benchmark: what its truth says, and that nothing but motion gives the classes away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from solo_infoaug.compare.run import evaluate_features
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.scenes.benchmark import prepare_scenes
from solo_infoaug.scenes.parts import ScenesConfig, SceneVideo, stills

CONFIG = ScenesConfig(videos=2, frames=48, train_stills=40, labelled_stills=40, test_stills=20)


def test_the_same_settings_make_the_same_stills() -> None:
    first, classes, parts = stills(CONFIG, "train")
    again, _, _ = stills(CONFIG, "train")
    assert torch.equal(first, again)
    assert first.shape == (4 * 3 * 40, 3, 32, 32)
    assert torch.bincount(3 * classes + parts).tolist() == [40] * 12
    test, _, _ = stills(CONFIG, "test")
    assert not (first[:, None] == test[None, :20]).flatten(2).all(2).any()


def test_labelled_stills_are_the_first_of_training() -> None:
    config = ScenesConfig(train_stills=5, labelled_stills=2, test_stills=1)
    images, classes, parts = stills(config, "train")
    few, few_classes, few_parts = stills(config, "labelled")
    assert torch.equal(images.view(12, 5, -1)[:, :2].reshape(24, -1), few.flatten(1))
    assert torch.equal(classes.view(12, 5)[:, :2].reshape(-1), few_classes)
    assert torch.equal(parts.view(12, 5)[:, :2].reshape(-1), few_parts)


def test_colour_says_nothing_about_class_or_part() -> None:
    """A probe on mean and spread of the colours is at chance, 25 and 33 per cent."""
    from solo_infoaug.evaluation import linear_accuracy

    config = ScenesConfig(train_stills=150, test_stills=100)
    (train, y, part), (test, y_test, part_test) = (
        stills(config, split) for split in ("train", "test")
    )

    def colours(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.float().mean((2, 3)), images.float().std((2, 3))], dim=1)

    train, test = colours(train), colours(test)
    assert linear_accuracy((train, y), (test, y_test)) < 25 + 8
    assert linear_accuracy((train, part), (test, part_test)) < 33 + 8


def test_features_that_know_the_class_pass_both_probes_and_textures_only_one() -> None:
    """Ideal features: of the class, and of the (class, part)."""
    _, classes, parts = stills(CONFIG, "train")
    generator = torch.Generator().manual_seed(0)

    def features(code: torch.Tensor, size: int) -> torch.Tensor:
        noise = 0.1 * torch.randn(len(code), size, generator=generator)
        return torch.nn.functional.one_hot(code, size).float() + noise

    of_class = (features(classes, 4), classes, parts)
    found = evaluate_features(of_class, of_class, k=5)
    assert min(found.values()) > 99
    of_part = (features(3 * classes + parts, 12), classes, parts)
    found = evaluate_features(of_part, of_part, k=5)
    assert found["linear"] > 99
    assert found["knn"] > 99
    assert found["linear_across"] < 60
    assert found["knn_across"] < 60


def test_parts_of_an_object_move_together_and_no_patch_shows_two() -> None:
    scene = SceneVideo.make(CONFIG, 0)
    for t in range(CONFIG.frames):
        distance = np.abs(scene.centres[t][:, None] - scene.centres[t][None]).max(axis=2)
        np.fill_diagonal(distance, np.inf)
        same = scene.objects[:, None] == scene.objects[None]
        # between two parts there is room for a patch
        assert distance[same].min() > 36 + 32
    shift = np.linalg.norm(scene.centres[:, 0] - scene.centres[:, 1], axis=1)
    assert shift == pytest.approx(np.full(CONFIG.frames, shift[0]))
    width, height = scene.size
    frame = next(scene.frames())
    assert frame.shape == (height, width, 3)
    assert scene.part_at(scene.centres[0]).tolist() == list(range(12))
    assert scene.part_at(np.array([[0.0, 0.0]])).tolist() == [-1]


def test_mined_twins_fit_the_truth(tmp_path: Path) -> None:
    made = prepare_scenes(tmp_path / "scenes", CONFIG)
    assert made.truth["anchors"] >= 20
    assert made.truth["on_parts"] > 0.75
    assert made.truth["same_object"] > 0.75
    assert made.truth["another_part"] > 0.99
    oracle = TwinDictionary.load(made.oracle)
    assert len(oracle.anchors) > 20
    assert oracle.pixels.shape[2:] == (3, 32, 32)
    # taken from the disk the second time, and refused for other settings
    stamp = (tmp_path / "scenes" / "scenes.json").stat().st_mtime_ns
    assert prepare_scenes(tmp_path / "scenes", CONFIG).truth == made.truth
    assert (tmp_path / "scenes" / "scenes.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="benchmark of other settings"):
        prepare_scenes(tmp_path / "scenes", ScenesConfig(videos=3))


@pytest.mark.parametrize("setting", [{"classes": 1}, {"parts": 5}, {"labelled_stills": 1000}])
def test_settings_are_checked(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=rf"scenes\.{next(iter(setting))}: expected"):
        ScenesConfig(**setting)
