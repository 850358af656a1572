"""NNBYOL: BYOL whose targets are nearest neighbours in a queue."""

from solo_infoaug.twin.spec import MethodSpec, queue_takes_whole_batches

SPEC = MethodSpec(
    title="NNBYOL",
    paper="https://arxiv.org/abs/2104.14548",
    positive="the patch predicts the twin's nearest neighbour in a queue of earlier patches",
    heads=("projector", "predictor"),
    momentum_heads=("momentum_projector",),
    state=("queue", "queue_y", "queue_ptr"),
    check=queue_takes_whole_batches,
)
