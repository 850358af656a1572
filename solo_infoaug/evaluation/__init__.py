"""What a pretrained backbone is worth: k-NN and a linear probe on its frozen features; export.

Protocol. Images are resized to the side the backbone is evaluated at (default: the crop size it
was trained with), normalised as in training, and passed once through the backbone in evaluation
mode; nothing is trained but the probe.
* k-NN: neighbours by cosine similarity s, weighted by exp(s / 0.07) (scikit-learn).
* Linear probe: multinomial logistic regression (scikit-learn, L-BFGS) on standardised features.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from solo_infoaug._checks import require
from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation.backbone import Backbone, export, extract_features, load_backbone
from solo_infoaug.evaluation.images import digits, load_images
from solo_infoaug.evaluation.probes import knn_accuracy, linear_accuracy

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
    for option, value, minimum in (("--k", k, 1), ("--size", size, 1), ("--limit", limit, 2)):
        good = value is None or value >= minimum
        require(good, option, f"a whole number ≥ {minimum}", value)
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
