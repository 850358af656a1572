"""MoCo v3: InfoNCE against the momentum keys of the batch."""

from typing import Any

from torch import Tensor

from solo_infoaug.objectives.loss import FMICLLoss, FMICLTerms
from solo_infoaug.twin.spec import MethodSpec


def fmicl_terms(
    method: Any, outputs: dict[str, Any], loss: FMICLLoss
) -> tuple[FMICLTerms, list[Tensor]]:
    """Queries against the momentum keys of the other view."""
    queries, keys = outputs["q"], outputs["momentum_k"]
    return loss.mean_terms(queries, keys[::-1]), queries


SPEC = MethodSpec(
    title="MoCo v3",
    paper="https://arxiv.org/abs/2104.02057",
    positive="the patch's query finds the twin's momentum key in the batch, both ways",
    heads=("projector", "predictor"),
    hosts=("current",),
    momentum_heads=("momentum_projector",),
    fmicl_terms=fmicl_terms,
    fmicl_options={"gather": True, "negatives": "keys"},
)
