"""MoCo v2+: InfoNCE against a queue of momentum keys."""

from typing import Any

import torch
from torch import Tensor

from solo_infoaug.objectives.loss import FMICLLoss, FMICLTerms, gather_across_ranks
from solo_infoaug.twin.spec import MethodSpec, queue_takes_whole_batches


def fmicl_terms(
    method: Any, outputs: dict[str, Any], loss: FMICLLoss
) -> tuple[FMICLTerms, list[Tensor]]:
    """Queries against the other view's keys and its queue, which then takes the keys in."""
    queries, keys = outputs["z"], outputs["momentum_z"]
    queue = method.queue.clone()
    terms = loss.mean_terms(queries, keys[::-1], queue.flip(0).mT)
    with torch.no_grad():
        method._dequeue_and_enqueue(torch.stack([gather_across_ranks(key) for key in keys]))
    return terms, queries


SPEC = MethodSpec(
    title="MoCo v2+",
    paper="https://arxiv.org/abs/2003.04297",
    positive="the patch's query finds the twin's key among a queue of earlier patches, both ways",
    heads=("projector",),
    momentum_heads=("momentum_projector",),
    state=("queue", "queue_ptr"),
    check=queue_takes_whole_batches,
    fmicl_terms=fmicl_terms,
)
