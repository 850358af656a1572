"""The `fmicl:` key of a config as a dataclass. Typos are errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from solo_infoaug.errors import ConfigError
from solo_infoaug.objectives.loss import VISION, FMICLLoss


@dataclass(frozen=True)
class FMICLConfig:
    """`fmicl: js`, or `fmicl: {divergence: js, alpha: 10}`.

    Raises:
        ConfigError: if a value cannot be used; the message names the key.
    """

    divergence: str = "kl"
    """`kl`, `js`, `pearson`, `hellinger`, `tsallis` or `vlc`."""

    similarity: str = "gaussian"
    """`gaussian` or `cosine`."""

    alpha: float = VISION.alpha
    """Weight of the negative term; by default the paper's for images."""

    sigma: float = VISION.sigma
    """Width σ of the kernel; by default the paper's for images, 1/(2σ²) = 1."""

    order: float | None = None
    """The a of `tsallis`; no other divergence has one."""

    def __post_init__(self) -> None:
        for key in ("divergence", "similarity"):
            if not isinstance(getattr(self, key), str):
                raise ConfigError(f"fmicl.{key}: expected a name, got {getattr(self, key)!r}")
        try:
            self.loss()
        except ValueError as error:
            raise ConfigError(f"fmicl.{error}") from error

    @classmethod
    def parse(cls, value: object, key: str = "fmicl") -> FMICLConfig | None:
        """The config that a user wrote under `key`; None if f-MICL is off.

        The value is a divergence's name; a mapping (also OmegaConf's) with any of the fields; True
        for the defaults; None or False for off.

        Raises:
            ConfigError: for any other type, an unknown key, or a value that cannot be used.
        """
        if value is None or value is False:
            return None
        if value is True:
            value = {}
        if isinstance(value, str):
            value = {"divergence": value}
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{key}: expected a divergence's name or a mapping, got {type(value).__name__} "
                f"{value!r}"
            )
        known = [field.name for field in fields(cls)]
        for name in value:
            if name not in known:
                raise ConfigError(f"{key}.{name}: unknown key; known keys are {', '.join(known)}")
        try:
            return cls(**{str(name): value[name] for name in value})
        except ConfigError as error:
            raise ConfigError(f"{key}.{str(error).removeprefix('fmicl.')}") from error

    def loss(self, *, negatives: str = "views", gather: bool = False) -> FMICLLoss:
        """The loss of this config."""
        return FMICLLoss(**self.asdict(), negatives=negatives, gather=gather)

    def asdict(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)
