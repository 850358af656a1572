"""The `infoaug:` key of a solo-learn configuration, read strictly: a typo is an error."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from solo_infoaug._checks import is_number, is_whole, require
from solo_infoaug.dictionary.store import CACHE_GB, POSITIVES, TEMPORAL, is_temporal
from solo_infoaug.errors import ConfigError
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.twin.fmicl import check_method
from solo_infoaug.twin.spec import find_method

HEADS = ("full", "none")
BATCH_NORMS = ("shared", "separate", "frozen")
FILLED_IN = ("fingerprint", "chosen_by", "written", "videos")
"""Keys that say which dictionary a run used; users do not write them."""

LATER_KEYS = ("random_share", "distinct_windows", "min_distance")
"""Keys that runs saved earlier lack. To auto-resume, a missing key differs from every value. A run
therefore has these keys only where they are not at their defaults."""

FORMER_KEYS = {"arm": "positives", "others": "without_twin_share"}
"""Former names of keys. In a configuration they are an error that names the new key."""
FORMER_POSITIVES = {"mi": "twins", "random_anchor": "random_with_twin"}
"""Former names of two values of `positives`, when the key was `arm`."""


@dataclass
class InfoAugConfig:
    """What `infoaug:` may hold. `infoaug: true` is all defaults.

    Raises:
        ConfigError: a value cannot be used; the message names the key.
    """

    enabled: bool = True
    """false: the plain method, as if there were no `infoaug`."""

    twins: str | None = None
    """A twin dictionary: its folder, or a URL (`s3://bucket/twins`). Default: `SOLO_INFOAUG_TWINS`,
    or else the dictionary that `solo-infoaug mine` wrote last."""

    weight: float = 1.0
    """λ: the loss is the view branch's plus λ times the twin branch's."""

    batch_size: int | None = None
    """Twin pairs per step and process. Default: `optimizer.batch_size`."""

    augmentations: list[Any] | None = None
    """Views of the twin branch, in solo-learn's format, and Kornia's augmentations by their names
    (docs/views.md). Default: the run's own `augmentations`."""

    positives: str = "twins"
    """Partner of a patch. `twins`: its twin; `random`: any other patch of the same window;
    `random_with_twin`: any other patch that has a twin; `self`: the patch itself."""

    top_k: int = 1
    """Draw the twin from this many best candidates."""

    temporal: Any = False
    """true: show a patch and its twin at different moments of their tracks. A number: also in other
    windows that continue their tracks, at most this many seconds away."""

    without_twin_share: float = 0.0
    """Share of the pairs, in [0, 1), that are patches without a twin, each paired with itself. They
    show the branch what does not move by itself. Without them it sees only moving objects; if these
    are few, it learns to tell apart the parts of one object."""

    cache_gb: float = CACHE_GB
    """Gigabytes of the local disk that a dictionary at a URL may use; see docs/scale.md."""

    repeats: int = 1
    """How often each patch of a dictionary at a URL is drawn while its pack is on the local disk,
    if not all packs fit there."""

    random_share: float = 0.0
    """This share, in [0, 1], of the pairs with a twin are any other patch of the same window in its
    place, as `random` draws it."""

    distinct_windows: bool = False
    """Take no window twice in a batch while another is left, so that other pairs of the batch are
    rarely of the same thing."""

    min_distance: float = 0.0
    """Only twins this many patches away, or more, count; the miner's own minimum is 1. A patch
    whose twins are all nearer is one without a twin."""

    batch_norm: str = "shared"
    """How the backbone's batch norms treat twins. `shared`: like the run's images; `separate`: with
    their own statistics and weights; `frozen`: with the running statistics, which they do not
    update."""

    heads: str | None = None
    """`full`: the branch has its own projector and predictor. `none`: the branch compares the
    backbone's features after batch norm. Default: `full`; see docs/methods.md."""

    objective: Any = None
    """f-MICL in the twin branch alone, written like `fmicl`. false: the method's own objective.

    Default: `fmicl`, which applies to both branches.
    """

    fingerprint: str | None = None
    """Fingerprint of the dictionary. This and the following keys are filled in when a run
    starts."""

    chosen_by: str | None = None
    """How the dictionary was chosen; see `dictionary.locate.choose_dictionary`."""

    written: str | None = None
    """When the dictionary was written."""

    videos: list[str] | None = None
    """The videos that the dictionary was mined from."""

    def __post_init__(self) -> None:
        # an empty path is an unset variable of the shell, not a wish for the default
        path = isinstance(self.twins, (str, os.PathLike)) and self.twins != ""
        listed = isinstance(self.augmentations, (list, ListConfig)) and len(self.augmentations)
        pipelines = self.augmentations is None or listed
        batch = self.batch_size is None or is_whole(self.batch_size, 1)
        share = self.without_twin_share
        finite = is_number(self.weight, 0) and self.weight < float("inf")
        part = is_number(self.random_share, 0) and self.random_share <= 1
        apart = is_number(self.min_distance, 0) and self.min_distance < float("inf")
        for key, good, expected in (
            ("enabled", isinstance(self.enabled, bool), "true or false"),
            ("temporal", is_temporal(self.temporal), TEMPORAL),
            ("twins", self.twins is None or path, "the folder of a twin dictionary"),
            ("positives", self.positives in POSITIVES, f"one of {', '.join(POSITIVES)}"),
            ("heads", self.heads in (None, *HEADS), f"one of {', '.join(HEADS)}"),
            ("batch_norm", self.batch_norm in BATCH_NORMS, f"one of {', '.join(BATCH_NORMS)}"),
            ("weight", finite, "a finite number ≥ 0"),
            ("without_twin_share", is_number(share, 0) and share < 1, "a number in [0, 1)"),
            ("top_k", is_whole(self.top_k, 1), "a whole number ≥ 1"),
            ("cache_gb", is_number(self.cache_gb, 0), "a number of gigabytes"),
            ("repeats", is_whole(self.repeats, 1), "a whole number ≥ 1"),
            ("batch_size", batch, "a whole number ≥ 1"),
            ("random_share", part, "a number in [0, 1]"),
            ("distinct_windows", isinstance(self.distinct_windows, bool), "true or false"),
            ("min_distance", apart, "a finite number ≥ 0"),
            ("augmentations", pipelines, "a list of pipelines as in solo-learn's `augmentations`"),
        ):
            require(good, f"infoaug.{key}", expected, getattr(self, key))
        objective = FMICLConfig.parse(self.objective, key="infoaug.objective")
        if objective is not None:
            self.objective = objective.asdict()


