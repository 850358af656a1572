"""Pretraining from solo-learn's YAML files, on either host."""

from solo_infoaug.training.config import choose_device, load_config
from solo_infoaug.training.pretraining import TrainingResult, pretrain

__all__ = ["TrainingResult", "choose_device", "load_config", "pretrain"]
