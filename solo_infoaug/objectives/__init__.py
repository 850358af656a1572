"""f-MICL: contrastive learning with any f-divergence (Lu et al., TMLR 10/2023)."""

from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.objectives.divergences import (
    DEFAULT_ORDER,
    DIVERGENCES,
    Divergence,
    get_divergence,
    tsallis,
)
from solo_infoaug.objectives.loss import (
    TEXT,
    VISION,
    FMICLLoss,
    FMICLTerms,
    Setting,
    fmicl_loss,
    fmicl_terms,
    fmicl_view_terms,
)
from solo_infoaug.objectives.metrics import alignment, uniformity
from solo_infoaug.objectives.similarities import SIMILARITIES, Similarity, get_similarity

__all__ = [
    "DEFAULT_ORDER",
    "DIVERGENCES",
    "SIMILARITIES",
    "TEXT",
    "VISION",
    "Divergence",
    "FMICLConfig",
    "FMICLLoss",
    "FMICLTerms",
    "Setting",
    "Similarity",
    "alignment",
    "fmicl_loss",
    "fmicl_terms",
    "fmicl_view_terms",
    "get_divergence",
    "get_similarity",
    "tsallis",
    "uniformity",
]
