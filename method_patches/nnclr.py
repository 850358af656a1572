"""NNCLR: InfoNCE whose positives are nearest neighbours in a queue."""

from solo_infoaug.twin.spec import MethodSpec, queue_takes_whole_batches

SPEC = MethodSpec(
    title="NNCLR",
    paper="https://arxiv.org/abs/2104.14548",
    positive="the patch's nearest neighbour in a queue finds the twin in the batch, both ways",
    heads=("projector", "predictor"),
    state=("queue", "queue_y", "queue_ptr"),
    check=queue_takes_whole_batches,
)
