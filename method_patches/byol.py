"""BYOL: prediction of a momentum target."""

from solo_infoaug.twin.spec import MethodSpec

SPEC = MethodSpec(
    title="BYOL",
    paper="https://arxiv.org/abs/2006.07733",
    positive="the patch's features are the twin's momentum features, both ways",
    heads=("projector", "predictor"),
    momentum_heads=("momentum_projector",),
)
