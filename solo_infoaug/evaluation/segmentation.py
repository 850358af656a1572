"""`evaluate --data davis`: label propagation by a checkpoint's backbone and two references."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from solo_infoaug._checks import require
from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation.backbone import Backbone, load_backbone, untrained
from solo_infoaug.evaluation.clips import Clip, find_clips
from solo_infoaug.evaluation.maps import MapOf, colour_map
from solo_infoaug.evaluation.propagation import FeatureMap, Propagation, propagate, score
from solo_infoaug.mining.video import open_video

UNTRAINED, COLOUR = "untrained network", "mean colour"


def models(backbone: Backbone, size: int, stride: int) -> dict[str, FeatureMap]:
    """The backbone as `ours`, the same one untrained (by the run's seed), and mean colours."""
    return {
        "ours": MapOf(backbone, size, stride),
        UNTRAINED: MapOf(untrained(backbone), size, stride),
        COLOUR: partial(colour_map, size=size, stride=stride),
    }


def segment(clip: Clip, features: FeatureMap, frames_used: int | None = None) -> dict[str, float]:
    """`j` and `f` (per cent) of a video: means over the objects of its first mask.

    `frames_used`: how many frames from the first on; default all.
    """
    truth = clip.read_masks()
    with open_video(clip.source) as video:
        frames = (frame.image() for frame in islice(video.frames(0.0, 1.0), frames_used))
        masks = propagate(frames, truth[0], features, Propagation())
    count = min(len(masks), len(truth))  # some videos end a frame before their masks
    of_objects = score(masks[:count], list(truth[:count])).values()
    return {name: float(np.mean([found[name] for found in of_objects])) for name in ("j", "f")}


def _with_an_object(clips: Sequence[Clip]) -> list[Clip]:
    """Without the videos that have nothing to propagate; they are named in a warning."""
    kept = [clip for clip in clips if clip.starts_with_an_object()]
    if not kept:
        raise ConfigError("--path: expected a video whose first mask shows an object, got none")
    for clip in clips:
        if clip not in kept:
            message = f"{clip.name}: left out, because its first mask shows no object"
            warnings.warn(message, stacklevel=3)
    return kept


def evaluate_segmentation(
    checkpoint: str | Path,
    path: str | Path,
    size: int = 480,
    stride: int = 8,
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """J and F of a checkpoint's backbone, and of the references.

    The checkpoint lies in the folder of its args.json; `path` is as for `find_clips`, whose first
    `limit` videos are used. The backbone sees frames whose shorter side has `size` pixels; a place
    of its feature map has `stride`, 8 or 16. Videos whose first mask shows no object are left out
    with a warning.

    Returns:
        model → `j`, `f` and `jf`, their mean; per cent, means over the videos.

    Raises:
        ConfigError: the checkpoint or the folder cannot be used, or the backbone has no map.
    """
    for option, value in (("--size", size), ("--limit", limit)):
        good = value is None or value >= 1
        require(good, option, "a whole number ≥ 1", value)
    clips = _with_an_object(find_clips(Path(path), 1, "--path")[:limit])
    found: dict[str, dict[str, float]] = {}
    for name, features in models(load_backbone(checkpoint), size, stride).items():
        each = [segment(clip, features) for clip in clips]
        found[name] = {m: float(np.mean([of[m] for of in each])) for m in ("j", "f")}
        found[name]["jf"] = (found[name]["j"] + found[name]["f"]) / 2
    return found
