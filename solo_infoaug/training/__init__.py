"""Pretraining from solo-learn's YAML files, on either host."""

from solo_infoaug.training.config import choose_device as choose_device
from solo_infoaug.training.config import load_config as load_config
from solo_infoaug.training.pretraining import TrainingResult as TrainingResult
from solo_infoaug.training.pretraining import pretrain as pretrain
