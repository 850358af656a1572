"""Evaluate a pretrained backbone by k-NN and a linear probe on its frozen features; export it.

Protocol. Images are resized to the evaluation size (default: the crop size of training), normalised
as in training, and passed once through the backbone in evaluation mode. Only the probe is trained.
* k-NN: 20 neighbours by cosine similarity s, weighted by exp(s / 0.07). f-MICL's paper uses 200;
  solo-learn and DINO also offer exp(s / 0.1).
* Linear probe: multinomial logistic regression on standardised features, Σ cross-entropy +
  5·‖weights‖², minimised by L-BFGS until the gradient vanishes.
torch computes both, on a GPU if there is one. Earlier numbers were made by scikit-learn's
KNeighborsClassifier and LogisticRegression(C=0.1). They agree up to rounding and to where L-BFGS
stops: 0.2 points at most.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from solo_infoaug._checks import is_number, is_whole, require
from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation.backbone import Backbone, export, extract_features, load_backbone
from solo_infoaug.evaluation.images import digits, load_images
from solo_infoaug.evaluation.probes import TEMPERATURE, knn_accuracy, linear_accuracy
from solo_infoaug.training.layouts import DEFAULT_SEED

Features = Callable[[Tensor], Tensor]
Halves = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images and labels to learn from, and to test on."""

__all__ = [
    "Backbone",
    "digits",
    "evaluate",
    "export",
    "extract_features",
    "knn_accuracy",
    "linear_accuracy",
    "load_backbone",
    "load_images",
]


def evaluate(
    checkpoint: str | Path,
    dataset: str = "digits",
    train_path: str | Path | None = None,
    val_path: str | Path | None = None,
    k: int = 20,
    size: int | None = None,
    limit: int | None = None,
    fraction: float | None = None,
    fraction_seed: int = DEFAULT_SEED,
    temperature: float = TEMPERATURE,
) -> dict[str, float]:
    """k-NN and linear-probe accuracy (per cent) of a checkpoint's backbone.

    Args:
        checkpoint: checkpoint of a pretraining run, in the folder of its args.json.
        dataset: this, `train_path` and `val_path`: see `load_images`.
        k: number of neighbours.
        size: side of the images in pixels; default the training crop.
        limit: maximum number of images of each half.
        fraction: fraction of the images of each class to learn from, the same ones that
            `data.fraction` trains on. -1 or None for all.
        fraction_seed: seed by which they are drawn.
        temperature: temperature of k-NN's weights.

    Raises:
        ConfigError: the checkpoint or the data cannot be used.
        DataError: an image cannot be read.

    Examples:
        >>> accuracy = evaluate("trained/last.ckpt", "digits", limit=200)
        >>> sorted(accuracy)
        ['knn', 'linear']
        >>> accuracy["linear"] > 50  # per cent; chance is 10
        True
    """
    check_probes(k, size, limit, temperature)
    backbone = load_backbone(checkpoint)
    side = size or backbone.crop_size
    part = (fraction, fraction_seed)
    halves = load_images(dataset, side, train_path, val_path, limit, *part)
    check_halves_to_probe(halves[0][1], k, limit)
    return probe(partial(extract_features, backbone, size=size), halves, k, temperature)


def check_probes(
    k: int, size: int | None, limit: int | None, temperature: float, prefix: str = "--"
) -> None:
    """Check settings of `evaluate`; `prefix` stands before their names in messages."""
    for option, value, minimum in (("k", k, 1), ("size", size, 1), ("limit", limit, 2)):
        good = is_whole(value, minimum) or (value is None and option != "k")
        require(good, f"{prefix}{option}", f"a whole number ≥ {minimum}", value)
    good = is_number(temperature, 0) and temperature > 0
    require(good, f"{prefix}temperature", "a number > 0", temperature)


def check_halves_to_probe(labels: Tensor, k: int, limit: int | None) -> None:
    """Raise a ConfigError if the images to learn from, with these labels, are of one class."""
    if len(labels.unique()) < 2:
        which = "--limit" if limit is not None and limit <= len(labels) else "--train-path"
        raise ConfigError(
            f"{which}: expected images of at least two classes to learn from, got one class"
        )
    if k > len(labels):
        warnings.warn(f"--k: {k} neighbours of {len(labels)} images; all are used", stacklevel=3)


def probe(features: Features, halves: Halves, k: int, temperature: float) -> dict[str, float]:
    """k-NN and linear-probe accuracy (per cent) of `features`, which are computed once.

    These map uint8 [N, 3, H, W] to float32 [N, D].
    """
    train, test = ((features(images), labels) for images, labels in halves)
    return {
        "knn": knn_accuracy(train, test, k, temperature),
        "linear": linear_accuracy(train, test),
    }
