"""MAE: reconstruction of the pixels that were masked. It has no pairs, so the branch makes some.

The backbone sees the visible tokens of the patch, and a decoder of the branch's own reconstructs
from them the pixels of the twin: all of them, for none of the twin's was seen. What the patch says
of its twin is what the tokens have to carry.
"""

from typing import Any

import torch

from solo_infoaug.twin.spec import MethodSpec


class TwinReconstruction:
    """MAE's loss, with the twin's pixels as the target of the patch's tokens."""

    norm_pix_loss: bool
    _vit_patch_size: int
    log: Any

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The views take turns: a patch's, its twin's, the next crop of the patch, …"""
        from solo.losses.mae import mae_loss_func

        views = batch[1]
        losses = []
        for patch, twin in zip(views[::2], views[1::2], strict=True):
            out = self(patch)  # type: ignore[operator]
            losses.append(
                mae_loss_func(
                    twin,
                    out["pred"],
                    torch.ones_like(out["mask"]),
                    self._vit_patch_size,
                    norm_pix_loss=self.norm_pix_loss,
                )
            )
        loss = torch.stack(losses).mean()
        self.log("train_reconstruction_loss", loss, on_epoch=True, sync_dist=True)
        return loss


SPEC = MethodSpec(
    title="MAE",
    paper="https://arxiv.org/abs/2111.06377",
    positive="a second decoder reconstructs all the twin's pixels from the patch's visible tokens",
    heads=("decoder",),
    hosts=("current",),
    branch=TwinReconstruction,
    both_views=True,
)
