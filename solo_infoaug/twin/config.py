"""The `infoaug:` key of a solo-learn configuration, read strictly: a typo is an error."""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from solo_infoaug._checks import is_number, is_whole, require
from solo_infoaug.dictionary.store import CACHE_GB, PARTNERS, TEMPORAL, is_temporal
from solo_infoaug.errors import ConfigError
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.twin.fmicl import check_method
from solo_infoaug.twin.spec import find_method

HEADS = ("full", "none")
BATCH_NORMS = ("shared", "separate", "frozen")
FILLED_IN = ("fingerprint", "chosen_by", "written", "videos")
"""Keys that say which dictionary a run used; users do not write them."""


@dataclass
class InfoAugConfig:
    """What `infoaug:` may hold. `infoaug: true` is all defaults.

    Raises:
        ConfigError: a value cannot be used; the message names the key.
    """

    enabled: bool = True
    """False is the plain method, as if there were no `infoaug`."""

    twins: str | None = None
    """A twin dictionary: its folder, or a URL (`s3://bucket/twins`). Default:
    `SOLO_INFOAUG_TWINS`, else the one that `solo-infoaug mine` made last."""

    weight: float = 1.0
    """λ: the loss is that of the view branch plus λ times that of the twin branch."""

    batch_size: int | None = None
    """Twin pairs a step and process. Default: `optimizer.batch_size`."""

    augmentations: list[Any] | None = None
    """Views of the twin branch, in solo-learn's format, and Kornia's augmentations by their names
    (docs/views.md). Default: the run's own `augmentations`."""

    arm: str = "mi"
    """`mi`: the twin; `random`: any other patch of the same window; `random_anchor`: any other one
    that has a twin; `self`: the patch itself."""

    top_k: int = 1
    """Draw the twin among this many best."""

    temporal: Any = False
    """true: show a patch and its twin at different moments of their tracks. A number: also what
    continues their tracks in other windows, this many seconds before or after at most."""

    others: float = 0.0
    """This share of the pairs, in [0, 1), are patches without a twin, each paired with itself. They
    show the branch what does not move by itself; without them all it sees are moving objects, and
    where these are few, what it tells apart are parts of one object."""

    cache_gb: float = CACHE_GB
    """How much of the local disk a dictionary at a URL may take; see docs/scale.md."""

    repeats: int = 1
    """How often each patch of a dictionary at a URL is drawn while its pack is on the local disk,
    where that has no room for all packs."""

    batch_norm: str = "shared"
    """How the backbone's batch norms see twins: `shared` with the run's images, `separate` with
    statistics and weights of their own, `frozen` with the running statistics as they are."""

    heads: str | None = None
    """`full`: the branch has projector and predictor of its own; `none`: batch-normalised features
    of the backbone are compared as they are. Default: what the method's module says."""

    objective: Any = None
    """f-MICL in the twin branch alone, written as `fmicl` is; false: the method's own objective.

    Default: what `fmicl` says for both branches.
    """

    fingerprint: str | None = None
    """Of the dictionary; this and the rest are filled in when the run starts."""

    chosen_by: str | None = None
    """The rule by which it is this dictionary; see `dictionary.locate.choose_dictionary`."""

    written: str | None = None
    """When it was."""

    videos: list[str] | None = None
    """Of which it was mined."""

    def __post_init__(self) -> None:
        # an empty path is a variable of the shell that is not set, and no wish for the default
        path = isinstance(self.twins, (str, os.PathLike)) and self.twins != ""
        pipelines = isinstance(self.augmentations, (list, ListConfig)) and len(self.augmentations)
        batch = self.batch_size is None or is_whole(self.batch_size, 1)
        finite = is_number(self.weight, 0) and self.weight < float("inf")
        for key, good, expected in (
            ("enabled", isinstance(self.enabled, bool), "true or false"),
            ("temporal", is_temporal(self.temporal), TEMPORAL),
            ("twins", self.twins is None or path, "the folder of a twin dictionary"),
            ("arm", self.arm in PARTNERS, f"one of {', '.join(PARTNERS)}"),
            ("heads", self.heads in (None, *HEADS), f"one of {', '.join(HEADS)}"),
            ("batch_norm", self.batch_norm in BATCH_NORMS, f"one of {', '.join(BATCH_NORMS)}"),
            ("weight", finite, "a finite number ≥ 0"),
            ("others", is_number(self.others, 0) and self.others < 1, "a number in [0, 1)"),
            ("top_k", is_whole(self.top_k, 1), "a whole number ≥ 1"),
            ("cache_gb", is_number(self.cache_gb, 0), "a number of gigabytes"),
            ("repeats", is_whole(self.repeats, 1), "a whole number ≥ 1"),
            ("batch_size", batch, "a whole number ≥ 1"),
            (
                "augmentations",
                self.augmentations is None or pipelines,
                "a list of pipelines as in solo-learn's `augmentations`",
            ),
        ):
            require(good, f"infoaug.{key}", expected, getattr(self, key))
        objective = FMICLConfig.parse(self.objective, key="infoaug.objective")
        if objective is not None:
            self.objective = objective.asdict()


