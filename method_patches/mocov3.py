"""MoCo v3: InfoNCE against the momentum keys of the batch."""

from solo_infoaug.twin.method import MethodPatch

PATCH = MethodPatch(
    title="MoCo v3",
    paper="https://arxiv.org/abs/2104.02057",
    positive="the patch's query finds the twin's momentum key in the batch, both ways",
    heads=("projector", "predictor"),
    hosts=("current",),
    momentum_heads=("momentum_projector",),
)
