"""SimSiam: prediction of the other view, gradients stopped."""

from solo_infoaug.twin.spec import MethodSpec

SPEC = MethodSpec(
    title="SimSiam",
    paper="https://arxiv.org/abs/2011.10566",
    positive="the patch's features are the twin's, whose gradient is stopped, both ways",
    heads=("projector", "predictor"),
)
