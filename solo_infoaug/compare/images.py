"""The labelled images that runs are evaluated on: `evaluate`, and more of them in `evaluate.also`.

Each data set has the metrics of both probes, and three references: chance, the same backbone with
random weights, and the mean colour of an image in the place of its features. A grid computes the
references once, and decodes the images once; it keeps both in its folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from solo_infoaug._checks import require
from solo_infoaug._files import digest, expanded, new_file, read_json, write_json
from solo_infoaug.evaluation import (
    Backbone,
    Halves,
    check_halves_to_probe,
    check_probes,
    extract_features,
    load_backbone,
    load_images,
    probe,
)
from solo_infoaug.evaluation.backbone import untrained
from solo_infoaug.evaluation.images import DATASETS, open_images
from solo_infoaug.evaluation.probes import TEMPERATURE
from solo_infoaug.evaluation.segmentation import COLOUR, UNTRAINED
from solo_infoaug.training.layouts import ALL, CLASSES, check_fraction, layout_of

VERSION = 1
"""Part of the key of a stored reference: changes if the same input gives other numbers."""

CHANCE = "chance"
METRICS = ("linear", "knn")
_OWN = {"train_path": None, "val_path": None, "limit": None, "fraction": ALL}
_SHARED = {"fraction_seed": 0, "size": None, "k": 20, "temperature": TEMPERATURE}
"""Settings that `evaluate.also.NAME` takes from `evaluate` unless it has them itself."""

Tell = Callable[[str], None]
Open = Callable[..., Any]


# --- settings ------------------------------------------------------------------------------------


def read_also(evaluate: DictConfig, seed: int) -> dict[str, dict[str, Any]]:
    """The further data sets of `evaluate.also`, by name, each with all settings of `evaluate`.

    `evaluate` is that section of a run's configuration; `fraction_seed` is `seed` by default.

    Raises:
        ConfigError: a name or a setting cannot be used.
    """
    given = OmegaConf.select(evaluate, "also")
    if given is None:
        return {}
    expected = "a mapping of data sets, {cifar100: {train_path: …}, …}, or null"
    require(isinstance(given, DictConfig), "evaluate.also", expected, given)
    found: Any = OmegaConf.to_container(given, resolve=True)
    shared = {**_SHARED, "fraction_seed": seed}
    for key in _SHARED:
        if evaluate.get(key) is not None:
            shared[key] = evaluate[key]
    return {name: _settings(name, own, shared) for name, own in found.items()}


def _settings(name: Any, own: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
    key = f"evaluate.also.{name}"
    good = isinstance(name, str) and name.isidentifier() and name != "across"
    require(good, key, "a name of letters, digits and _, other than across", name)
    require(isinstance(own, dict), key, "a mapping such as {train_path: …}", own)
    settings = {"dataset": name, **_OWN, **shared}
    for setting in own:
        known = ", ".join(settings)
        require(setting in settings, f"{key}.{setting}", f"one of the keys {known}", setting)
    settings |= own
    expected = f"one of {', '.join(DATASETS)}; other names need a `dataset`"
    require(settings["dataset"] in DATASETS, f"{key}.dataset", expected, settings["dataset"])
    check_fraction(settings["fraction"], settings["fraction_seed"], key)
    k, size, limit = settings["k"], settings["size"], settings["limit"]
    check_probes(k, size, limit, settings["temperature"], f"{key}.")
    for path in ("train_path", "val_path"):
        if settings[path] is not None:
            settings[path] = str(expanded(settings[path]).resolve())
    return settings


def check_also(also: Mapping[str, Mapping[str, Any]], tell: Tell, opened: Open) -> None:
    """Open every data set, so that a path that cannot be used ends the grid before it trains.

    `tell` prints a line. `opened` is `open_images`, or remembers what it has opened.

    Raises:
        ConfigError: a path cannot be used; the message names its key.
    """
    for name, settings in also.items():
        keys = tuple(f"evaluate.also.{name}.{key}" for key in ("dataset", "train_path", "val_path"))
        data, path = settings["dataset"], settings["train_path"]
        if data in CLASSES and path is not None:
            tell(layout_of(data, path, keys[1]))
        opened(data, path, settings["val_path"], keys)


def check_main(cfg: DictConfig, opened: Open) -> None:
    """The same of `evaluate` itself, unless pretraining checks or downloads the same images."""
    how = cfg.evaluate
    if how.dataset not in CLASSES or how.train_path != cfg.data.train_path:
        keys = tuple(f"evaluate.{key}" for key in ("dataset", "train_path", "val_path"))
        opened(how.dataset, how.train_path, how.val_path, keys)


# --- the evaluation ------------------------------------------------------------------------------


def evaluate_images(
    checkpoint: Path, sets: Mapping[str, Mapping[str, Any]], store: Path
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The metrics of a checkpoint's backbone on labelled images, and those of the references.

    `sets` are settings of `evaluation.evaluate`, by the name that a data set's metrics end with; ""
    for the main one. The grid keeps references in `store`, next to the folder of decoded images.
    Returns `linear`, `knn`, `linear_NAME`, … → per cent; and reference → the same.
    """
    backbone = load_backbone(checkpoint)
    metrics: dict[str, float] = {}
    references: dict[str, dict[str, float]] = {}
    for name, settings in sets.items():
        halves = _read(backbone, settings, store)

        def suffixed(found: Mapping[str, float], name: str = name) -> dict[str, float]:
            return {f"{m}_{name}" if name else m: found[m] for m in METRICS}

        features = partial(extract_features, backbone, size=settings.get("size"))
        metrics |= suffixed(_probe(features, halves, settings))
        for reference, found in _references(backbone, halves, settings, store).items():
            references.setdefault(reference, {}).update(suffixed(found))
    return metrics, references


