"""Feature maps of a backbone: features of each place of an image."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet

from solo_infoaug._checks import require
from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation.backbone import Backbone
from solo_infoaug.host.small import SmallResNet


def _stages(module: ResNet | SmallResNet) -> nn.Sequential:
    """The layers up to a ResNet's third stage (layer3), or to the last stage of the small one."""
    if isinstance(module, SmallResNet):
        return nn.Sequential(*list(module)[:-2])
    layers = [module.conv1, module.bn1, module.relu, module.maxpool]
    return nn.Sequential(*layers, module.layer1, module.layer2, module.layer3)


def has_map(module: Any) -> bool:
    """Whether `MapOf` knows the feature maps of a backbone."""
    of_timm = all(hasattr(module, name) for name in ("set_input_size", "num_prefix_tokens"))
    return isinstance(module, ResNet | SmallResNet) or of_timm


class MapOf:
    """uint8 [3, H, W] → feature map [C, h, w] of a backbone.

    * ResNets: layer3; with `stride` 8, without its own stride, as in Jabri et al. 2020.
    * `small_resnet`: its last stage, in the same way.
    * timm's vision transformers: the patch tokens of the last block; `stride` is their patch's.

    Raises:
        ConfigError: another kind of backbone.
    """

    def __init__(self, backbone: Backbone, size: int, stride: int = 8) -> None:
        """`size`: the shorter side of the images in pixels; `stride`: 8 or 16 pixels a place."""
        require(stride in (8, 16), "--stride", "8 or 16", stride)
        self.backbone, self.size = backbone, size
        self.module: Any = deepcopy(backbone.module).eval()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.convolutional = isinstance(self.module, ResNet | SmallResNet)
        if self.convolutional:
            self.stages = _stages(self.module).to(self.device)
            if stride == 8:
                for layer in self.stages[-1].modules():
                    if isinstance(layer, nn.Conv2d):
                        layer.stride = (1, 1)
        elif not has_map(self.module):
            raise ConfigError(
                f"--data davis: expected a ResNet, small_resnet or one of timm's vision "
                f"transformers, whose feature maps are known, got {backbone.name}"
            )
        else:
            embed: Any = self.module.patch_embed
            self.patch = int(embed.patch_size[0])
            self.module.to(self.device)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """The feature map [C, h, w] of an image uint8 [3, H, W]."""
        x = image[None].to(self.device).float().div_(255)
        shorter = min(x.shape[-2:])
        height, width = (round(n * self.size / shorter) for n in x.shape[-2:])
        if not self.convolutional:
            height, width = (max(1, round(n / self.patch)) * self.patch for n in (height, width))
        if x.shape[-2:] != (height, width):
            x = F.interpolate(x, (height, width), mode="bicubic", antialias=True).clamp_(0, 1)
        mean, std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (self.backbone.mean, self.backbone.std)
        )
        x = (x - mean) / std
        if self.convolutional:
            if self.backbone.standardize:
                x = F.layer_norm(x, x.shape[1:])
            found: Tensor = self.stages(x)[0]
            return found
        if self.module.patch_embed.img_size != (height, width):
            self.module.set_input_size(img_size=(height, width))
        tokens = self.module.forward_features(x)[0, self.module.num_prefix_tokens :]
        return tokens.T.reshape(-1, height // self.patch, width // self.patch)


def colour_map(image: Tensor, size: int, stride: int = 8) -> Tensor:
    """Mean colours as unit vectors [4, h, w] whose cosine falls with the distance of colours."""
    shorter = min(image.shape[-2:])
    shape = [max(1, round(n * size / shorter / stride)) for n in image.shape[-2:]]
    colour = F.interpolate(image[None].float() / 255, shape, mode="area")[0]
    rest = (3 - colour.square().sum(0, keepdim=True)).clamp_(min=0).sqrt()
    return torch.cat([colour, rest]) / 3**0.5