# What auto-resume compares as well: a run only goes on from one with the same twins, wherever they
# lie, and the same objective.
SHOULD_MATCH = [
    f"infoaug.{key}"
    for key in InfoAugConfig.__dataclass_fields__
    if key not in ("enabled", "twins", "chosen_by", "written", "videos", "cache_gb", "repeats")
]
SHOULD_MATCH += ["fmicl", "init"]


def read_infoaug(cfg: DictConfig) -> InfoAugConfig | None:
    """The settings under `infoaug` of a solo-learn configuration, or None where it is off.

    Raises:
        ConfigError: an unknown key or a value that cannot be used; the message names it.
    """
    if OmegaConf.is_missing(cfg, "infoaug"):
        raise ConfigError(
            "infoaug: expected true, false or a mapping, got ??? (a value to be given)"
        )
    given = OmegaConf.select(cfg, "infoaug")
    if given is None or given is False:
        return None
    if given is True:
        return InfoAugConfig()
    if not isinstance(given, DictConfig):
        raise ConfigError(
            f"infoaug: expected true, false or a mapping with the keys {_known_keys()}, "
            f"got {given!r}"
        )
    for key in map(str, given):
        if key not in InfoAugConfig.__dataclass_fields__:
            close = difflib.get_close_matches(key, InfoAugConfig.__dataclass_fields__, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"infoaug.{key}: no such key{hint} The keys are {_known_keys()}")
        if isinstance(given, DictConfig) and OmegaConf.is_missing(given, key):
            raise ConfigError(f"infoaug.{key}: expected a value, got ??? (a value to be given)")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(InfoAugConfig), given)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = f"infoaug.{error.full_key}" if error.full_key else "infoaug"
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, InfoAugConfig)
    return config if config.enabled else None


def complete_infoaug(cfg: DictConfig, method: str) -> InfoAugConfig | None:
    """`read_infoaug`, with what follows from the run and its method filled in.

    Raises:
        ConfigError: as there; or a method without a twin branch, or without an InfoNCE to replace.
    """
    config = read_infoaug(cfg)
    if config is not None:
        config.heads = config.heads or find_method(method).heads_by_default
        config.batch_size = config.batch_size or int(cfg.optimizer.batch_size)
        if config.objective:
            check_method(method, "infoaug.objective")
    return config


def _known_keys() -> str:
    return ", ".join(key for key in InfoAugConfig.__dataclass_fields__ if key not in FILLED_IN)


def write_infoaug(cfg: DictConfig, config: InfoAugConfig | None) -> None:
    """Put the settings back in full, so that args.json and auto-resume see what the run uses.

    Off leaves no key: a configuration with `infoaug: false` is that of plain solo-learn.
    """
    with open_dict(cfg):
        if config is None:
            cfg.pop("infoaug", None)
        else:
            cfg.infoaug = dataclasses.asdict(config)
