"""SwAV: one view's prototypes predict the balanced assignment of the other."""

from solo_infoaug.twin.spec import MethodSpec

SPEC = MethodSpec(
    title="SwAV",
    paper="https://arxiv.org/abs/2006.09882",
    positive="the patch predicts the twin's assignment to prototypes, both ways",
    heads=("projector", "prototypes"),
    state=("queue",),
    hooks=("on_train_start", "on_after_backward"),
)
