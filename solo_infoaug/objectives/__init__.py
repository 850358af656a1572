"""f-MICL: contrastive learning with any f-divergence (Lu et al., TMLR 10/2023)."""

from solo_infoaug.objectives.config import FMICLConfig as FMICLConfig
from solo_infoaug.objectives.divergences import DEFAULT_ORDER as DEFAULT_ORDER
from solo_infoaug.objectives.divergences import DIVERGENCES as DIVERGENCES
from solo_infoaug.objectives.divergences import Divergence as Divergence
from solo_infoaug.objectives.divergences import get_divergence as get_divergence
from solo_infoaug.objectives.divergences import tsallis as tsallis
from solo_infoaug.objectives.loss import TEXT as TEXT
from solo_infoaug.objectives.loss import VISION as VISION
from solo_infoaug.objectives.loss import FMICLLoss as FMICLLoss
from solo_infoaug.objectives.loss import FMICLTerms as FMICLTerms
from solo_infoaug.objectives.loss import Setting as Setting
from solo_infoaug.objectives.loss import fmicl_loss as fmicl_loss
from solo_infoaug.objectives.loss import fmicl_terms as fmicl_terms
from solo_infoaug.objectives.loss import fmicl_view_terms as fmicl_view_terms
from solo_infoaug.objectives.metrics import alignment as alignment
from solo_infoaug.objectives.metrics import uniformity as uniformity
from solo_infoaug.objectives.similarities import SIMILARITIES as SIMILARITIES
from solo_infoaug.objectives.similarities import Similarity as Similarity
from solo_infoaug.objectives.similarities import get_similarity as get_similarity
