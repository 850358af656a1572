"""A dictionary as a video: twins and their tracks, drawn on the frames they were mined from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import av.error
import cv2
import matplotlib
import numpy as np

from solo_infoaug._files import DRAWN
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.reading import WindowRecord, read_record
from solo_infoaug.errors import VideoError
from solo_infoaug.mining.encoding import write_video
from solo_infoaug.mining.video import find_videos, open_video, video_digest
from solo_infoaug.viewer.pictures import strongest_pairs

_WIDEST, _NARROWEST = 1280, 320
# This many frames of a track are drawn behind each patch.
_TRAIL = 24
_FAINT = (170, 170, 170)


def write_movie(
    dictionary: TwinDictionary, windows: Iterable[int], file: Path, videos: Iterable[Path] = ()
) -> None:
    """Write an mp4 of some windows: the strongest pairs of twins, joined, with their tracks.

    Each pair has a colour of its own; patches without a twin are grey dots. A patch is drawn while
    it is tracked. Source `videos`, or folders of them, are recognised by their content. A window
    whose video is not among them is drawn on its still frame.

    Raises:
        VideoError: `videos` names what does not exist, or the movie cannot be encoded.
        DictionaryError: the dictionary's files are damaged.
    """
    paths = {video_digest(path): path for path in find_videos(videos)} if videos else {}
    chosen = [dictionary.windows[window] for window in windows]
    height, width = _canvas(chosen)
    try:
        drawn = (_annotated(dictionary, window, paths, (height, width)) for window in chosen)
        write_video(itertools.chain.from_iterable(drawn), file, (width, height), comment=DRAWN)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{file}: cannot be written: {error}") from error


def _canvas(windows: list[WindowRecord]) -> tuple[int, int]:
    """Height and width that suit the largest frame; even, as H.264 wants them."""
    largest = np.max([window.image.shape[:2] for window in windows], axis=0)
    scale = np.clip(1.0, _NARROWEST / largest.max(), _WIDEST / largest.max())
    height, width = (2 * max(1, round(side * scale / 2)) for side in largest)
    return height, width


def _annotated(
    dictionary: TwinDictionary,
    window: WindowRecord,
    paths: dict[str, Path],
    canvas: tuple[int, int],
) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3]: the frames of a window with what was found in them."""
    arrays = window.arrays
    tracks = arrays["tracks"]
    visible = arrays.get("visible", arrays.get("seen", np.ones(tracks.shape[:2], bool)))
    size = dictionary.patches["size"][window.rows]
    pairs = strongest_pairs(dictionary, window)
    colours = matplotlib.colormaps["hsv"](np.linspace(0, 1, len(pairs), endpoint=False))
    height, width = window.image.shape[:2]
    scale = min(canvas[0] / height, canvas[1] / width)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    for t, image in enumerate(_source(dictionary, window, paths)):
        drawn = cv2.resize(image, inner, interpolation=cv2.INTER_AREA)
        for point in tracks[t, visible[t]]:
            cv2.circle(drawn, _pixel(point * scale), 2, _FAINT, -1, cv2.LINE_AA)
        for (i, j), rgb in zip(pairs, colours, strict=True):
            colour = tuple(int(255 * channel) for channel in rgb[:3])
            recent = slice(max(0, t - _TRAIL), t + 1)
            for patch in (i, j):
                trail = tracks[recent, patch][visible[recent, patch]]
                line = np.round(trail * scale).astype(np.int32)[:, None]
                cv2.polylines(drawn, [line], False, colour, 1, cv2.LINE_AA)
                if visible[t, patch]:
                    corner = tracks[t, patch] - size[patch] / 2
                    first, last = _pixel(corner * scale), _pixel((corner + size[patch]) * scale)
                    cv2.rectangle(drawn, first, last, colour, 2, cv2.LINE_AA)
            if visible[t, i] and visible[t, j]:
                ends = _pixel(tracks[t, i] * scale), _pixel(tracks[t, j] * scale)
                cv2.line(drawn, *ends, colour, 2, cv2.LINE_AA)
        text = f"{window.video}, window {window.index}, frame {t + 1} of {len(tracks)}"
        font, white = (cv2.FONT_HERSHEY_SIMPLEX, 0.45), (255, 255, 255)
        (length, rise), _ = cv2.getTextSize(text, *font, 1)
        cv2.rectangle(drawn, (0, inner[1] - rise - 12), (length + 16, inner[1]), (0, 0, 0), -1)
        cv2.putText(drawn, text, (8, inner[1] - 8), *font, white, 1, cv2.LINE_AA)
        framed = np.zeros((*canvas, 3), np.uint8)
        framed[: inner[1], : inner[0]] = drawn[: canvas[0], : canvas[1]]
        yield framed


def _source(
    dictionary: TwinDictionary, window: WindowRecord, paths: dict[str, Path]
) -> Iterator[np.ndarray]:
    """The frames of a window: from its video if that is given, else its still frame, repeated."""
    count = int(window.record["frames"])
    number = int(dictionary.patches["video"][window.patches.start])
    source = read_record(dictionary.part_files(number)).get("source")
    path = paths.get(str(source.get("sha256"))) if isinstance(source, dict) else None
    if path is None:
        still = window.image
        for _ in range(count):
            yield still
        return
    step = int((dictionary.info.get("config") or {}).get("frame_step", 1))
    wanted = _numbers(window, step)
    with open_video(path) as video:
        for frame in video.frames():
            if frame.number in wanted:
                yield frame.image()
            if frame.number >= wanted[-1]:
                return


def _numbers(window: WindowRecord, step: int) -> list[int]:
    """The numbers of a window's frames in the video; repeated ones are left out between them."""
    stored = window.arrays.get("numbers")
    if stored is not None:
        return [int(number) for number in stored]
    count = int(window.record["frames"])  # older dictionaries: mined without gaps
    return list(range(window.first, window.first + count * step, step))


def _pixel(point: np.ndarray) -> tuple[int, int]:
    x, y = np.round(point).astype(int)
    return int(x), int(y)
