"""BYOL: prediction of a momentum target."""

from solo_infoaug.patch import MethodPatch

PATCH = MethodPatch(
    title="BYOL",
    paper="https://arxiv.org/abs/2006.07733",
    positive="the patch predicts the twin's momentum projection, both ways",
    heads=("projector", "predictor"),
    momentum_heads=("momentum_projector",),
)
