"""SimCLR: InfoNCE over all views of the batch."""

from typing import Any

from torch import Tensor

from solo_infoaug.objectives.loss import FMICLLoss, FMICLTerms
from solo_infoaug.twin.spec import MethodSpec


def fmicl_terms(
    method: Any, outputs: dict[str, Any], loss: FMICLLoss
) -> tuple[FMICLTerms, list[Tensor]]:
    """All views are alike: positives are pairs of views, negatives the samples of each view."""
    return loss.view_terms(outputs["z"]), outputs["z"]


SPEC = MethodSpec(
    title="SimCLR",
    paper="https://arxiv.org/abs/2002.05709",
    positive="patch and twin attract; the other patches and twins of the batch repel",
    heads=("projector",),
    fmicl_terms=fmicl_terms,
    fmicl_options={"gather": True},
)
