"""MoCo v2+: InfoNCE against a queue of momentum keys."""

from solo_infoaug.twin.method import MethodPatch, queue_takes_whole_batches

PATCH = MethodPatch(
    title="MoCo v2+",
    paper="https://arxiv.org/abs/2003.04297",
    positive="the patch's query finds the twin's key among a queue of earlier patches, both ways",
    heads_by_default="none",
    heads=("projector",),
    momentum_heads=("momentum_projector",),
    state=("queue", "queue_ptr"),
    check=queue_takes_whole_batches,
)
