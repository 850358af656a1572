"""What a pretrained backbone is worth: k-NN and a linear probe on its frozen features; export.

Protocol. Images are resized to the side the backbone is evaluated at (default: the crop size it
was trained with), normalised as in training, and passed once through the backbone in evaluation
mode; nothing is trained but the probe.
* k-NN: neighbours by cosine similarity s, weighted by exp(s / 0.07) (scikit-learn).
* Linear probe: multinomial logistic regression (scikit-learn, L-BFGS) on standardised features.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from solo_infoaug._files import check_output_folder, new_file
from solo_infoaug.errors import ConfigError
from solo_infoaug.host import backbone_entries
from solo_infoaug.training.pretraining import image_classes, read_image
from solo_infoaug.twin.registration import register

_TEMPERATURE = 0.07
DATASETS = ("digits", "cifar10", "cifar100", "stl10", "folder")


@dataclass(frozen=True)
class Backbone:
    """A backbone out of a checkpoint, with what is needed to show it an image."""

    module: nn.Module
    name: str
    crop_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cifar_stem: bool
    """3×3 first convolution and no max-pooling, as solo-learn builds ResNets for CIFAR."""
    cfg: DictConfig


def checkpoint_config(checkpoint: str | Path) -> DictConfig:
    """The args.json beside a checkpoint.

    Raises:
        ConfigError: no such checkpoint, or no args.json beside it.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise ConfigError(f"checkpoint: expected a .ckpt file, got {checkpoint}")
    args = path.parent / "args.json"
    if not args.is_file():
        raise ConfigError(
            f"checkpoint: expected an args.json beside {path}, as solo-learn writes it"
        )
    try:
        cfg = OmegaConf.create(json.loads(args.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"checkpoint: {args} cannot be read ({error})") from error
    for key in ("method", "backbone.name", "data.dataset", "augmentations"):
        if OmegaConf.select(cfg, key) is None:
            raise ConfigError(f"checkpoint: {args} has no {key!r}, as solo-learn's have")
    assert isinstance(cfg, DictConfig)
    return cfg


class _Inert:
    """Stands for what a checkpoint holds besides tensors and is not wanted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class _TensorsOnly:
    """A pickle module for `torch.load` that makes tensors and containers, and calls nothing else.

    `weights_only` refuses the whole of a checkpoint whose scheduler holds a function, as SimSiam's
    does in solo-learn.
    """

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            wanted = {
                ("collections", "OrderedDict"),
                ("torch._utils", "_rebuild_parameter"),
                ("torch._utils", "_rebuild_tensor_v2"),
            }
            return super().find_class(module, name) if (module, name) in wanted else _Inert


def backbone_weights(checkpoint: str | Path) -> dict[str, Tensor]:
    """The backbone's own entries of a checkpoint's state dict, under the backbone's names.

    Raises:
        ConfigError: the file is not a checkpoint, or has no backbone in it.
    """
    try:
        loaded = torch.load(
            checkpoint, map_location="cpu", weights_only=False, pickle_module=_TensorsOnly
        )
        state = loaded["state_dict"]
    except Exception as error:
        raise ConfigError(f"checkpoint: {checkpoint} cannot be read as one ({error})") from error
    weights = backbone_entries(state)
    if not weights:
        raise ConfigError(f"checkpoint: {checkpoint} has no backbone in its state dict")
    return weights


def load_backbone(checkpoint: str | Path) -> Backbone:
    """The trained backbone of a checkpoint, in evaluation mode.

    Raises:
        ConfigError: the checkpoint cannot be read, or does not fit its args.json.
    """
    cfg = checkpoint_config(checkpoint)
    weights = backbone_weights(checkpoint)
    host = register()
    module = host.build_backbone(cfg)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"checkpoint: its backbone is not the {cfg.backbone.name} of its args.json ({error})"
        ) from error
    entry = cfg.augmentations[0]
    mean, std = host.normalization(cfg.data.dataset, entry)
    return Backbone(
        module=module.eval().requires_grad_(False),
        name=str(cfg.backbone.name),
        crop_size=int(entry.crop_size),
        mean=tuple(mean),
        std=tuple(std),
        cifar_stem=isinstance(getattr(module, "maxpool", None), nn.Identity),
        cfg=cfg,
    )


@torch.no_grad()
def extract_features(
    backbone: Backbone, images: Tensor, size: int | None = None, batch_size: int = 256
) -> Tensor:
    """Frozen features.

    Args:
        backbone: from `load_backbone`.
        images: uint8 [N, 3, H, W].
        size: the side they are resized to, in pixels; default the training crop.
        batch_size: images at a time.

    Returns:
        float32 [N, D] on the CPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = backbone.module.to(device)
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (backbone.mean, backbone.std)
    )
    side = size or backbone.crop_size
    features = []
    for chunk in images.split(batch_size):
        x = chunk.to(device).float().div_(255)
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp_(0, 1)
        features.append(module((x - mean) / std).flatten(1).float().cpu())
    return torch.cat(features)


def knn_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int = 20) -> float:
    """Top-1 accuracy (per cent) of a k-NN classifier weighted by exp(cosine similarity / 0.07).

    The weights are those of Wu et al. 2018 (arXiv 1805.01978), which solo-learn uses as well.

    Args:
        train: features [N, D] and labels [N].
        test: likewise.
        k: neighbours.
    """
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(
        n_neighbors=min(k, len(train[1])),
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / _TEMPERATURE),
    )
    classifier.fit(train[0].numpy(), train[1].numpy())
    return 100 * float(classifier.score(test[0].numpy(), test[1].numpy()))


