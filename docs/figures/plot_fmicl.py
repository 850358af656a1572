"""Draws docs/figures/f-micl-convexity.png: f*∘f′∘G over the squared distances of the sphere.

uv run python docs/figures/plot_fmicl.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from solo_infoaug.objectives import DIVERGENCES, VISION, get_divergence
from solo_infoaug.objectives.divergences import NEYMAN, REVERSE_KL

OUT = Path(__file__).with_name("f-micl-convexity.png")


def main() -> None:
    s = torch.linspace(0, 4, 401, dtype=torch.float64)
    scale = 1 / (2 * VISION.sigma**2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    allowed = [get_divergence(name) for name in DIVERGENCES]
    for divergence in [*allowed, REVERSE_KL, NEYMAN]:
        x = s.clone().requires_grad_()
        value = divergence.composed_of_log(-scale * x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        bend = torch.zeros_like(x)
        if slope.requires_grad:  # reverse KL is linear
            (bend,) = torch.autograd.grad(slope.sum(), x)
        value = value.detach()
        style = "--" if divergence.refused else "-"
        label = f"{divergence.title}{' (refused)' if divergence.refused else ''}"
        left.plot(s, (value - value[-1]) / (value[0] - value[-1]), style, label=label)
        if not divergence.refused:
            right.semilogy(s, bend.detach(), style, label=label)
    left.set(
        xlabel="‖x − y‖²",
        ylabel="f*∘f′∘G, scaled to 1 at 0 and 0 at 4",
        title="The penalty of a negative pair, 1/(2σ²) = 1",
    )
    right.set(
        xlabel="‖x − y‖²",
        ylabel="second derivative of f*∘f′∘G",
        title="Strictly convex: above 0 on all of [0, 4]",
    )
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xlim(0, 4)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
