"""k-nearest-neighbour entropy and mutual information of trajectories: torch in, torch out."""

from solo_infoaug.information._position import EstimateWarning
from solo_infoaug.information.estimators import (
    entropy,
    mutual_information,
    pairwise_mutual_information,
)
from solo_infoaug.information.partners import top_k_partners
from solo_infoaug.information.significance import Significance, pairwise_significance

__all__ = [
    "EstimateWarning",
    "Significance",
    "entropy",
    "mutual_information",
    "pairwise_mutual_information",
    "pairwise_significance",
    "top_k_partners",
]
