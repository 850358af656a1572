"""SimSiam: prediction of the other view, gradients stopped.

Without heads in the twin branch: projector and predictor would carry the link (see byol.py).
"""

from solo_infoaug.twin.spec import MethodSpec

SPEC = MethodSpec(
    title="SimSiam",
    paper="https://arxiv.org/abs/2011.10566",
    positive="the patch's features are the twin's, whose gradient is stopped, both ways",
    heads_by_default="none",
    heads=("projector", "predictor"),
)