def linear_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Top-1 accuracy (per cent) of a logistic regression on standardised features.

    Args:
        train: features [N, D] and labels [N].
        test: likewise.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    probe.fit(train[0].numpy(), train[1].numpy())
    return 100 * float(probe.score(test[0].numpy(), test[1].numpy()))


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


def _drawn(count: int, limit: int | None) -> Sequence[int]:
    """All places, or `limit` of them, the same ones each time."""
    if limit is None or limit >= count:
        return range(count)
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return order[:limit]


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
    from torchvision import datasets

    if dataset not in DATASETS:
        raise ConfigError(f"--data: expected one of {', '.join(DATASETS)}, got {dataset!r}")
    paths = {"--train-path": train_path, "--val-path": val_path}
    taken = {"digits": (), "folder": tuple(paths)}.get(dataset, ("--train-path",))
    for option, path in paths.items():
        if option in taken and path is None:
            raise ConfigError(f"{option}: expected the path of {dataset}, got none")
        if option not in taken and path is not None:
            raise ConfigError(f"{option}: --data {dataset} has no use for it, got {path}")
    if dataset == "digits":
        (x, y), (x_test, y_test) = digits()
        some, some_test = list(_drawn(len(y), limit)), list(_drawn(len(y_test), limit))
        return (x[some], y[some]), (x_test[some_test], y_test[some_test])
    if dataset == "folder":
        classes = {}
        for option, path in paths.items():
            if not Path(str(path)).is_dir():
                there = "a file" if Path(str(path)).exists() else "not there"
                raise ConfigError(
                    f"{option}: expected a folder with a folder of images for each class, got "
                    f"{path}, which is {there}"
                )
            classes[option] = image_classes(Path(str(path)), option)
        if classes["--train-path"] != classes["--val-path"]:
            raise ConfigError(
                f"--val-path: expected the classes of --train-path, {classes['--train-path']}, "
                f"got {classes['--val-path']}"
            )
        train, test = (
            datasets.ImageFolder(str(path), loader=read_image) for path in paths.values()
        )
        return _to_tensors(train, side, limit), _to_tensors(test, side, limit)
    try:
        if dataset == "stl10":
            train, test = (
                datasets.STL10(str(train_path), split=split, download=True)
                for split in ("train", "test")
            )
        else:
            kind = datasets.CIFAR10 if dataset == "cifar10" else datasets.CIFAR100
            train, test = (kind(str(train_path), train=t, download=True) for t in (True, False))
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"--train-path: {dataset} is not at {train_path} and cannot be downloaded ({error})"
        ) from error
    return _to_tensors(train, side, limit), _to_tensors(test, side, limit)


def evaluate(
    checkpoint: str | Path,
    dataset: str = "digits",
    train_path: str | Path | None = None,
    val_path: str | Path | None = None,
    k: int = 20,
    size: int | None = None,
    limit: int | None = None,
) -> dict[str, float]:
    """k-NN and linear-probe accuracy (per cent) of a checkpoint's backbone.

    Args:
        checkpoint: of a pretraining run, with its args.json beside it.
        dataset: see `load_images`.
        train_path: likewise.
        val_path: likewise.
        k: neighbours.
        size: the side of the images, in pixels; default the training crop.
        limit: at most this many images of each half.

    Raises:
        ConfigError: the checkpoint or the data cannot be used.
        DataError: an image cannot be read.
    """
    for option, value, least in (("--k", k, 1), ("--size", size, 1), ("--limit", limit, 2)):
        if value is not None and value < least:
            raise ConfigError(f"{option}: expected a whole number ≥ {least}, got {value!r}")
    backbone = load_backbone(checkpoint)
    train, test = load_images(dataset, size or backbone.crop_size, train_path, val_path, limit)
    if len(train[1].unique()) < 2:
        which = "--limit" if limit is not None and limit <= len(train[1]) else "--train-path"
        raise ConfigError(
            f"{which}: expected images of two classes at least to learn from, got one class"
        )
    if k > len(train[1]):
        warnings.warn(f"--k: {k} neighbours of {len(train[1])} images; all are taken", stacklevel=2)
    halves = [(extract_features(backbone, x, size), y) for x, y in (train, test)]
    return {
        "knn": knn_accuracy(halves[0], halves[1], k),
        "linear": linear_accuracy(halves[0], halves[1]),
    }


def export(checkpoint: str | Path, out: str | Path) -> Backbone:
    """Write a checkpoint's backbone alone, under the names that torchvision and timm use.

    Args:
        checkpoint: of a pretraining run, with its args.json beside it.
        out: `.safetensors`, or `.pth` for torch.save.

    Raises:
        ConfigError: another ending, or the checkpoint cannot be used.
        OutputError: `out` cannot be written.
    """
    path = Path(out)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ConfigError(f"-o: expected a file ending in .safetensors or .pth, got {out}")
    check_output_folder(path.parent, "-o", path)
    backbone = load_backbone(checkpoint)
    state = {name: tensor.contiguous() for name, tensor in backbone.module.state_dict().items()}
    with new_file(path, "-o") as fresh, fresh.open("wb") as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            notes = {"backbone": backbone.name, "cifar_stem": str(backbone.cifar_stem)}
            file.write(save(state, metadata=notes))
        else:
            torch.save(state, file)
    return backbone
