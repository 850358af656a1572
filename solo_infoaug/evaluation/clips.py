"""Videos with masks of their objects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from solo_infoaug.errors import ConfigError
from solo_infoaug.mining.video import search, video_stem

_NUMBERS = {1: "one video", 2: "two videos"}


@dataclass(frozen=True)
class Clip:
    """A video and its masks."""

    name: str
    source: Path
    masks: Path

    def starts_with_an_object(self) -> bool:
        """Whether the first mask has something to propagate; without, J and F are NaN."""
        return bool(self.read_masks()[0].any())

    def read_masks(self) -> np.ndarray:
        """uint8 [T, H, W]: the number of the object that a pixel shows, 0 for background.

        Masks may be smaller than the frames: see `fitted`.

        Raises:
            ConfigError: the masks cannot be read.
        """
        try:
            if self.masks.is_dir():
                files = sorted(self.masks.glob("*.png"))
                return np.stack([np.asarray(Image.open(file)) for file in files])
            stored = np.load(self.masks)
            if "ids" in stored:
                return np.asarray(stored["ids"])
            shape = tuple(int(n) for n in stored["shape"])
            bits = np.unpackbits(stored["mask"], count=int(np.prod(shape)))
            return bits.reshape(shape)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"data.videos: the masks {self.masks} cannot be read ({error}); expected `ids`, or "
                "`mask` and `shape`, or a folder of .png of one size"
            ) from error


def fitted(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask [H, W] at the size of its frame: every pixel takes the number at its place."""
    rows, columns = (
        np.arange(size) * stored // size
        for size, stored in zip((height, width), mask.shape, strict=True)
    )
    return mask if mask.shape == (height, width) else mask[rows[:, None], columns]


def find_clips(folder: Path, minimum: int = 2, key: str = "data.videos") -> list[Clip]:
    """The videos in `folder` that have masks, by name.

    The name of a video is that of its file, or its path with hyphens where two files share a name.
    There are NAME.mp4 (or a folder of frames NAME) next to NAME.npz, or DAVIS's JPEGImages and
    Annotations.

    Raises:
        ConfigError: there are fewer than `minimum`; the message names the folder `key`.
    """
    images = folder / "JPEGImages"
    clips = []
    for source in search([images if images.is_dir() else folder])[0] if folder.is_dir() else []:
        if images.is_dir():
            masks = folder / "Annotations" / source.relative_to(images)
        else:
            masks = source.with_name(f"{source.stem}.npz")
        if masks.exists():
            clips.append(Clip(video_stem(source), source, masks))
    if len(clips) < minimum:
        raise ConfigError(
            f"{key}: expected a folder with {_NUMBERS[minimum]} or more that have masks (NAME.mp4 "
            f"and NAME.npz, or JPEGImages and Annotations), got {folder}, which has {len(clips)}"
        )
    if len({clip.name for clip in clips}) < len(clips):
        paths = [clip.source.relative_to(folder) for clip in clips]
        names = ["-".join([*path.parent.parts, video_stem(folder / path)]) for path in paths]
        clips = [replace(clip, name=name) for clip, name in zip(clips, names, strict=True)]
    return sorted(clips, key=lambda sequence: sequence.name)
