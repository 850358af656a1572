"""ReSSL: the relations of one view to a queue are those of the other."""

from solo_infoaug.twin.spec import MethodSpec, queue_takes_whole_batches

SPEC = MethodSpec(
    title="ReSSL",
    paper="https://arxiv.org/abs/2107.09282",
    positive="the patch relates to a queue of earlier twins as its twin does",
    heads=("projector",),
    momentum_heads=("momentum_projector",),
    state=("queue", "queue_ptr"),
    check=queue_takes_whole_batches,
)
