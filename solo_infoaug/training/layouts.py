"""Where the images of a named data set are, and fractions of them.

`cifar10`, `cifar100` and `stl10` may be in torchvision's layout or in folders of images:
train/CLASS/… and test/CLASS/… (or val/CLASS/…). `tiny_imagenet`, which neither torchvision nor
solo-learn knows, is always in folders of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from solo_infoaug._checks import is_number, is_whole, require
from solo_infoaug.errors import ConfigError

CLASSES = {"cifar10": 10, "cifar100": 100, "stl10": 10, "tiny_imagenet": 200}
"""Number of classes of the named data sets that may be in folders of images."""

TORCHVISION = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "stl10": "stl10_binary",
}
"""The folder that torchvision makes for each."""

_HALVES = {"train": ("train",), "test": ("test", "val")}
ALL = -1
"""`data.fraction` that means the whole data set, as in solo-learn."""
DEFAULT_SEED = 42
"""Default of `data.fraction_seed`, as in solo-learn."""


def half_folder(
    dataset: str, path: str | Path | None, half: str, key: str = "data.train_path"
) -> Path | None:
    """The folder of the half `train` or `test`, with a folder for each class; else None.

    None means torchvision's layout. If `path` has both layouts, torchvision's is used, because it
    is the original. `key` is the name of the path in the message.

    Raises:
        ConfigError: `path` has no folders of `tiny_imagenet`.
    """
    if dataset not in CLASSES or path is None:
        return None
    root = Path(path)
    there = [root / name for name in _HALVES[half] if (root / name).is_dir()]
    if dataset in TORCHVISION:
        original = (root / TORCHVISION[dataset]).is_dir()
        return None if original or not there else there[0]
    if not there:
        raise ConfigError(
            f"{key}: expected {dataset} as folders of images ({half}/CLASS/…), got {path}"
        )
    return there[0]


def layout_of(dataset: str, path: str | Path, key: str = "data.train_path") -> str:
    """Which of the two layouts is used, as a sentence; `key` is the name of the path in errors."""
    if half_folder(dataset, path, "train", key) is not None:
        return f"{dataset}: folders of images at {path}"
    if (Path(path) / TORCHVISION[dataset]).is_dir():
        return f"{dataset}: torchvision's layout at {path}"
    return f"{dataset}: not yet at {path}; torchvision downloads it"


def name_for_host(cfg: DictConfig) -> None:
    """Change `tiny_imagenet` to `custom`, which solo-learn knows, with its training half.

    Training does not validate it, because solo-learn validates `custom` on 224 pixels.
    """
    if OmegaConf.select(cfg, "data.dataset") == "tiny_imagenet":
        train = half_folder("tiny_imagenet", cfg.data.train_path, "train")
        cfg.data.update({"dataset": "custom", "train_path": str(train), "val_path": None})


# --- a part of the images ------------------------------------------------------------------------


def check_fraction(fraction: Any, seed: Any, section: str = "data") -> None:
    """Check that `fraction` is in (0, 1), or -1 for all, and that the seed is a whole number."""
    good = fraction in (None, ALL) or (is_number(fraction, 0) and 0 < fraction < 1)
    require(good, f"{section}.fraction", "a number in (0, 1), or -1 for all images", fraction)
    good = seed is None or is_whole(seed, 0)
    require(good, f"{section}.fraction_seed", "a whole number ≥ 0", seed)


def drawn_rows(labels: Sequence[int] | None, count: int, fraction: float, seed: int) -> list[int]:
    """Rows of the `fraction` of each class of `count` images, drawn by `seed`.

    With seed 42 they are those of `data.fraction` in the current solo-learn. Without `labels`,
    classes do not count.

    Raises:
        ConfigError: the part has fewer images than classes.
    """
    from sklearn.model_selection import train_test_split

    classes = 1 if labels is None else len(set(labels))
    if int(fraction * count) < classes:
        raise ConfigError(
            f"data.fraction: expected at least one image for each class, got {fraction} of {count} "
            f"images of {classes} classes"
        )
    rows: list[int] = train_test_split(
        range(count), train_size=fraction, stratify=labels, random_state=seed
    )[0]
    return rows


def labels_of(dataset: Any) -> list[int] | None:
    """The labels of a torchvision data set; None if it has none."""
    if hasattr(dataset, "samples"):
        return [label for _, label in dataset.samples]
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    return None if labels is None else torch.as_tensor(labels).tolist()


class Part(Dataset[Any]):
    """Some images of one of solo-learn's data sets, with new numbers."""

    def __init__(self, images: Any, rows: Sequence[int]) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return (index, *self.images[self.rows[index]][1:])


# --- STL-10's images without labels --------------------------------------------------------------


def add_unlabelled(dataset: Any, path: str | Path) -> None:
    """Add images below `path`/unlabeled to an image folder, with label -1 as in torchvision."""
    files = sorted(p for p in (Path(path) / "unlabeled").rglob("*") if p.is_file())
    dataset.samples += [(str(p), -1) for p in files if p.name.lower().endswith(IMG_EXTENSIONS)]
    dataset.targets = [label for _, label in dataset.samples]
