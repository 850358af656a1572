"""The images that a run trains on: checked first, and loaded as in solo-learn."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader

from solo_infoaug.errors import ConfigError, DataError
from solo_infoaug.host import Host
from solo_infoaug.training.batches import whole_batches
from solo_infoaug.training.config import say
from solo_infoaug.training.layouts import (
    ALL,
    CLASSES,
    DEFAULT_SEED,
    TORCHVISION,
    Part,
    add_unlabelled,
    drawn_rows,
    half_folder,
    labels_of,
    layout_of,
)
from solo_infoaug.views import run_pipelines


def read_image(path: str) -> Any:
    """torchvision's loader of image folders; the error names an image that cannot be read.

    Raises:
        DataError: the image is damaged.
    """
    with _names(path):
        return default_loader(path)


class _Named(Dataset[Any]):
    """solo-learn's images without labels; the error names an image that cannot be read."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        with _names(Path(self.images.root) / str(self.images.images[index])):
            return self.images[index]


@contextmanager
def _names(path: str | Path) -> Iterator[None]:
    # what Pillow raises for files that are damaged, truncated, or of another format
    try:
        yield
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); remove or replace it"
        ) from error


@contextmanager
def downloadable(dataset: str, path: str, key: str) -> Iterator[None]:
    """Report a data set that torchvision can neither find nor download as an error of `key`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if dataset not in TORCHVISION:
            raise
        raise ConfigError(
            f"{key}: {dataset} is not at {path}, neither in torchvision's layout nor as folders "
            f"of images (train/CLASS, test/CLASS), and cannot be downloaded ({error})"
        ) from error


def validation_loader(host: Host, cfg: DictConfig) -> Any:
    """Labelled images, as solo-learn loads them; None if the configuration names none."""
    data = cfg.data
    unlabelled = data.dataset == "custom" and (data.no_labels or data.val_path is None)
    if unlabelled or (data.dataset in ("imagenet", "imagenet100") and data.val_path is None):
        return None
    folder = half_folder(data.dataset, data.val_path or data.train_path, "test")
    if folder is not None:
        images = ImageFolder(
            str(folder), host.validation_transform(data.dataset), loader=read_image
        )
        return DataLoader(
            images,
            batch_size=cfg.optimizer.batch_size,
            num_workers=data.num_workers,
            pin_memory=True,
        )
    loader = host.prepare_data(
        data.dataset,
        train_data_path=data.train_path,
        val_data_path=data.val_path,
        data_format=data.format,
        batch_size=cfg.optimizer.batch_size,
        num_workers=data.num_workers,
    )[1]
    if hasattr(loader.dataset, "loader"):
        loader.dataset.loader = read_image
    return loader


def train_loader(host: Host, cfg: DictConfig) -> Any:
    """The images to train on, as solo-learn loads them, or whole batches.

    Raises:
        ConfigError: there are fewer images than in a batch.
    """
    transform = host.full_transform_pipeline(
        [
            host.n_crop_augmentation(
                host.build_transform_pipeline(cfg.data.dataset, entry), entry.num_crops
            )
            for entry in cfg.augmentations
        ]
    )
    if cfg.debug_augmentations:
        print(f"Transforms:\n{transform}")
    whole = bool(OmegaConf.select(cfg, "data.whole_batches"))
    dataset = _some_of(_images(host, cfg, None if whole else transform), cfg)
    if len(dataset) < cfg.optimizer.batch_size:
        raise ConfigError(
            f"optimizer.batch_size: expected at most the {len(dataset)} images of "
            f"data.train_path ({cfg.data.train_path}), got {cfg.optimizer.batch_size}"
        )
    if whole:
        pipelines = run_pipelines(host, cfg, cfg.augmentations)
        return whole_batches(dataset, pipelines, int(cfg.optimizer.batch_size), int(cfg.seed))
    return host.prepare_dataloader(
        dataset, batch_size=cfg.optimizer.batch_size, num_workers=cfg.data.num_workers
    )


def _images(host: Host, cfg: DictConfig, transform: Any) -> Any:
    """solo-learn's data set of all training images; errors name images that cannot be read."""
    name, path = cfg.data.dataset, cfg.data.train_path
    folder = half_folder(name, path, "train")
    if name in CLASSES:
        say(layout_of(name, path))
    dataset = host.prepare_datasets(
        name if folder is None else "custom",
        transform,
        train_data_path=path if folder is None else folder,
        data_format=cfg.data.format,
        no_labels=cfg.data.no_labels,
    )
    if name == "stl10" and folder is not None:
        add_unlabelled(dataset, path)
    if hasattr(dataset, "loader"):
        dataset.loader = read_image
    elif hasattr(dataset, "images"):
        dataset = _Named(dataset)
    return dataset


