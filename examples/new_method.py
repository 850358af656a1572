"""A method of your own, with a twin branch: alignment and uniformity (arXiv:2005.10242).

    uv run python examples/new_method.py twins/ images/

`twins/` is a dictionary that `solo-infoaug mine` made, `images/` a folder with one for each class.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn import functional as F

from solo_infoaug import MethodSpec, add_method, load_config, pretrain, register
from solo_infoaug.host import load_host
from solo_infoaug.resources import config_folder
from solo_infoaug.training import TrainingResult

SimCLR: Any = load_host().methods["simclr"]  # for its projector


class AlignUniform(SimCLR):
    """Views of an image are close on the sphere, and images fill it."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """`batch` is [indices, one [B, 3, H, W] a crop, labels]."""
        x, y = (F.normalize(self(view)["z"], dim=1) for view in batch[1])
        spread = [torch.pdist(z).square().mul(-2).exp().mean().log() for z in (x, y)]
        loss = (x - y).square().sum(1).mean() + sum(spread) / 2
        self.log("train_align_uniform_loss", loss)
        return loss


load_host().methods["align_uniform"] = AlignUniform
add_method(
    "align_uniform",
    MethodSpec(
        title="Align and uniform",
        paper="https://arxiv.org/abs/2005.10242",
        positive="patch and twin are close, patches fill the sphere",
        heads=("projector",),
    ),
)
register()


def main(twins: str, images: str, *overrides: str) -> TrainingResult:
    """Pretrain it, both branches; more overrides in Hydra's grammar may follow."""
    more = [f"data.train_path='{images}'", f"++infoaug.twins='{twins}'", *overrides]
    cfg = load_config(config_folder() / "demo", "simclr", ["method=align_uniform", *more])
    result = pretrain(cfg)
    print({name: round(value, 3) for name, value in result.metrics.items() if "uniform" in name})
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
