"""The public names and where they live: read by type checkers, and by `__init__.py`."""

from .dictionary import TwinDictionary as TwinDictionary
from .dictionary.exporting import export_patches as export_patches
from .errors import InfoAugError as InfoAugError
from .evaluation import evaluate as evaluate
from .evaluation import export as export
from .information import EstimateWarning as EstimateWarning
from .information import Significance as Significance
from .information import entropy as entropy
from .information import mutual_information as mutual_information
from .information import pairwise_mutual_information as pairwise_mutual_information
from .information import pairwise_significance as pairwise_significance
from .information import top_k_partners as top_k_partners
from .mining import MineConfig as MineConfig
from .mining import mine as mine
from .objectives import FMICLConfig as FMICLConfig
from .objectives import FMICLLoss as FMICLLoss
from .objectives import fmicl_loss as fmicl_loss
from .training import load_config as load_config
from .training import pretrain as pretrain
from .twin.component import TwinBranch as TwinBranch
from .twin.config import InfoAugConfig as InfoAugConfig
from .twin.registration import register as register
from .twin.spec import MethodSpec as MethodSpec
from .twin.spec import add_method as add_method

__version__: str
