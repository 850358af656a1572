"""k-nearest-neighbour entropy and mutual information of trajectories: torch in, torch out."""

from solo_infoaug.information._position import EstimateWarning as EstimateWarning
from solo_infoaug.information.estimators import entropy as entropy
from solo_infoaug.information.estimators import mutual_information as mutual_information
from solo_infoaug.information.estimators import (
    pairwise_mutual_information as pairwise_mutual_information,
)
from solo_infoaug.information.partners import top_k_partners as top_k_partners
from solo_infoaug.information.significance import Significance as Significance
from solo_infoaug.information.significance import pairwise_significance as pairwise_significance