def _some_of(dataset: Any, cfg: DictConfig) -> Any:
    """`data.fraction` of the images, drawn by `data.fraction_seed`."""
    fraction = OmegaConf.select(cfg, "data.fraction", default=ALL)
    if fraction in (None, ALL):
        return dataset
    seed = OmegaConf.select(cfg, "data.fraction_seed", default=DEFAULT_SEED)
    return Part(dataset, drawn_rows(labels_of(dataset), len(dataset), fraction, seed))


def check_data(cfg: DictConfig) -> None:
    """Check that the folders hold what torchvision's ImageFolder and solo-learn expect."""
    if cfg.data.dataset in CLASSES:
        check_halves(cfg.data.dataset, cfg.data.train_path, OmegaConf.select(cfg, "data.val_path"))
        return
    folders = OmegaConf.select(cfg, "data.format", default="image_folder") == "image_folder"
    unlabelled = cfg.data.dataset == "custom" and OmegaConf.select(cfg, "data.no_labels")
    labelled: dict[str, Path] = {}
    for key in ("data.train_path", "data.val_path"):
        value = OmegaConf.select(cfg, key)
        if value is None:
            continue
        path = Path(value)
        if not path.exists():
            raise ConfigError(f"{key}: expected the path of the data, got {value}")
        if folders and not unlabelled:
            labelled[key] = path
        elif folders and key == "data.train_path":
            _check_flat(path)
    check_classes(labelled)


def check_halves(
    dataset: str,
    train_path: str | Path | None,
    val_path: str | Path | None,
    keys: tuple[str, str] = ("data.train_path", "data.val_path"),
) -> None:
    """Check that both halves of a named data set in folders of images have all its classes.

    `dataset` is one of `CLASSES`. Without a `val_path`, the other half is not needed. `keys` are
    the names of the two paths in messages.

    Raises:
        ConfigError: a half lacks classes, or has others.
    """
    halves = zip(keys, ("train", "test"), (train_path, val_path), strict=True)
    folders = {
        f"{key}/{folder.name}": folder
        for key, half, path in halves
        if (folder := half_folder(dataset, path, half)) is not None
    }
    check_classes(folders)
    for key, folder in folders.items():
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if len(names) != CLASSES[dataset]:
            raise ConfigError(
                f"{key}: expected the {CLASSES[dataset]} classes of {dataset}, got {len(names)} "
                f"({_some(names)}); data.dataset=custom takes any"
            )


def check_classes(folders: Mapping[str, Path]) -> None:
    """Check that folders of images have the same classes; the keys are their names in messages.

    Raises:
        ConfigError: the classes differ, there are no classes, or a class has no image.
    """
    classes = {key: _image_classes(path, key) for key, path in folders.items()}
    for (one, ours), (other, theirs) in pairwise(classes.items()):
        if ours != theirs:
            raise ConfigError(
                f"{other}: expected the classes of {one}, {_some(ours)}; got {_some(theirs)}"
            )


def _image_classes(path: Path, key: str) -> list[str]:
    """The classes of a folder of images for torchvision: one sub-folder each."""
    if not path.is_dir():
        there = "a file" if path.exists() else "not there"
        raise ConfigError(
            f"{key}: expected a folder with a folder of images for each class, got {path}, which "
            f"is {there}"
        )
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if not names:
        raise ConfigError(
            f"{key}: expected a folder for each class, got {path}, which has none; for images "
            "without labels set data.no_labels=true"
        )
    for name in names:
        files = (file for _, _, found in os.walk(path / name, followlinks=True) for file in found)
        if not any(file.lower().endswith(IMG_EXTENSIONS) for file in files):
            raise ConfigError(
                f"{key}: {path / name} is a class without an image; remove it, or put images "
                f"there ({', '.join(IMG_EXTENSIONS)})"
            )
    return names


def _check_flat(path: Path) -> None:
    """Check for other entries than images: solo-learn opens every entry of such a folder."""
    if not path.is_dir():
        raise ConfigError(
            f"data.train_path: expected a folder of images, got {path}, which is a file"
        )
    entries = sorted(path.iterdir())
    if not entries:
        raise ConfigError(f"data.train_path: expected images, got {path}, which is empty")
    for entry in entries:
        if not entry.name.lower().endswith(IMG_EXTENSIONS) or entry.is_dir():
            raise ConfigError(
                f"data.train_path: with data.no_labels expected only images, got {entry}"
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown}, … ({len(names)} in all)"
