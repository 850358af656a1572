"""All4One: nearest neighbours, their attention and feature decorrelation in one loss."""

from solo_infoaug.twin.spec import MethodSpec, queue_takes_whole_batches

SPEC = MethodSpec(
    title="All4One",
    paper="https://arxiv.org/abs/2303.09417",
    positive="the twin is found by the nearest neighbours, among earlier patches, of the patch",
    heads=("projector", "predictor", "predictor2", "transformer"),
    hosts=("current",),
    momentum_heads=("momentum_projector",),
    state=("queue", "queue_y", "queue_ptr", "queue_index"),
    renamed={"transformer_encoder": "transformer"},
    check=queue_takes_whole_batches,
)
