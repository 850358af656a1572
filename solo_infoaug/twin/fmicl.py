"""`fmicl:` in a solo-learn configuration: f-MICL instead of InfoNCE in three methods.

`with_fmicl(name, method)` gives a subclass of a solo-learn method. Where the configuration has no
`fmicl` it is the plain method. Where it has, its training step is that of the method's base class
(forward passes, online classifier, momentum), followed by the f-MICL loss of the same features that
the method's own step would have fed to InfoNCE. Nothing of solo-learn is patched, and the method's
own InfoNCE is not computed. `method_kwargs.temperature` has no effect then: σ has its place.
What the loss of each of them is made of stands in its module of `method_patches/`.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import load_host
from solo_infoaug.host.method import Method
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.objectives.metrics import alignment_and_uniformity
from solo_infoaug.twin.method import find_method, fmicl_methods

_CHECKPOINT_KEY = "solo_infoaug_fmicl"


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


def check_checkpoint(checkpoint: dict[str, Any], config: FMICLConfig | None) -> None:
    """Raise a ConfigError unless the checkpoint was trained with this objective."""
    ours = None if config is None else config.asdict()
    theirs = checkpoint.get(_CHECKPOINT_KEY)
    if ours != theirs:
        raise ConfigError(
            f"fmicl: the checkpoint to resume was trained with {theirs or 'no fmicl'}, this "
            f"run has {ours or 'none'}; resume with the configuration that it was trained with"
        )


def check_method(method: str, key: str) -> None:
    """Raise a ConfigError that names `key` unless f-MICL can replace the method's objective."""
    known = fmicl_methods()
    if method not in known:
        raise ConfigError(
            f"{key}: the method {method!r} has no InfoNCE that f-MICL could replace; "
            f"expected one of {', '.join(known)}"
        )


# --- the subclass ----------------------------------------------------------------------------


class FMICLMethod(Method):
    """Mixed into every method of solo-learn by `with_fmicl`."""

    fmicl: FMICLConfig | None = None
    fmicl_name: str
    fmicl_plain: type
    fmicl_owner: type

    def __init__(self, cfg: DictConfig | None = None, *args: Any, **kwargs: Any) -> None:
        if cfg is None:  # the PyPI release's own keyword arguments
            super().__init__(*args, **kwargs)
            return
        config = read_fmicl(cfg, self.fmicl_name)
        super().__init__(cfg, *args, **kwargs)
        write_fmicl(cfg, config)
        if config is not None:
            self.use_fmicl(config)

    def use_fmicl(self, config: FMICLConfig) -> None:
        """Train with f-MICL from now on.

        Raises:
            ConfigError: the method is set to pair by label.
        """
        if getattr(self, "supervised", False):
            raise ConfigError("method_kwargs.supervised: expected False with fmicl, got True")
        self.fmicl = config
        self.fmicl_loss = config.loss(**find_method(self.fmicl_name).fmicl_options)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The method's own step; with `fmicl` the base class's, and f-MICL."""
        if self.fmicl is None:
            return super().training_step(batch, batch_idx)
        owner: Any = self.fmicl_owner
        outputs = super(owner, self).training_step(batch, batch_idx)
        terms_of = find_method(self.fmicl_name).fmicl_terms
        assert terms_of is not None
        outputs = load_host().project(self, outputs)
        terms, features = terms_of(self, outputs, self.fmicl_loss)
        loss = terms.loss(self.fmicl.alpha)
        aligned, uniform = alignment_and_uniformity(features[0], features[1])
        metrics = {
            "train_fmicl_loss": loss,
            "train_fmicl_positive": terms.positive,
            "train_fmicl_negative": terms.negative,
            "train_alignment": aligned,
            "train_uniformity": uniform,
        }
        self.log_dict(metrics, on_epoch=True, sync_dist=True)
        return loss + outputs["loss"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the objective that the run was trained with."""
        super().on_save_checkpoint(checkpoint)
        if self.fmicl is not None:
            checkpoint[_CHECKPOINT_KEY] = self.fmicl.asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on training with another objective.

        Raises:
            ConfigError: the checkpoint's `fmicl` is not that of this run.
        """
        super().on_load_checkpoint(checkpoint)
        trainer = getattr(self, "_trainer", None)
        if trainer is None or not trainer.training:
            return
        check_checkpoint(checkpoint, self.fmicl)


def with_fmicl(name: str, method: type) -> type:
    """A subclass of a solo-learn method that reads `fmicl` from its configuration.

    Args:
        name: of the method, as in `METHODS`.
        method: the plain class.
    """
    owner = next(cls for cls in method.__mro__ if "training_step" in vars(cls))
    members = {
        "fmicl_name": name,
        "fmicl_plain": method,
        "fmicl_owner": owner,
        # where pickle finds it
        "__module__": "solo_infoaug.registered",
        "__qualname__": f"{name}.infoaug_plain",
        "__doc__": method.__doc__,
    }
    return type(method.__name__, (FMICLMethod, method), members)
