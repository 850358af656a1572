"""A ResNet-18 of an eighth of the width, for tests that are about anything but the backbone.

It has the modules, batch norms and state-dict keys of torchvision's; 64 features, 0.2 M weights
instead of 512 and 11 M. Programs that tests start in a process of their own install it themselves.
"""

from __future__ import annotations

from typing import Any

import pytest
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

_NARROWER = 8


class SlimResNet(ResNet):
    """torchvision's ResNet, whose four stages are narrower."""

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // _NARROWER, *args, **kwargs)


def resnet18(method: str | None = None, **kwargs: Any) -> SlimResNet:
    """Called as torchvision's (by solo-learn's release) or as the current solo-learn's own."""
    return SlimResNet(BasicBlock, [2, 2, 2, 2], **kwargs)


def install(host: Any, patch: pytest.MonkeyPatch) -> None:
    """Let solo-learn's methods build this one where a configuration says `resnet18`."""
    if host.info.kind == "current":
        patch.setitem(host.backbones, "resnet18", resnet18)
    else:
        patch.setattr(torchvision.models, "resnet18", resnet18)
