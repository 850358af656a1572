"""Find the model of timm that a backbone is, by loading its weights into candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

# The models that solo-learn's own constructors build, for models that do not name it.
_NAMES = {f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")}
_SEED = 0


@dataclass(frozen=True)
class TimmModel:
    """A model of timm that takes a backbone's weights and gives the same features."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def call(self) -> str:
        """The call to type."""
        given = "".join(f", {key}={value!r}" for key, value in self.arguments.items())
        return f'timm.create_model("{self.name}"{given})'


def find_in_timm(module: nn.Module, cfg: DictConfig, crop_size: int) -> TimmModel | None:
    """The model of timm that a backbone is, which is in evaluation mode; None if none is known."""
    import timm

    side = getattr(getattr(module, "patch_embed", None), "img_size", None) or (crop_size, crop_size)
    image = torch.rand(1, 3, *side, generator=torch.Generator().manual_seed(_SEED))
    with torch.no_grad():
        wanted = module(image).flatten(1)
    for name, arguments in _candidates(module, cfg):
        try:
            model = timm.create_model(name, **arguments).eval()
            model.load_state_dict(module.state_dict())
            with torch.no_grad():
                got = model(image).flatten(1)
        except Exception:  # timm's models may raise anything for unknown arguments
            continue
        if got.shape == wanted.shape and torch.allclose(got, wanted, rtol=1e-3, atol=1e-4):
            return TimmModel(name, arguments)
    return None


def _candidates(module: nn.Module, cfg: DictConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    stored = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    known: dict[str, Any] = {}
    if (patches := getattr(module, "patch_embed", None)) is not None:
        for key in ("img_size", "patch_size"):
            height, width = getattr(patches, key, None) or (None, None)
            if height is not None and height == width:
                known[key] = int(height)
    given: Any = OmegaConf.to_container(OmegaConf.create(cfg.backbone.get("kwargs") or {}))
    # the weights do not show the number of heads
    blocks = list(getattr(module, "blocks", None) or [])
    heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None
    for name in dict.fromkeys([stored.get("architecture"), _NAMES.get(cfg.backbone.name)]):
        if name is None:
            continue
        for more in ({}, {"num_heads": heads}) if heads else ({},):
            for settings in (known, {**known, **given}):
                yield name, {**settings, **more, "num_classes": 0}
