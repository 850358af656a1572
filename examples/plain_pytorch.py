"""Twins as positives in a plain PyTorch loop: no solo-learn, no Lightning.

uv run python examples/plain_pytorch.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torchvision.transforms import v2

from solo_infoaug import MineConfig, fmicl_loss, mine
from solo_infoaug.mining import sample_clips


def main(steps: int = 20) -> list[float]:
    """Mine a few seconds of a sample clip and train a small network; returns the losses."""
    with tempfile.TemporaryDirectory() as folder:
        clip = sample_clips()[0]
        twins = mine(
            clip,
            Path(folder) / "twins",
            MineConfig(start_fraction=0.2, stop_fraction=0.35),
            progress=False,
        )
        print(twins.summary)

        views = v2.Compose(
            [
                v2.RandomResizedCrop(32, scale=(0.4, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(64),
        )
        network(torch.zeros(1, 3, 32, 32))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        draw = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(steps):
            patch, twin, _ = twins.sample(32, draw, arm="mi")  # uint8 [32, 3, H, W], twice
            loss = fmicl_loss(network(views(patch)), network(views(twin)), "js")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
