"""Labelled images to evaluate on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solo_infoaug._checks import require
from solo_infoaug.errors import ConfigError
from solo_infoaug.training.data import check_classes, downloadable, read_image

DATASETS = ("digits", "cifar10", "cifar100", "stl10", "folder")


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's 1,797 real handwritten digits as images, split in two by a fixed draw.

    Returns:
        Train and test, each uint8 [N, 3, 8, 8] and labels [N].
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
    """All indices, or `limit` of them, the same ones each time."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return list(range(count)) if limit is None or limit >= count else order[:limit]


def _to_tensors(dataset: Any, side: int, limit: int | None) -> tuple[Tensor, Tensor]:
    """A labelled torchvision data set as uint8 [N, 3, side, side] and labels [N]."""
    from rich.progress import track
    from torchvision.transforms import v2

    crop = v2.Compose(
        [v2.RGB(), v2.PILToTensor(), v2.Resize(side, antialias=True), v2.CenterCrop(side)]
    )
    order = _drawn(len(dataset), limit)
    pairs = [dataset[i] for i in track(order, "reading images", transient=True)]
    return torch.stack([crop(x) for x, _ in pairs]), torch.tensor([y for _, y in pairs])


def load_images(
    dataset: str,
    side: int,
    train_path: str | Path | None = None,
    val_path: str | Path | None = None,
    limit: int | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Labelled images to evaluate on.

    Args:
        dataset: `digits` (shipped with scikit-learn), `cifar10`, `cifar100`, `stl10` (on disk at
            `train_path`, or downloaded there), or `folder` (a folder a class, at both paths).
        side: of the images, in pixels.
        train_path: of the images that k-NN and probe learn from.
        val_path: of those that they are tested on.
        limit: at most this many of each, drawn once.

    Raises:
        ConfigError: a name or path that cannot be used.
    """
    from torchvision.datasets import ImageFolder

    require(dataset in DATASETS, "--data", f"one of {', '.join(DATASETS)}", dataset)
    paths = {"--train-path": train_path, "--val-path": val_path}
    taken = {"digits": (), "folder": tuple(paths)}.get(dataset, ("--train-path",))
    for option, path in paths.items():
        if option in taken and path is None:
            raise ConfigError(f"{option}: expected the path of {dataset}, got none")
        if option not in taken and path is not None:
            raise ConfigError(f"{option}: --data {dataset} has no use for it, got {path}")
    if dataset == "digits":
        (x, y), (x_test, y_test) = digits()
        some, some_test = _drawn(len(y), limit), _drawn(len(y_test), limit)
        return (x[some], y[some]), (x_test[some_test], y_test[some_test])
    if dataset == "folder":
        folders = {option: Path(str(path)) for option, path in paths.items()}
        check_classes(folders)
        train, test = (ImageFolder(str(path), loader=read_image) for path in folders.values())
    else:
        train, test = _downloaded(dataset, str(train_path))
    return _to_tensors(train, side, limit), _to_tensors(test, side, limit)


def _downloaded(dataset: str, path: str) -> list[Any]:
    """torchvision's two halves of a data set that it downloads to `path`, or finds there."""
    from torchvision.datasets import CIFAR10, CIFAR100, STL10

    with downloadable(dataset, path, "--train-path"):
        if dataset == "stl10":
            return [STL10(path, split=split, download=True) for split in ("train", "test")]
        data_set = CIFAR10 if dataset == "cifar10" else CIFAR100
        return [data_set(path, train=train, download=True) for train in (True, False)]
