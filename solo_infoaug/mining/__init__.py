"""Mining: from videos to a dictionary of twin patches."""

from solo_infoaug.mining.config import MineConfig as MineConfig
from solo_infoaug.mining.pipeline import mine as mine
from solo_infoaug.mining.registry import register_tracker as register_tracker
from solo_infoaug.mining.samples import sample_clips as sample_clips
