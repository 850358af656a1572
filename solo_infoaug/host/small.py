"""`small_resnet`: a backbone for benchmarks on small images, which solo-learn does not have.

The smallest ResNet of either solo-learn has 11 million parameters. On a CPU, a benchmark with it
could only take so few steps that no method would learn.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

SMALL = "small_resnet"
"""Its name in `backbone.name`."""

_WIDTHS = (32, 64, 128)


class SmallResNet(nn.Sequential):
    """A stem of stride 4 and one of torchvision's basic blocks at 32, 64 and 128 channels.

    float32 [N, 3, H, W] → [N, 128]; 0.31 million parameters. A step on 32 × 32 pixels takes a
    twelfth of ResNet-18's time on one core.
    """

    num_features = _WIDTHS[-1]

    def __init__(self, method: str | None = None, *, standardize: bool = False) -> None:
        """Random weights.

        Args:
            method: ignored; solo-learn passes it to every backbone.
            standardize: first give each image, all its channels together, mean 0 and variance 1
                (`backbone.kwargs.standardize`). Brightness and contrast are the easiest things that
                two views share: without this, BYOL and SimSiam learn little else in 140 to 560
                steps (docs/results.md). Colours stay. The setting is part of the state dict, so
                weights bring the one that they were trained with.
        """
        first = _WIDTHS[0]
        layers: list[nn.Module] = [
            nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            BasicBlock(first, first),
        ]
        for before, width in pairwise(_WIDTHS):
            shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride=2, bias=False), nn.BatchNorm2d(width)
            )
            layers.append(BasicBlock(before, width, 2, shortcut))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.standardize: Tensor
        self.register_buffer("standardize", torch.tensor(standardize))

    def forward(self, images: Tensor) -> Tensor:
        """float32 [N, 3, H, W] → [N, 128]."""
        # a choice that does not wait for the device to say which
        standardized = F.layer_norm(images, images.shape[1:])
        return super().forward(torch.where(self.standardize, standardized, images))
