"""Mining: from videos to a dictionary of twin patches."""

from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.pipeline import mine
from solo_infoaug.mining.samples import sample_clips

__all__ = ["MineConfig", "mine", "sample_clips"]
