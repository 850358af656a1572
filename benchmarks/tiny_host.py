"""solo-learn methods over a tiny backbone, for benchmarks that must run on two CPU cores."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

FEATURES = 512  # what the methods' heads expect of resnet18


class TinyBackbone(nn.Sequential):
    """[N, 3, 16, 16] → [N, 512]: three convolutions with batch normalisation."""

    def __init__(self) -> None:
        def block(channels: int, out: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
            return [convolution, nn.BatchNorm2d(out), nn.ReLU()]

        super().__init__(*block(3, 16, 2), *block(16, 32, 2), *block(32, 128, 2), nn.Flatten())


def configuration(method: str, *, steps: int, batch: int, lr: float, **extra: Any) -> Any:
    """A configuration of the current solo-learn, as its `parse_cfg` would leave it."""
    return OmegaConf.create(
        {
            "name": method,
            "method": method,
            "backbone": {"name": "resnet18", "kwargs": {}},
            "method_kwargs": {
                "proj_hidden_dim": 256,
                "proj_output_dim": 64,
                "pred_hidden_dim": 256,
                "temperature": 0.2,
                "queue_size": 8 * batch,
            },
            "momentum": {"base_tau": 0.99, "final_tau": 1.0},
            "data": {
                "dataset": "custom",
                "num_classes": 10,
                "num_large_crops": 2,
                "num_small_crops": 0,
            },
            "optimizer": {
                "name": "adam",
                "batch_size": batch,
                "lr": lr,
                "classifier_lr": 0.002,
                "weight_decay": 1e-6,
                "kwargs": {},
            },
            "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0.05, "interval": "step"},
            "max_epochs": 1,
            "accumulate_grad_batches": 1,
            "seed": 0,
            **extra,
        }
    )


def shrink(model: Any) -> Any:
    """Put the tiny backbone in the place of the model's own, on either host; the model again."""
    for name in ("backbone", "encoder", "momentum_backbone", "momentum_encoder"):
        if name in model._modules:
            setattr(model, name, TinyBackbone())
    for online, momentum in model.momentum_pairs if hasattr(model, "momentum_pairs") else []:
        momentum.load_state_dict(online.state_dict())
        momentum.requires_grad_(False)
    return model


@torch.no_grad()
def features(model: Any, images: Tensor) -> Tensor:
    """[N, 3, 16, 16] → [N, 512] of the backbone in evaluation mode."""
    backbone = model.backbone
    training = backbone.training
    backbone.eval()
    out: Tensor = backbone(images.to(next(backbone.parameters()).device)).flatten(1).cpu()
    backbone.train(training)
    return out