# Further keys that auto-resume compares: a run resumes only one with the same twins (wherever they
# are stored) and the same objective.
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
            "infoaug: expected true, false or a mapping, got ??? (a value that is still missing)"
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
        if key in FORMER_KEYS:
            raise ConfigError(_renamed(key, OmegaConf.select(given, key)))
        if key not in InfoAugConfig.__dataclass_fields__:
            close = difflib.get_close_matches(key, InfoAugConfig.__dataclass_fields__, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"infoaug.{key}: no such key{hint} The keys are {_known_keys()}")
        if isinstance(given, DictConfig) and OmegaConf.is_missing(given, key):
            raise ConfigError(
                f"infoaug.{key}: expected a value, got ??? (a value that is still missing)"
            )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(InfoAugConfig), given)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = f"infoaug.{error.full_key}" if error.full_key else "infoaug"
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, InfoAugConfig)
    return config if config.enabled else None


def _renamed(key: str, value: object) -> str:
    """What to write instead of a former key."""
    text, today = f"infoaug.{key}: this key is now infoaug.{FORMER_KEYS[key]}", value
    if key == "arm":
        former = {today: before for before, today in FORMER_POSITIVES.items()}
        values = [f"{p} (was {former[p]})" if p in former else p for p in POSITIVES]
        text += f", with the values {', '.join(values)}"
        today = FORMER_POSITIVES.get(str(value), value)
    return f"{text}; write infoaug.{FORMER_KEYS[key]}: {today}"


def from_former_keys(infoaug: Mapping[Any, Any]) -> dict[str, Any]:
    """The settings of a run, with former names replaced by the new ones."""
    found = {FORMER_KEYS.get(key, key): value for key, value in infoaug.items()}
    if "arm" in infoaug:
        found["positives"] = FORMER_POSITIVES.get(infoaug["arm"], infoaug["arm"])
    return found


def to_former_keys(infoaug: Mapping[Any, Any]) -> dict[str, Any]:
    """The inverse of `from_former_keys`."""
    names = {today: former for former, today in FORMER_KEYS.items()}
    values = {today: former for former, today in FORMER_POSITIVES.items()}
    found = {names.get(key, key): value for key, value in infoaug.items()}
    if "positives" in infoaug:
        found["arm"] = values.get(infoaug["positives"], infoaug["positives"])
    return found


def complete_infoaug(cfg: DictConfig, method: str) -> InfoAugConfig | None:
    """`read_infoaug`, with the defaults that depend on the run and its method filled in.

    Raises:
        ConfigError: as `read_infoaug`; or the method has no twin branch, or no InfoNCE to replace.
    """
    config = read_infoaug(cfg)
    if config is not None:
        find_method(method)  # an error for a method that has no twin branch
        config.heads = config.heads or "full"
        config.batch_size = config.batch_size or int(cfg.optimizer.batch_size)
        if config.objective:
            check_method(method, "infoaug.objective")
    return config


def _known_keys() -> str:
    return ", ".join(key for key in InfoAugConfig.__dataclass_fields__ if key not in FILLED_IN)


def write_infoaug(cfg: DictConfig, config: InfoAugConfig | None) -> None:
    """Put the settings back in full, so that args.json and auto-resume see what the run uses.

    `LATER_KEYS` at their defaults are left out, as in runs that were saved before they existed. If
    InfoAug is off, the key is removed: `infoaug: false` is plain solo-learn.
    """
    with open_dict(cfg):
        if config is None:
            cfg.pop("infoaug", None)
        else:
            cfg.infoaug = {
                key: value
                for key, value in dataclasses.asdict(config).items()
                if key not in LATER_KEYS or value != getattr(InfoAugConfig, key)
            }
