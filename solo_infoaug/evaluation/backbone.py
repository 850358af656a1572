"""The backbone of a checkpoint: read without running its code, applied to images, exported."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from solo_infoaug._files import check_output_folder, new_file
from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation.in_timm import TimmModel, find_in_timm
from solo_infoaug.host import backbone_entries
from solo_infoaug.host.small import SmallResNet
from solo_infoaug.host.weights import read_checkpoint
from solo_infoaug.twin.registration import register


@dataclass(frozen=True)
class Backbone:
    """A backbone from a checkpoint, with the settings for its images."""

    module: nn.Module
    name: str
    crop_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cifar_stem: bool
    """3×3 first convolution and no max-pooling, as solo-learn builds ResNets for CIFAR."""
    cfg: DictConfig
    timm: TimmModel | None = None
    """Its model in timm, if that is not `name`; known after an export."""

    @property
    def standardize(self) -> bool | None:
        """Whether `small_resnet` standardises each image itself; None for every other backbone."""
        return bool(self.module.standardize) if isinstance(self.module, SmallResNet) else None


def checkpoint_config(checkpoint: str | Path) -> DictConfig:
    """The args.json in the folder of a checkpoint; a ConfigError if either is missing or wrong."""
    path = Path(checkpoint)
    if not path.is_file():
        raise ConfigError(f"checkpoint: expected a .ckpt file, got {checkpoint}")
    args = path.parent / "args.json"
    if not args.is_file():
        raise ConfigError(
            f"checkpoint: expected an args.json next to {path}, as solo-learn writes it"
        )
    try:
        cfg = OmegaConf.create(json.loads(args.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"checkpoint: {args} cannot be read ({error})") from error
    for key in ("method", "backbone.name", "data.dataset", "augmentations"):
        if OmegaConf.select(cfg, key) is None:
            raise ConfigError(f"checkpoint: {args} has no {key!r}, which solo-learn's have")
    assert isinstance(cfg, DictConfig)
    return cfg


def backbone_weights(checkpoint: str | Path) -> dict[str, Tensor]:
    """A checkpoint's weights of its backbone, by its own names; a ConfigError if there are none."""
    try:
        state = read_checkpoint(checkpoint)["state_dict"]
    except Exception as error:
        raise ConfigError(f"checkpoint: {checkpoint} cannot be read as one ({error})") from error
    weights = backbone_entries(state)
    if not weights:
        raise ConfigError(f"checkpoint: {checkpoint} has no backbone in its state dict")
    return weights


def load_backbone(checkpoint: str | Path) -> Backbone:
    """The trained backbone of a checkpoint, in evaluation mode.

    Raises:
        ConfigError: the checkpoint cannot be read, or does not fit its args.json.
    """
    cfg = checkpoint_config(checkpoint)
    weights = backbone_weights(checkpoint)
    host = register()
    module = host.build_backbone(cfg)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"checkpoint: its backbone is not the {cfg.backbone.name} of its args.json ({error})"
        ) from error
    entry = cfg.augmentations[0]
    mean, std = host.normalization(cfg.data.dataset, entry)
    return Backbone(
        module=module.eval().requires_grad_(False),
        name=str(cfg.backbone.name),
        crop_size=int(entry.crop_size),
        mean=tuple(mean),
        std=tuple(std),
        cifar_stem=isinstance(getattr(module, "maxpool", None), nn.Identity),
        cfg=cfg,
    )


def untrained(backbone: Backbone) -> Backbone:
    """The same backbone with random weights, drawn by the run's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(int(OmegaConf.select(backbone.cfg, "seed", default=0)))
        module = register().build_backbone(backbone.cfg).eval().requires_grad_(False)
    return replace(backbone, module=module)


@torch.no_grad()
def extract_features(
    backbone: Backbone, images: Tensor, size: int | None = None, batch_size: int = 256
) -> Tensor:
    """Features of images uint8 [N, 3, H, W], from the frozen backbone: float32 [N, D] on the CPU.

    Images are resized to squares of `size` pixels, by default to the training crop.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = backbone.module.to(device)
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (backbone.mean, backbone.std)
    )
    side = size or backbone.crop_size
    features = []
    for chunk in images.split(batch_size):
        x = chunk.to(device).float().div_(255)
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp_(0, 1)
        features.append(module((x - mean) / std).flatten(1).float().cpu())
    return torch.cat(features)


def export(checkpoint: str | Path, out: str | Path) -> Backbone:
    """Write only the backbone of a checkpoint, under the names that torchvision and timm use.

    Args:
        checkpoint: checkpoint of a pretraining run, in the folder of its args.json.
        out: `.safetensors`, or `.pth` for torch.save.

    Raises:
        ConfigError: another ending, or the checkpoint cannot be used.
        OutputError: `out` cannot be written.

    Examples:
        >>> export("trained/last.ckpt", "backbone.safetensors").name
        'resnet18'
        >>> from safetensors.torch import load_file
        >>> "layer1.0.conv1.weight" in load_file("backbone.safetensors")
        True
    """
    path = Path(out)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ConfigError(f"-o: expected a file ending in .safetensors or .pth, got {out}")
    check_output_folder(path.parent, "-o", path)
    backbone = load_backbone(checkpoint)
    if not backbone.name.startswith("resnet") and backbone.standardize is None:
        found = find_in_timm(backbone.module, backbone.cfg, backbone.crop_size)
        backbone = replace(backbone, timm=found)
    state = {name: tensor.contiguous() for name, tensor in backbone.module.state_dict().items()}
    with new_file(path, "-o") as fresh, fresh.open("wb") as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            notes = {"backbone": backbone.name, "cifar_stem": str(backbone.cifar_stem)}
            if backbone.standardize is not None:
                notes["standardize"] = str(backbone.standardize)
            if backbone.timm is not None:
                notes["timm"] = backbone.timm.name
                notes["timm_arguments"] = json.dumps(dict(backbone.timm.arguments))
            file.write(save(state, metadata=notes))
        else:
            torch.save(state, file)
    return backbone
