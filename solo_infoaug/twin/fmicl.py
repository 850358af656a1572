"""`fmicl:` in a solo-learn configuration: f-MICL instead of InfoNCE in three methods.

With `fmicl`, a method's training step is an `FMICLStep`: the step of its base class (forward
passes, online classifier, momentum), then the f-MICL loss of the features that would have gone into
InfoNCE. InfoNCE is not computed, and `method_kwargs.temperature` has no effect; σ replaces it. Each
method's module in `method_patches/` says what its loss is made of.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import load_host
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.objectives.metrics import alignment_and_uniformity
from solo_infoaug.twin.spec import find_method, fmicl_methods

# --- configuration ---------------------------------------------------------------------------


def read_fmicl(cfg: DictConfig, method: str) -> FMICLConfig | None:
    """The settings under `fmicl` of a solo-learn configuration, or None where it is off.

    Raises:
        ConfigError: an unknown key, a value that cannot be used, or a method without InfoNCE.
    """
    if OmegaConf.is_missing(cfg, "fmicl"):
        raise ConfigError("fmicl: expected a divergence's name or a mapping, got ???")
    config = FMICLConfig.parse(OmegaConf.select(cfg, "fmicl"))
    if config is not None:
        check_method(method, "fmicl")
    return config


def write_fmicl(cfg: DictConfig, config: FMICLConfig | None) -> None:
    """Put the settings back in full, so that args.json and auto-resume see what the run uses."""
    with open_dict(cfg):
        if config is None:
            cfg.pop("fmicl", None)
        else:
            cfg.fmicl = config.asdict()


def check_method(method: str, key: str) -> None:
    """Raise a ConfigError that names `key` unless f-MICL can replace the method's objective."""
    known = fmicl_methods()
    if method not in known:
        raise ConfigError(
            f"{key}: the method {method!r} has no InfoNCE that f-MICL could replace; "
            f"expected one of {', '.join(known)}"
        )


# --- the training step -----------------------------------------------------------------------


class FMICLStep:
    """The training step of one method, with f-MICL instead of InfoNCE."""

    def __init__(self, name: str, plain: type, config: FMICLConfig) -> None:
        """A step for instances of `plain` and its subclasses; `name` is their name in `METHODS`."""
        spec = find_method(name)
        assert spec.fmicl_terms is not None
        self.config, self.terms_of = config, spec.fmicl_terms
        self.loss = config.loss(**spec.fmicl_options)
        # this class's step is InfoNCE; the step of its base class is the rest
        self.owner = next(cls for cls in plain.__mro__ if "training_step" in vars(cls))

    @classmethod
    def of(cls, method: Any, kind: Any, config: FMICLConfig | None) -> FMICLStep | None:
        """The step of a method that has been built; None if f-MICL is off.

        `kind` has the method's name in `METHODS` and its class.

        Raises:
            ConfigError: the method is configured to pair by label.
        """
        if config is not None and getattr(method, "supervised", False):
            raise ConfigError("method_kwargs.supervised: expected False with fmicl, got True")
        return None if config is None else cls(kind.infoaug_name, kind.infoaug_plain, config)

    def __call__(self, method: Any, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch, logged through the method."""
        rest: Any = super(self.owner, method)
        outputs = load_host().project(method, rest.training_step(batch, batch_idx))
        terms, features = self.terms_of(method, outputs, self.loss)
        loss = terms.loss(self.config.alpha)
        aligned, uniform = alignment_and_uniformity(features[0], features[1])
        metrics = {
            "train_fmicl_loss": loss,
            "train_fmicl_positive": terms.positive,
            "train_fmicl_negative": terms.negative,
            "train_alignment": aligned,
            "train_uniformity": uniform,
        }
        method.log_dict(metrics, on_epoch=True, sync_dist=True)
        total: Tensor = loss + outputs["loss"]
        return total
