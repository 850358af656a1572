"""Twins as positives in a plain PyTorch loop: no solo-learn, no Lightning.

A `TwinBranch` goes next to any other training of a backbone. Here that is one more of them, whose
pairs are two views of one patch; yours would be the loss of your own images.

uv run python examples/plain_pytorch.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solo_infoaug import InfoAugConfig, MineConfig, TwinBranch, fmicl_loss, mine
from solo_infoaug.mining import sample_clips
from solo_infoaug.views import build_pipeline

VIEWS = {
    "crop_size": 32,
    "num_crops": 2,
    "rrc": {"enabled": True, "crop_min_scale": 0.4, "crop_max_scale": 1.0},
    "horizontal_flip": {"prob": 0.5},
}


def pull_together(x: Tensor, y: Tensor) -> Tensor:
    """Any loss of two views, [B, D] each."""
    return fmicl_loss(x, y, "js")


def main(steps: int = 20) -> list[float]:
    """Mine a few seconds of a sample clip and train a small network; returns the losses."""
    with tempfile.TemporaryDirectory() as folder:
        clip, part = sample_clips()[0], MineConfig(start_fraction=0.2, stop_fraction=0.35)
        dictionary = mine(clip, Path(folder) / "twins", part, progress=False)
        print(dictionary.summary)

        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
        )

        def branch(positives: str) -> TwinBranch:
            settings = InfoAugConfig(twins=str(dictionary.path), batch_size=32, positives=positives)
            views = [build_pipeline(VIEWS, mean=[0.5] * 3, std=[0.25] * 3)]
            heads = nn.Linear(32 * 7 * 7, 64)
            return TwinBranch.around(backbone, pull_together, settings, views, heads=heads)

        own, twins = branch("self"), branch("twins")
        groups: list[Any] = [{"params": backbone.parameters()}]
        groups += own.parameter_groups + twins.parameter_groups
        optimizer = torch.optim.Adam(groups, lr=1e-3)
        losses = []
        for step in range(steps):
            loss = own.loss(step) + twins.loss(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
