"""Named data sets as torchvision has them and as folders of images; parts of them."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation import load_images
from solo_infoaug.host import find_host
from solo_infoaug.training import pretrain
from solo_infoaug.training.data import train_loader, validation_loader
from solo_infoaug.training.layouts import drawn_rows, half_folder

CLASSES = list("abcdefghij")
PER_CLASS = {"train": 10, "test": 4}


def _pixels(half: str) -> np.ndarray:
    """uint8 [images, 32, 32, 3], image i of class i % 10."""
    random = np.random.default_rng(len(half))
    return random.integers(0, 256, (10 * PER_CLASS[half], 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A made-up CIFAR-10 as folders of images."""
    for half in PER_CLASS:
        for i, image in enumerate(_pixels(half)):
            file = tmp_path / "folders" / half / CLASSES[i % 10] / f"{i:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return tmp_path / "folders"


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same images as torchvision has CIFAR-10; it is told the sums of these files."""
    base = tmp_path / "original" / CIFAR10.base_folder
    base.mkdir(parents=True)
    train, test = _pixels("train"), _pixels("test")
    contents: dict[str, Any] = {CIFAR10.meta["filename"]: {"label_names": CLASSES}}
    for number, (name, _) in enumerate(CIFAR10.train_list):
        rows = train[20 * number : 20 * (number + 1)]
        contents[name] = {"data": rows.transpose(0, 3, 1, 2).reshape(20, -1)}
    contents["test_batch"] = {"data": test.transpose(0, 3, 1, 2).reshape(len(test), -1)}
    for content in contents.values():
        if "data" in content:
            content["labels"] = [i % 10 for i in range(len(content["data"]))]
    for name, content in contents.items():
        (base / name).write_bytes(pickle.dumps(content))
    for part in ("train_list", "test_list"):
        sums = [
            [name, hashlib.md5((base / name).read_bytes()).hexdigest()]
            for name, _ in getattr(CIFAR10, part)
        ]
        monkeypatch.setattr(CIFAR10, part, sums)
    meta = hashlib.md5((base / CIFAR10.meta["filename"]).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return base.parent


def _sorted(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, bytes]]:
    return sorted(
        (int(y), x.numpy().tobytes()) for x, y in zip(images.contiguous(), labels, strict=True)
    )


def _cfg(make: Callable[..., Any], host: Any, path: Path, **overrides: Any) -> Any:
    data = {"data.dataset": "cifar10", "data.train_path": str(path), "data.val_path": str(path)}
    return host.parse_cfg(make("simclr", None, **data, **overrides))


def test_both_layouts_have_the_same_images(
    host: Any,
    make_cfg: Callable[..., Any],
    folders: Path,
    original: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = []
    for path in (folders, original):
        whole = _cfg(make_cfg, host, path, **{"data.whole_batches": True})
        dataset = train_loader(host, whole).dataset
        halves = [(dataset.images, dataset.labels), *load_images("cifar10", 32, path)]
        found.append([_sorted(*half) for half in halves])
        loader = validation_loader(host, whole)
        shown = torch.cat([batch for batch, _ in loader]), torch.cat([y for _, y in loader])
        found[-1].append(_sorted(*shown))
    assert found[0] == found[1]
    expected = _sorted(
        torch.from_numpy(_pixels("train")).permute(0, 3, 1, 2), torch.arange(100) % 10
    )
    assert found[0][0] == found[0][1] == expected
    told = capsys.readouterr().out
    assert f"cifar10: folders of images at {folders}" in told
    assert f"cifar10: torchvision's layout at {original}" in told
    shutil.copytree(folders, original, dirs_exist_ok=True)
    assert half_folder("cifar10", original, "train") is None  # both are there: the original


@pytest.mark.parametrize("whole", [False, True])
def test_a_run_on_folders_is_cifars(
    make_cfg: Callable[..., Any], folders: Path, whole: bool
) -> None:
    data: dict[str, Any] = {"data.dataset": "cifar10", "data.train_path": str(folders)}
    data |= {"data.val_path": str(folders), "data.fraction": 0.2, "data.whole_batches": whole}
    result = pretrain(make_cfg("simclr", None, max_epochs=1, **data))
    backbone = getattr(result.model, "backbone", None)
    assert backbone.conv1.kernel_size == (3, 3)  # solo-learn's stem for CIFAR
    assert result.model.cfg.data.num_classes == 10
    assert result.model.trainer.global_step == 2  # of 20 images in batches of 8
    assert 0 <= result.metrics["val_acc1"] <= 100


def test_a_part_is_balanced_and_follows_its_seed_alone(
    host: Any, make_cfg: Callable[..., Any], folders: Path, original: Path
) -> None:
    for path in (folders, original):

        def part(seed: int, run: int, path: Path = path) -> list[tuple[int, bytes]]:
            keys = {"data.fraction": 0.3, "data.fraction_seed": seed, "data.whole_batches": True}
            dataset = train_loader(host, _cfg(make_cfg, host, path, seed=run, **keys)).dataset
            assert Counter(dataset.labels.tolist()) == dict.fromkeys(range(10), 3)
            return _sorted(dataset.images, dataset.labels)

        assert part(0, run=1) == part(0, run=2) != part(1, run=1)
        probed, test = load_images("cifar10", 32, path, fraction=0.3, fraction_seed=0)
        assert _sorted(*probed) == part(0, run=1)
        assert len(test[1]) == 40


def test_a_part_without_whole_batches_is_numbered_from_0(
    host: Any, make_cfg: Callable[..., Any], folders: Path
) -> None:
    keys = {"data.fraction": 0.4, "data.fraction_seed": 0}
    loader = train_loader(host, _cfg(make_cfg, host, folders, **keys))
    index, views, labels = (
        torch.cat(column) if not isinstance(column[0], list) else column
        for column in zip(*loader, strict=True)
    )
    assert len(loader) == 5
    assert sorted(index.tolist()) == list(range(40))
    assert Counter(labels.tolist()) == dict.fromkeys(range(10), 4)
    assert views[0][0].shape[1:] == (3, 16, 16)


@pytest.mark.skipif(find_host().kind == "release", reason="the release has no data.fraction")
@pytest.mark.parametrize("no_labels", [False, True])
def test_seed_42_is_the_current_solo_learns(
    host: Any, make_cfg: Callable[..., Any], folders: Path, no_labels: bool
) -> None:
    path = str(folders / "train" / "a" if no_labels else folders / "train")
    theirs = host.prepare_datasets(
        "custom", None, train_data_path=path, no_labels=no_labels, data_fraction=0.3
    )
    keys = {"data.fraction": 0.3, "data.train_path": path, "data.no_labels": no_labels}
    keys |= {"data.whole_batches": True, "optimizer.batch_size": 2}
    ours = train_loader(host, host.parse_cfg(make_cfg("simclr", None, **keys))).dataset
    assert len(ours) == len(theirs) == (3 if no_labels else 30)
    for i, (_, image, label) in enumerate(theirs[i] for i in range(len(theirs))):
        assert np.array_equal(ours.images[i].permute(1, 2, 0), np.asarray(image))
        assert ours.labels[i] == label


def test_stl10s_unlabelled_images_are_trained_on(
    host: Any, make_cfg: Callable[..., Any], folders: Path
) -> None:
    shutil.copytree(folders / "test" / "a", folders / "unlabeled")
    data = {"data.dataset": "stl10", "data.train_path": str(folders), "data.whole_batches": True}
    cfg = host.parse_cfg(make_cfg("simclr", None, **{"data.val_path": str(folders), **data}))
    labels = train_loader(host, cfg).dataset.labels
    assert Counter(labels.tolist()) == {**dict.fromkeys(range(10), 10), -1: 4}
    assert len(load_images("stl10", 32, folders)[0][1]) == 100


def test_tiny_imagenet_is_trained_on_as_custom(
    make_cfg: Callable[..., Any], tmp_path: Path
) -> None:
    for half, count in (("train", 2), ("val", 1)):
        for name in range(200):
            for i in range(count):
                file = tmp_path / half / f"n{name:03}" / "images" / f"{i}.png"
                file.parent.mkdir(parents=True) if i == 0 else None
                grey = Image.fromarray(np.full((16, 16), name, np.uint8))
                grey.save(file)
    data = {"data.dataset": "tiny_imagenet", "data.train_path": str(tmp_path)}
    cfg = make_cfg("simclr", None, max_epochs=1, **data)
    result = pretrain(cfg.merge_with({"limit_train_batches": 1}) or cfg)
    assert result.model.cfg.data.num_classes == 200
    (_, y), (x_test, y_test) = load_images("tiny_imagenet", 16, tmp_path)
    assert torch.equal(y, torch.arange(200).repeat_interleave(2))
    assert torch.equal(y_test, torch.arange(200))
    assert torch.equal(x_test[:, 1, 5, 5], torch.arange(200, dtype=torch.uint8))  # grey → RGB


def test_what_cannot_be_taken_is_named(
    host: Any, make_cfg: Callable[..., Any], folders: Path, tmp_path: Path
) -> None:
    def refused(message: str, **data: Any) -> None:
        keys = {"dataset": "cifar10", "train_path": str(folders), "val_path": str(folders), **data}
        cfg = make_cfg("simclr", None, **{f"data.{key}": value for key, value in keys.items()})
        with pytest.raises(ConfigError, match=message):
            pretrain(cfg)

    refused(
        r"data\.fraction: expected a number in \(0, 1\), or -1 for all images, got 1", fraction=1
    )
    refused(r"data\.fraction: expected at least one image for each class, got 0\.05", fraction=0.05)
    refused(r"data\.fraction_seed: expected a whole number ≥ 0", fraction=0.5, fraction_seed=-1)
    refused(
        r"data\.train_path: expected tiny_imagenet as folders", dataset="tiny_imagenet",
        train_path=str(tmp_path),
    )  # fmt: skip
    refused(r"expected the 100 classes of cifar100, got 10 \(a, b", dataset="cifar100")
    shutil.rmtree(folders / "test" / "j")
    refused(r"data\.val_path/test: expected the classes of data\.train_path/train")
    shutil.rmtree(folders / "test")
    with pytest.raises(ConfigError, match=r"--train-path: expected .* test/CLASS as well as"):
        load_images("cifar10", 32, folders)


def test_rows_are_drawn_by_hand() -> None:
    """Against the definition: of each class its share, without regard to the order of labels."""
    labels = [0] * 10 + [1] * 30
    rows = drawn_rows(labels, 40, 0.2, 5)
    assert Counter(labels[row] for row in rows) == {0: 2, 1: 6}
    assert len(set(rows)) == 8
    assert len(drawn_rows(None, 40, 0.5, 0)) == 20
