"""A folder of numbered images as a video: the form in which tracking data sets come."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from solo_infoaug._files import DRAWN
from solo_infoaug.errors import VideoError
from solo_infoaug.mining.frame import Frame, every_nth

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Minimum number of images of a video: fewer cannot be a shot.
_MIN_IMAGES = 4
# Minimum share of neighbours at the usual distance of numbers: some frames may be missing.
_MIN_REGULAR = 0.8
# Maximum number of damaged files that the record names.
_MAX_NAMED = 100
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
# MOT keeps the frames of NAME in NAME/img1, others in NAME/images, NAME/rgb, …
_NO_NAME = re.compile(r"(img|imgs|image|images|frame|frames|rgb|color|jpegimages)[_-]?\d*", re.I)
# What Pillow raises for files that are not images, or are truncated or too large.
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Numbered:
    """The images of a folder that are a video, in order.

    `places` [T] count frames from 0, as the numbers in the names do. If a place is left out, a
    frame is missing.
    """

    files: list[Path]
    places: list[int]


def numbered_frames(folder: Path, names: Iterable[str]) -> Numbered | str:
    """The images among the file names of a folder as one video, or why they are not one.

    They are a video if they have the same name except for a number, if the numbers are consecutive
    (or evenly spaced, as when every fifth frame was kept), if all have the same size, and if they
    are not palette images, because label masks are. Other images of the folder are skipped.
    """
    groups: dict[tuple[str, str, str], dict[int, str]] = {}
    doubled = False
    for name in names:
        path = Path(name)
        parts = _NUMBERED.fullmatch(path.stem)
        if path.suffix.lower() not in IMAGES or parts is None or name.startswith("."):
            continue
        group = groups.setdefault((parts[1], parts[3], path.suffix.lower()), {})
        doubled |= int(parts[2]) in group
        group[int(parts[2])] = name
    large = [group for group in groups.values() if len(group) >= _MIN_IMAGES]
    if not large:
        return f"fewer than {_MIN_IMAGES} have the same name except for a number"
    if len(large) > 1:
        return f"{len(large)} numbered sequences lie in one folder; give each a folder of its own"
    numbers = sorted(large[0])
    steps = np.diff(numbers)
    step, usual = Counter(steps.tolist()).most_common(1)[0]
    if doubled or usual < _MIN_REGULAR * len(steps):
        return "their numbers are not consecutive"
    files = [folder / large[0][number] for number in numbers]
    if (why := _mixed(files)) is not None:
        return why
    gaps = np.where(steps == step, 1, np.maximum(2, np.ceil(steps / step))).astype(int)
    return Numbered(files, np.cumsum([0, *gaps]).tolist())


def _mixed(files: list[Path]) -> str | None:
    """Why images are not the frames of one video, from their headers; None if they are."""
    sizes: dict[tuple[int, int], Path] = {}
    palettes = 0
    moving = None
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.setdefault(image.size, file)
                palettes += image.mode == "P"
                if image.info.get("comment") == DRAWN:
                    return f"solo-infoaug show drew {file.name}"
                # the pictures of an MPO are the same scene, of which the first is the photograph
                if getattr(image, "is_animated", False) and image.format != "MPO":
                    moving = moving or file
        except _UNREADABLE:
            continue  # damage is counted when it is decoded
    if len(sizes) > 1:
        (size, one), (other_size, other) = list(sizes.items())[:2]
        return (
            f"their sizes differ: {one.name} is {size[0]}×{size[1]}, "
            f"{other.name} {other_size[0]}×{other_size[1]}"
        )
    if moving is not None:
        return f"{moving.name} holds several pictures"
    if 2 * palettes > len(files):
        return "they are palette images, as label masks are"
    return None


def folder_name(folder: Path) -> str:
    """The name of a folder of frames as a video: NAME for NAME and for NAME/img1."""
    folder = folder.absolute()
    return folder.parent.name if _NO_NAME.fullmatch(folder.name) else folder.name


class FrameFolder:
    """A folder of numbered images, read like a `Video`.

    `fps` is frames a second, which the files do not say.

    Raises:
        VideoError: the folder cannot be read, or its images are not a video.
    """

    def __init__(self, path: Path, fps: float = 25.0) -> None:
        self.path = path
        self.fps = fps
        # Files that cannot be decoded to their end; frames that are left out for that reason.
        self.damaged = 0
        self.left_out = 0
        self._names: list[str] = []
        try:
            found = numbered_frames(path, sorted(entry.name for entry in path.iterdir()))
        except OSError as error:
            raise VideoError(f"{path}: cannot be read: {error.strerror or error}") from error
        if isinstance(found, str):
            raise VideoError(
                f"{path}: its images are not a video: {found}; expected numbered frames of one size"
            )
        self.numbered = found
        self._modes: Counter[str] = Counter()

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def name(self) -> str:
        """What the video is called."""
        return folder_name(self.path)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, pixels; 0 where none can be read."""
        for file in self.numbered.files:
            try:
                with Image.open(file) as image:
                    width, height = ImageOps.exif_transpose(image).size
                return height, width
            except _UNREADABLE:
                continue
        return 0, 0

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the images; after `frames`, also what was found when decoding."""
        files, places = self.numbered.files, self.numbered.places
        height, width = self.size
        return {
            "width": width,
            "height": height,
            "fps": self.fps,
            "duration": (places[-1] + 1) / self.fps,
            "codec": "images",
            "images": [files[0].name, files[-1].name],
            "missing_images": places[-1] + 1 - len(files),
            "pixel_format": ", ".join(sorted(self._modes)),
            **({"damaged_files": self._names} if self._names else {}),
        }

    def frames(
        self, start_fraction: float = 0.0, stop_fraction: float = 1.0, step: int = 1
    ) -> Iterator[Frame]:
        """Every `step`-th frame of a stretch; `number` is the place of the file among all."""
        return every_nth(self._frames(start_fraction, stop_fraction), step)

    def _frames(self, start_fraction: float, stop_fraction: float) -> Iterator[Frame]:
        places = self.numbered.places
        length = places[-1] + 1
        before, gap = None, False
        for number, (file, place) in enumerate(zip(self.numbered.files, places, strict=True)):
            # Half a frame of tolerance, as for video files.
            if place + 0.5 < start_fraction * length:
                continue
            if stop_fraction < 1.0 and place + 0.5 >= stop_fraction * length:
                return
            gap |= before is not None and place != before + 1
            before = place
            try:
                raw = self._read(file)
            except _UNREADABLE:
                self.damaged += 1
                self.left_out += 1
                if len(self._names) < _MAX_NAMED:
                    self._names.append(file.name)
                gap = True
                continue
            yield Frame(number, raw, gap)
            gap = False

    def _read(self, file: Path) -> av.VideoFrame:
        """Decode with Pillow, because FFmpeg invents the missing part of a truncated JPEG."""
        with Image.open(file) as stored:
            stored.load()
            mode = stored.mode
            image = ImageOps.exif_transpose(stored)
        self._modes[mode] += 1
        if mode.startswith("I"):  # 16 bits of grey; Pillow would clip them to 8
            grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
            return av.VideoFrame.from_ndarray(grey, format="gray16le")
        transparent = "A" in mode or "transparency" in image.info
        pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
        return av.VideoFrame.from_ndarray(pixels, format="rgba" if transparent else "rgb24")
