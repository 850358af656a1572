"""The dictionary that a run with InfoAug trains on: opened, noted in its configuration, checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from omegaconf import DictConfig, OmegaConf

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.locate import choose_dictionary
from solo_infoaug.errors import ConfigError, DictionaryError
from solo_infoaug.twin.config import InfoAugConfig

# A run's configuration names at most this many videos of its dictionary.
_VIDEOS_NAMED = 20

# A crop of more than this many times the side of a patch is mostly interpolation.
_ENLARGED = 2.0


def open_dictionary(config: InfoAugConfig) -> TwinDictionary:
    """Open the dictionary that `config` names, and note in `config` which one it is.

    Raises:
        DictionaryError: there is no dictionary, or it cannot be read.
    """
    choice = choose_dictionary(config.twins)
    dictionary = TwinDictionary.load(choice.path, cache_gb=config.cache_gb, repeats=config.repeats)
    choice.check(dictionary.fingerprint)
    if config.min_distance:
        dictionary = dictionary.apart(config.min_distance)
    path = choice.place
    if config.fingerprint not in (None, dictionary.fingerprint):
        warnings.warn(
            f"infoaug.twins: the dictionary in {path} is not the one that this configuration was "
            "saved with",
            stacklevel=2,
        )
    if config.chosen_by is None or config.twins != path:
        config.chosen_by = choice.rule
    config.twins = path
    config.fingerprint = dictionary.fingerprint
    config.written = dictionary.written
    videos = dictionary.videos
    more = [f"and {len(videos) - _VIDEOS_NAMED} more"] if len(videos) > _VIDEOS_NAMED else []
    config.videos = videos[:_VIDEOS_NAMED] + more
    return dictionary


def open_if_there(config: InfoAugConfig) -> TwinDictionary | None:
    """`open_dictionary`, or None for a finished run whose dictionary is gone.

    Such a run can be read. If it is trained, `open_dictionary` raises the error.

    Raises:
        DictionaryError: there is no dictionary, and the run never had one.
    """
    try:
        return open_dictionary(config)
    except DictionaryError:
        if config.fingerprint is None:
            raise
        return None


def check_dictionary(dictionary: TwinDictionary, config: InfoAugConfig) -> None:
    """Refuse settings that the dictionary cannot serve, before training.

    Raises:
        DictionaryError: no patch has a twin.
        ConfigError: a setting needs more twins or moments than the dictionary keeps.
    """
    if len(dictionary.anchors) == 0:
        raise DictionaryError(
            f"infoaug.twins: no patch in {dictionary.path} has a twin; mine more or other video"
        )
    kept, moments = dictionary.twins.shape[1], dictionary.pixels_shape[1]
    if config.top_k > kept:
        raise ConfigError(
            f"infoaug.top_k: expected at most {kept}, the twins of a patch that "
            f"{dictionary.path} keeps, got {config.top_k}"
        )
    if config.without_twin_share and len(dictionary.without_twin) == 0:
        raise ConfigError(
            f"infoaug.without_twin_share: {dictionary.path} keeps no patch without a twin; mine it "
            "with extra_patches=64, or leave it out"
        )
    if config.distinct_windows and dictionary.stream is not None and dictionary.stream.partial:
        raise ConfigError(
            f"infoaug.distinct_windows: expected all of {dictionary.place} on the local disk; "
            "raise infoaug.cache_gb, or leave it out"
        )
    if config.temporal is True and moments < 2:
        raise ConfigError(
            f"infoaug.temporal: {dictionary.path} keeps one moment of each patch; "
            "mine it with temporal_crops=4, or leave it out"
        )
    if config.temporal and not isinstance(config.temporal, bool):
        _check_reach(dictionary, config.temporal)


def _check_reach(dictionary: TwinDictionary, seconds: float) -> None:
    """Refuse a `temporal` within which no patch with a twin can be shown in another window."""
    first, stop = dictionary.chains.reach(dictionary.anchors.numpy(), seconds)
    if (stop - first).max() > 1:
        return
    linked = dictionary.next >= 0
    if not linked.any():
        raise ConfigError(
            f"infoaug.temporal: no patch in {dictionary.path} is linked to one of another window, "
            f"got {seconds:g} seconds; mine it anew with this version, or use temporal=true"
        )
    apart = dictionary.seconds[dictionary.next[linked].numpy()] - dictionary.seconds[linked.numpy()]
    raise ConfigError(
        f"infoaug.temporal: expected at least {apart.min():.2f} seconds, as linked patches in "
        f"{dictionary.path} are apart, got {seconds:g}; or use temporal=true"
    )


def risks(
    dictionary: TwinDictionary, cfg: DictConfig, state: Sequence[str], pairs: int
) -> list[str]:
    """Warnings about a run that can be trained but may not do what its user expects.

    `state` are the method's buffers; all processes draw `pairs` in a step.
    """
    texts = []
    anchors = len(dictionary.anchors)
    if pairs > anchors:
        texts.append(
            f"infoaug.batch_size: {pairs} pairs a step (of all processes) are drawn from {anchors} "
            "patches with a twin: a patch comes more than once in a step, and is its own negative"
        )
    queue = OmegaConf.select(cfg, "method_kwargs.queue_size")
    if "queue" in state and queue is not None and int(queue) + pairs > anchors:
        texts.append(
            f"method_kwargs.queue_size: a queue of {queue} and {pairs} pairs a step, but "
            f"{anchors} patches with a twin: a patch meets itself in the queue, as its own "
            "negative or neighbour; mine more video, or use a shorter queue"
        )
    crop = max(int(entry.crop_size) for entry in cfg.augmentations)
    spans = dictionary.patches["size"] * dictionary.context
    source = float(np.median(spans[dictionary.anchors.numpy()]))
    side = min(float(dictionary.pixels_shape[-1]), source)
    if crop > _ENLARGED * side:
        texts.append(
            f"infoaug.twins: patches of {side:.0f} pixels are enlarged to crops of {crop}: mine "
            "with a larger -s crop_size and -s context, or video of a higher resolution"
        )
    return texts
