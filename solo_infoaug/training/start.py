"""Pretraining that begins with weights there are already: the key `init`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo_infoaug._checks import require
from solo_infoaug._files import expanded
from solo_infoaug.errors import ConfigError
from solo_infoaug.host.weights import TIMM, Fit, initial_weights
from solo_infoaug.twin.batch_norm import exchanged


def read_init(cfg: DictConfig) -> str | None:
    """The key `init`, with a whole path where it is a file; None where it is not given.

    Raises:
        ConfigError: it is neither a file nor `timm:NAME`.
    """
    init = OmegaConf.select(cfg, "init")
    if init is None:
        return None
    good = isinstance(init, str) and init not in ("", TIMM)
    require(good, "init", f"a checkpoint or {TIMM}NAME", init)
    if init.startswith(TIMM):
        return str(init)
    path = expanded(init)
    if not path.is_file():
        tried = "" if path.is_absolute() else f" (looked for {path.absolute()})"
        raise ConfigError(
            f"init: expected a checkpoint or {TIMM}NAME, got {init}, which is not a file{tried}"
        )
    return str(Path(path).resolve())


def begin_with(model: Any, init: str) -> Fit:
    """Give a method's backbone, and its momentum backbone, the weights that `init` has for it.

    Heads and all else stay as they are. Batch norms that the twin branch has of its own begin with
    the same.

    Raises:
        ConfigError: it cannot be read or downloaded, or nothing in it fits.
    """
    found = initial_weights(init, model.backbone)
    twin = getattr(model, "twin", None)
    for name, norms in (("backbone", "norms"), ("momentum_backbone", "momentum_norms")):
        backbone = getattr(model, name, None)
        if backbone is None:
            continue
        backbone.load_state_dict(found.taken, strict=False)
        own = getattr(twin, norms, None)
        if own is not None:
            with exchanged(backbone, own):
                backbone.load_state_dict(found.taken, strict=False)
    return found
