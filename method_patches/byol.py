"""BYOL: prediction of a momentum target.

Without heads in the twin branch. With them its loss falls as well, but projector and predictor
carry the link: on `scenes` (docs/methods.md, seed 100) 23 per cent across parts, with batch norm in
their place 67.
"""

from solo_infoaug.twin.spec import MethodSpec

SPEC = MethodSpec(
    title="BYOL",
    paper="https://arxiv.org/abs/2006.07733",
    positive="the patch's features are the twin's momentum features, both ways",
    heads_by_default="none",
    heads=("projector", "predictor"),
    momentum_heads=("momentum_projector",),
)
