"""A dictionary's patches as an image folder, and a dictionary to look at."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
import torch
from matplotlib.figure import Figure
from PIL import Image

from solo_infoaug._files import check_output_folder, new_file
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.tools import video_table
from solo_infoaug.errors import ConfigError, DictionaryError
from solo_infoaug.viewer import pictures
from solo_infoaug.viewer.movie import write_movie

# Windows with the most twins are shown; a page of hundreds helps nobody.
_WINDOWS = 12
_PNG_WINDOWS = 4


def export_patches(dictionary: TwinDictionary, folder: str | os.PathLike[str]) -> int:
    """Write every patch at each of its moments as PNG, one sub-folder a video.

    This is the layout of torchvision's `ImageFolder`, so that solo-learn's `data.dataset: custom`
    trains on it. Returns the number of images.

    Raises:
        DictionaryError: `folder` has something in it already, or the dictionary is damaged.
        OutputError: `folder` cannot be written.
    """
    out = check_output_folder(folder, "out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DictionaryError(f"{out} is not an empty folder; choose another")
    names = _unique([Path(name).stem for name in dictionary.videos])
    written = 0
    for row in range(len(dictionary)):
        target = out / names[dictionary.patches["video"][row]]
        target.mkdir(parents=True, exist_ok=True)
        frames = dictionary.moment_frames[row].tolist()
        for moment, frame in enumerate(frames):
            if frame in frames[:moment]:
                continue
            pixels = dictionary.crops(torch.tensor([row]), moment)[0]
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            image.save(target / f"{row:07d}-{moment}.png")
            written += 1
    return written


def show(
    dictionary: TwinDictionary,
    file: str | os.PathLike[str],
    videos: Sequence[str | os.PathLike[str]] = (),
) -> None:
    """Draw a dictionary: twins, tracks and MI of its richest windows and a gallery of pairs.

    Args:
        dictionary: what to draw.
        file: `.html` for one self-contained page, `.png` for a picture, `.mp4` for the twins
            moving along their tracks.
        videos: for `.mp4`, the source videos or folders of them, to draw on their frames; without
            them it is drawn on the frame of each window.

    Raises:
        ConfigError: the file name ends otherwise, or `videos` are given and it is no mp4.
        OutputError: the file cannot be written.
        DictionaryError: the dictionary's files are damaged.
        VideoError: `videos` cannot be read, or the mp4 not be written.
    """
    path = Path(file)
    kind = path.suffix.lower()
    if kind not in (".html", ".png", ".mp4"):
        raise ConfigError(f"the file to write must end in .html, .png or .mp4, not {path.name!r}")
    if videos and kind != ".mp4":
        raise ConfigError(f"--video: source videos are drawn in an .mp4, and {path.name} is none")
    with new_file(path, "out") as fresh:
        if kind == ".html":
            # a file name need not be text in any encoding
            fresh.write_text(_page(dictionary), encoding="utf-8", errors="backslashreplace")
        elif kind == ".mp4":
            sources = [Path(video) for video in videos]
            write_movie(dictionary, richest_windows(dictionary, _WINDOWS), fresh, sources)
        else:
            _poster(dictionary).save(fresh)


def richest_windows(dictionary: TwinDictionary, count: int) -> list[int]:
    """The `count` windows with the most patches that have a twin, in order of the dictionary."""
    of_anchor = torch.from_numpy(dictionary.patches["window"])[dictionary.anchors].long()
    twins = torch.bincount(of_anchor, minlength=len(dictionary.windows))
    order = sorted(range(len(twins)), key=lambda window: (-int(twins[window]), window))
    return sorted(order[:count])


def _page(dictionary: TwinDictionary) -> str:
    def window(index: int) -> dict[str, object]:
        drawn = (
            pictures.draw_twins,
            pictures.draw_reasons,
            pictures.draw_tracks,
            pictures.draw_mi_matrix,
            pictures.draw_mi_histogram,
        )
        return {
            "record": dictionary.windows[index],
            "images": [_embedded(draw(dictionary, index)) for draw in drawn],
        }

    template = jinja2.Template(_TEMPLATE, autoescape=True)
    return template.render(
        dictionary=dictionary,
        videos=video_table(dictionary),
        failed=dictionary.info.get("failed", {}),
        config=dictionary.info.get("config", {}),
        gallery=_embedded(pictures.draw_pairs(dictionary)) if len(dictionary.anchors) else None,
        windows=[window(index) for index in richest_windows(dictionary, _WINDOWS)],
    )


def _poster(dictionary: TwinDictionary) -> Image.Image:
    rows = []
    for index in richest_windows(dictionary, _PNG_WINDOWS):
        rows.append(
            [
                _image(draw(dictionary, index)).convert("RGB")
                for draw in (pictures.draw_twins, pictures.draw_tracks)
            ]
        )
    if len(dictionary.anchors):
        rows.append([_image(pictures.draw_pairs(dictionary)).convert("RGB")])
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


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _image(figure: Figure) -> Image.Image:
    return Image.open(io.BytesIO(_png(figure)))


def _embedded(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(figure)).decode()


def _unique(names: list[str]) -> list[str]:
    """Names that differ: a number is put behind those that come again."""
    taken: set[str] = set()
    for place, name in enumerate(names):
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name}-{number}", number + 1
        taken.add(candidate)
        names[place] = candidate
    return names


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Twin dictionary</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em;
       color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
img { max-width: 100%; } .matrix { max-width: 480px; }
table { border-collapse: collapse; } td, th { padding: 2px 12px 2px 0; text-align: left; }
code { background: #f3f3f3; padding: 0 .25em; } .failed { color: #a00; }
</style></head><body>
<h1>Twin dictionary</h1>
<p>{{ dictionary|length }} patches, {{ dictionary.anchors|length }} of them with a twin, in
{{ dictionary.windows|length }} windows of {{ dictionary.videos|length }} videos.
Fingerprint <code>{{ dictionary.fingerprint }}</code>.</p>
<table>{% for row in videos %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if failed %}<h2>Failed</h2><ul class="failed">
{% for name, why in failed.items() %}<li>{{ why }}</li>{% endfor %}</ul>{% endif %}
{% if gallery %}<h2>Pairs</h2>
<img src="{{ gallery }}" alt="the strongest pairs of twins">{% endif %}
{% for window in windows %}
<h2>{{ window.record.video }}, window {{ window.record.index }}</h2>
<p>Frame {{ window.record.record.frame }}, tracked through {{ window.record.record.frames }} frames,
{{ window.record.record.width }}×{{ window.record.record.height }}
pixels, patches of {{ window.record.record.patch }} pixels.
Camera: {% for name, value in (window.record.record.camera or {}).items() %}{{ name }} {{ value }}{{
", " if not loop.last }}{% endfor %}.</p>
<img src="{{ window.images[0] }}" alt="twins"><img src="{{ window.images[1] }}" alt="reasons">
<img src="{{ window.images[2] }}" alt="tracks">
<img class="matrix" src="{{ window.images[3] }}" alt="mutual information">
<img class="matrix" src="{{ window.images[4] }}" alt="histogram of mutual information">
{% endfor %}
<h2>Settings</h2><table>
{% for name, value in config.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
</table></body></html>
"""
