"""Labelled images to evaluate on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_infoaug._checks import require
from solo_infoaug.errors import ConfigError
from solo_infoaug.training.config import say
from solo_infoaug.training.data import check_classes, check_halves, downloadable, read_image
from solo_infoaug.training.layouts import (
    ALL,
    CLASSES,
    DEFAULT_SEED,
    check_fraction,
    drawn_rows,
    half_folder,
    labels_of,
    layout_of,
)

DATASETS = ("digits", *CLASSES, "folder")


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's 1,797 real handwritten digits as images, split in two by a fixed draw.

    Train and test have uint8 [N, 3, 8, 8] and labels [N] each.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    grey = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)
    images, labels = grey.unsqueeze(1).repeat(1, 3, 1, 1), torch.from_numpy(data.target).long()
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=0.5, random_state=0, stratify=labels
    )
    return (images[train], labels[train]), (images[test], labels[test])


def _drawn(count: int, limit: int | None) -> list[int]:
    """All indices, or `limit` of them, always the same ones."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return list(range(count)) if limit is None or limit >= count else order[:limit]


def _to_tensors(dataset: Any, rows: list[int], side: int) -> tuple[Tensor, Tensor]:
    """Rows of a labelled torchvision data set as uint8 [N, 3, side, side] and labels [N]."""
    from rich.progress import track
    from torchvision.transforms import v2

    crop = v2.Compose(
        [v2.RGB(), v2.PILToTensor(), v2.Resize(side, antialias=True), v2.CenterCrop(side)]
    )
    images = torch.empty(len(rows), 3, side, side, dtype=torch.uint8)
    labels = torch.empty(len(rows), dtype=torch.int64)
    for i, row in enumerate(track(rows, "reading images", transient=True)):
        image, label = dataset[row]
        if image.size == (side, side):  # takes a tenth of the time
            images[i] = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        else:
            images[i] = crop(image)
        labels[i] = label
    return images, labels


def load_images(
    dataset: str,
    side: int,
    train_path: str | Path | None = None,
    val_path: str | Path | None = None,
    limit: int | None = None,
    fraction: float | None = None,
    fraction_seed: int = DEFAULT_SEED,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Labelled images to evaluate on.

    Args:
        dataset: `digits` (shipped with scikit-learn); `cifar10`, `cifar100`, `stl10` or
            `tiny_imagenet` (at `train_path`, in torchvision's layout or as the folders train/CLASS
            and test/CLASS; torchvision downloads its data sets if nothing is there); or `folder`
            (one folder for each class, at both paths).
        side: of the images, pixels.
        train_path: path of the images that k-NN and probe learn from.
        val_path: path of the images that they are tested on.
        limit: maximum number of images of each half, drawn once.
        fraction: fraction of each class of the training half, the same images that `data.fraction`
            takes for pretraining from that half.
        fraction_seed: seed by which they are drawn.

    Raises:
        ConfigError: a name or path that cannot be used.
    """
    check_fraction(fraction, fraction_seed, "evaluate")
    halves = open_images(dataset, train_path, val_path)
    if halves and dataset in CLASSES:
        say(layout_of(dataset, str(train_path), "--train-path"))

    def part(labels: list[int]) -> list[int]:
        if fraction in (None, ALL):
            return list(range(len(labels)))
        return drawn_rows(labels, len(labels), float(fraction or ALL), fraction_seed)

    if dataset == "digits":
        (x, y), (x_test, y_test) = digits()
        rows = part(y.tolist())
        x, y = x[rows], y[rows]
        some, some_test = _drawn(len(y), limit), _drawn(len(y_test), limit)
        return (x[some], y[some]), (x_test[some_test], y_test[some_test])
    train, test = halves
    labels = labels_of(train)
    assert labels is not None
    rows = part(labels)
    return (
        _to_tensors(train, [rows[i] for i in _drawn(len(rows), limit)], side),
        _to_tensors(test, _drawn(len(test), limit), side),
    )


def open_images(
    dataset: str,
    train_path: str | Path | None,
    val_path: str | Path | None,
    keys: tuple[str, str, str] = ("--data", "--train-path", "--val-path"),
) -> list[Any]:
    """The two halves of a data set, whose images are read later; none for `digits`.

    For the arguments see `load_images`; `keys` are the names of the first three in messages.

    Raises:
        ConfigError: a name or path that cannot be used.
    """
    data, *names = keys
    require(dataset in DATASETS, data, f"one of {', '.join(DATASETS)}", dataset)
    paths = dict(zip(names, (train_path, val_path), strict=True))
    taken = {"digits": (), "folder": tuple(paths)}.get(dataset, (names[0],))
    for option, path in paths.items():
        if option in taken and path is None:
            raise ConfigError(f"{option}: expected the path of {dataset}, got none")
        if option not in taken and path is not None:
            raise ConfigError(f"{option}: {data} {dataset} does not use it, got {path}")
    return [] if dataset == "digits" else _halves(dataset, train_path, val_path, *names)


def _halves(
    dataset: str, train_path: str | Path | None, val_path: str | Path | None, key: str, other: str
) -> list[Any]:
    """The two halves, from folders of images or in torchvision's layout; `key`, `other`: paths."""
    from torchvision.datasets import CIFAR10, CIFAR100, STL10, ImageFolder

    def of_folders(*folders: str | Path | None) -> list[Any]:
        return [ImageFolder(str(folder), loader=read_image) for folder in folders]

    if dataset == "folder":
        check_classes({key: Path(str(train_path)), other: Path(str(val_path))})
        return of_folders(train_path, val_path)
    path = str(train_path)
    if half_folder(dataset, path, "train", key) is not None:
        halves = [half_folder(dataset, path, half, key) for half in ("train", "test")]
        if halves[1] is None:
            raise ConfigError(f"{key}: expected {path} to have test/CLASS as well as train/CLASS")
        check_halves(dataset, path, path, (key, key))
        return of_folders(*halves)
    with downloadable(dataset, path, key):
        if dataset == "stl10":
            return [STL10(path, split=split, download=True) for split in ("train", "test")]
        data_set = CIFAR10 if dataset == "cifar10" else CIFAR100
        return [data_set(path, train=train, download=True) for train in (True, False)]
