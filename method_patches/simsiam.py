"""SimSiam: prediction of the other view, gradients stopped."""

from solo_infoaug.patch import MethodPatch

PATCH = MethodPatch(
    title="SimSiam",
    paper="https://arxiv.org/abs/2011.10566",
    positive="the patch predicts the twin's projection, both ways",
    heads=("projector", "predictor"),
)
