"""Draw a dictionary as one page, one picture, or a movie."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from solo_infoaug._checks import require
from solo_infoaug._files import DRAWN, new_file
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.tools import video_table
from solo_infoaug.errors import ConfigError
from solo_infoaug.viewer import pictures
from solo_infoaug.viewer.html import embedded, embedded_photo, png, render
from solo_infoaug.viewer.movie import write_movie

# Only the windows with the most twins are shown: a page with hundreds would open slowly.
_WINDOWS = 6
_FILM_WINDOWS = 12
# Rows of the page's table of videos.
_VIDEOS = 50
_PNG_WINDOWS = 4
_DPI = 100


def show(
    dictionary: TwinDictionary,
    file: str | os.PathLike[str],
    videos: Sequence[str | os.PathLike[str]] = (),
    windows: int | None = None,
) -> None:
    """Draw a dictionary: twins, tracks and MI of its richest windows and a gallery of pairs.

    Args:
        dictionary: what to draw.
        file: `.html` for one self-contained page, `.png` for a picture, `.mp4` for the twins
            moving along their tracks.
        videos: for `.mp4`, the source videos or folders of them, whose frames are drawn on. Without
            them, the still frame of each window is used.
        windows: number of windows, those with the most twins. Default: 6 on a page, 4 in a picture,
            12 in a movie.

    Raises:
        ConfigError: the file name has another ending, `videos` are given but the file is not an
            mp4, or `windows` is less than 1.
        OutputError: the file cannot be written.
        DictionaryError: the dictionary's files are damaged.
        VideoError: `videos` cannot be read, or the mp4 cannot be written.
    """
    path = Path(file)
    ending = path.suffix.lower()
    if ending not in (".html", ".png", ".mp4"):
        raise ConfigError(f"the file to write must end in .html, .png or .mp4, not {path.name!r}")
    if videos and ending != ".mp4":
        raise ConfigError(f"--video: source videos are only drawn in an .mp4; got {path.name}")
    require(windows is None or windows >= 1, "windows", "at least 1", windows)
    with new_file(path, "out") as fresh:
        if ending == ".html":
            # a file name need not be text in any encoding
            fresh.write_text(
                _page(dictionary, windows or _WINDOWS), encoding="utf-8", errors="backslashreplace"
            )
        elif ending == ".mp4":
            shown = pictures.richest_windows(dictionary, windows or _FILM_WINDOWS)
            write_movie(dictionary, shown, fresh, [Path(video) for video in videos])
        else:
            said = PngInfo()
            said.add_text("comment", DRAWN)
            _poster(dictionary, windows or _PNG_WINDOWS).save(fresh, pnginfo=said)


def _page(dictionary: TwinDictionary, count: int) -> str:
    def window(index: int) -> dict[str, object]:
        photos = (pictures.draw_twins, pictures.draw_reasons, pictures.draw_tracks)
        charts = (pictures.draw_mi_matrix, pictures.draw_mi_histogram)
        images = [embedded_photo(draw(dictionary, index), _DPI) for draw in photos]
        images += [embedded(draw(dictionary, index), _DPI) for draw in charts]
        return {"record": dictionary.windows[index], "images": images}

    table, pairs = video_table(dictionary), len(dictionary.anchors) > 0
    return render(
        "solo_infoaug.viewer",
        "page.html.j2",
        dictionary=dictionary,
        videos=table[: 1 + _VIDEOS],
        more_videos=max(0, len(table) - 1 - _VIDEOS),
        failed=dictionary.info.get("failed") or {},
        twinless=dictionary.info.get("twinless") or {},
        config=dictionary.info.get("config", {}),
        gallery=embedded(pictures.draw_pairs(dictionary), _DPI) if pairs else None,
        windows=[window(index) for index in pictures.richest_windows(dictionary, count)],
    )


def _poster(dictionary: TwinDictionary, count: int) -> Image.Image:
    rows = [
        [_image(draw(dictionary, index)) for draw in (pictures.draw_twins, pictures.draw_tracks)]
        for index in pictures.richest_windows(dictionary, count)
    ]
    if len(dictionary.anchors):
        rows.append([_image(pictures.draw_pairs(dictionary))])
    width = max(sum(image.width for image in row) for row in rows)
    height = sum(max(image.height for image in row) for row in rows)
    poster = Image.new("RGB", (width, height), "white")
    top = 0
    for row in rows:
        left = (width - sum(image.width for image in row)) // 2
        for image in row:
            poster.paste(image, (left, top))
            left += image.width
        top += max(image.height for image in row)
    return poster


def _image(figure: Figure) -> Image.Image:
    return Image.open(io.BytesIO(png(figure, _DPI))).convert("RGB")