def _read(backbone: Backbone, settings: Mapping[str, Any], store: Path) -> Halves:
    """The images, decoded by one run of the grid: that takes longer than to extract features."""
    arguments = _drawn_from(settings) | {"side": settings.get("size") or backbone.crop_size}
    train, test = (arguments.get(key) for key in ("train_path", "val_path"))
    opened = open_images(settings["dataset"], train, test)
    files = [getattr(half, "samples", None) for half in opened]
    of_files = hashlib.sha256(repr(files).encode()).hexdigest()
    file = store.parent / "images" / f"{digest([VERSION, arguments, of_files])}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            with new_file(file, "out") as fresh:
                torch.save(load_images(**arguments), fresh)
    halves: Halves = torch.load(file, mmap=True, weights_only=True)
    check_halves_to_probe(halves[0][1], settings["k"], settings.get("limit"))
    return halves


def _drawn_from(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide which images there are."""
    keys = ["dataset", "train_path", "val_path", "limit", "fraction", "fraction_seed"]
    if settings.get("fraction") in (None, ALL):
        keys.remove("fraction_seed")  # nothing is drawn by it
    return {key: settings[key] for key in keys if key in settings}


def _probe(
    features: Callable[[Tensor], Tensor], halves: Halves, settings: Mapping[str, Any]
) -> dict[str, float]:
    return probe(features, halves, settings["k"], settings.get("temperature", TEMPERATURE))


def _references(
    backbone: Backbone, halves: Halves, settings: Mapping[str, Any], store: Path
) -> dict[str, dict[str, float]]:
    """What no training is worth on these images: name → metric → per cent."""
    blank = untrained(backbone)
    size, look = settings.get("size"), [backbone.crop_size, backbone.mean, backbone.std]
    how = [_drawn_from(settings), size, settings["k"], settings.get("temperature")]
    models = {
        UNTRAINED: (partial(extract_features, blank, size=size), weights_digest(blank)),
        COLOUR: (partial(mean_colours, backbone), ""),
    }
    found = {CHANCE: dict.fromkeys(METRICS, 100 / len(halves[0][1].unique()))}
    for name, (features, of_model) in models.items():
        file = store / f"{digest([VERSION, name, how, look, of_model])}.json"
        found[name] = once(file, partial(_probe, features, halves, settings))
    return found


def mean_colours(backbone: Backbone, images: Tensor) -> Tensor:
    """float32 [N, 3]: mean colours of uint8 [N, 3, H, W], normalised as the backbone's images."""
    means = [chunk.float().mean((2, 3)) / 255 for chunk in images.split(4096)]
    return (torch.cat(means) - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)


def weights_digest(backbone: Backbone) -> str:
    """A hash of a backbone's layers and weights."""
    known = hashlib.sha256(str(backbone.module).encode())
    for tensor in backbone.module.state_dict().values():
        known.update(tensor.cpu().contiguous().numpy().tobytes())
    return known.hexdigest()


def once(file: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Numbers that one run of the grid computes and the others read; another waits meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        known = read_json(file)
        if known is None:
            known = compute()
            write_json(file, known)
    return known
