from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from formats import as_folders
from PIL import Image
from typer.testing import CliRunner

from solo_infoaug.cli import app
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.exporting import export_patches
from solo_infoaug.dictionary.tools import merge
from solo_infoaug.errors import ConfigError, DictionaryError, OutputError, VideoError
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.video import Video
from solo_infoaug.viewer import show
from solo_infoaug.viewer.pictures import (
    draw_mi_histogram,
    draw_mi_matrix,
    draw_pairs,
    draw_reasons,
    draw_tracks,
    draw_twins,
    strongest_pairs,
)

STILL = ["-s", "camera=none", "-s", "parallax=0"]
SMALL = MineConfig(min_frames=24, window=64, stride=64, camera="none", parallax=0)


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory, video: Path) -> TwinDictionary:
    return mine(video, tmp_path_factory.mktemp("mined") / "twins", SMALL, progress=False)


def test_patches_are_an_image_folder(mined: TwinDictionary, tmp_path: Path) -> None:
    count = export_patches(mined, tmp_path / "images")
    folder = torchvision.datasets.ImageFolder(str(tmp_path / "images"))
    assert folder.classes == ["two"]
    assert len(folder) == count > 2 * len(mined)
    with Image.open(tmp_path / "images" / "two" / "0000003-1.png") as image:
        pixels = np.asarray(image)
    assert np.array_equal(pixels, mined.pixels[3, 1].permute(1, 2, 0).numpy())


def test_patches_are_not_mixed_with_other_files(mined: TwinDictionary, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DictionaryError, match="not an empty folder"):
        export_patches(mined, tmp_path)


@pytest.mark.parametrize(
    "draw", [draw_twins, draw_tracks, draw_mi_matrix, draw_reasons, draw_mi_histogram]
)
def test_drawings(mined: TwinDictionary, tmp_path: Path, draw) -> None:
    draw(mined, 0).savefig(tmp_path / "drawing.png")
    with Image.open(tmp_path / "drawing.png") as image:
        assert np.asarray(image).std() > 5
    with pytest.raises(ConfigError, match="window: expected 0 to 0, the dictionary's windows"):
        draw(mined, 1)


def test_twins_are_drawn_once_and_strongest_first(mined: TwinDictionary) -> None:
    axes = draw_twins(mined, 0, pairs=3).axes[0]
    assert len(axes.lines) == 3
    places = [
        tuple(np.round([x, y], 2))
        for line in axes.lines
        for x, y in zip(*line.get_data(), strict=True)
    ]
    assert len(set(places)) == 6
    best = int(mined.mi[:, 0].argmax())
    assert (np.round(mined.patches["x"][best], 2), np.round(mined.patches["y"][best], 2)) in places


def test_gallery_shows_pairs(mined: TwinDictionary) -> None:
    figure = draw_pairs(mined, count=5)
    shown = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    assert len(shown) == 10


def test_show(mined: TwinDictionary, tmp_path: Path) -> None:
    show(mined, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert mined.fingerprint in page
    shown = min(len(mined.windows), 6)
    assert page.count("data:image/jpeg;base64,") == 3 * shown
    assert page.count("data:image/png;base64,") == 2 * shown + 1
    assert page.count('<img loading="lazy"') == 5 * shown + 1
    assert "http" not in page.replace("data:image", "")
    show(mined, tmp_path / "poster.png")
    with Image.open(tmp_path / "poster.png") as image:
        assert image.width > 800
    with pytest.raises(ConfigError, match=r"must end in \.html, \.png or \.mp4"):
        show(mined, tmp_path / "page.gif")


def _decoded(path: Path) -> list[np.ndarray]:
    with Video(path) as video:
        return [frame.image().astype(int) for frame in video.frames()]


def test_movie(mined: TwinDictionary, video: Path, scene, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "renamed.mp4").write_bytes(video.read_bytes())
    show(mined, tmp_path / "twins.mp4", [tmp_path / "moved"])
    frames = _decoded(tmp_path / "twins.mp4")
    assert len(frames) == len(scene[0])
    assert frames[0].shape == (200, 320, 3)  # 160×256, enlarged
    for place in (0, 40, 63):
        source = cv2.resize(scene[0][place], (320, 200), interpolation=cv2.INTER_AREA)
        changed = np.abs(frames[place] - source).max(axis=2) > 60
        # Lines and boxes on the objects, most of the frame as it was
        assert 0.02 < changed.mean() < 0.5
    # A patch of the strongest pair is framed where its track says, in a late frame as well
    i, _ = strongest_pairs(mined, mined.windows[0])[0]
    arrays = mined.windows[0].arrays
    t = int(np.flatnonzero(arrays["visible"][:, i])[-1])
    x, y = (arrays["tracks"][t, i] - mined.patches["size"][i] / 2) * 1.25
    framed = frames[t][round(float(y)), round(float(x)) : round(float(x)) + 12]
    assert (framed.max(axis=1) - framed.min(axis=1)).mean() > 80  # a saturated colour

    show(mined, tmp_path / "still.mp4")
    still = _decoded(tmp_path / "still.mp4")
    assert len(still) == len(frames)
    corner = slice(0, 30), slice(290, 320)  # background, no track
    assert np.abs(still[60][corner] - still[0][corner]).mean() < 6


def test_movie_errors(mined: TwinDictionary, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such video"):
        show(mined, tmp_path / "twins.mp4", [tmp_path / "nothing.mp4"])
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(OutputError, match=r"taken\.mp4, which is a folder"):
        show(mined, tmp_path / "taken.mp4")


def test_commands(video: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    mined = run(
        app, ["mine", str(video), "-o", str(tmp_path / "d"), "-s", "temporal_crops=2", *STILL]
    )
    assert mined.exit_code == 0, mined.output
    assert "3 windows" in mined.output
    assert TwinDictionary.load(tmp_path / "d").pixels.shape[1] == 2
    (tmp_path / "bad.mp4").write_text("no video")
    partly = run(
        app, ["mine", str(video), str(tmp_path / "bad.mp4"), "-o", str(tmp_path / "e"), *STILL]
    )
    assert partly.exit_code == 2
    assert "bad.mp4: cannot be opened" in partly.output
    for arguments in (
        ["show", str(tmp_path / "d"), "-o", str(tmp_path / "d.png")],
        ["patches", str(tmp_path / "d"), "-o", str(tmp_path / "images")],
    ):
        assert run(app, arguments).exit_code == 0
    assert (tmp_path / "d.png").is_file()
    assert torch.tensor(len(list((tmp_path / "images").rglob("*.png")))) > 20


def test_a_page_shows_the_richest_windows(mined: TwinDictionary, tmp_path: Path) -> None:
    copies = [mined.path]
    for number in range(8):
        # the same windows under another name: another video
        shutil.copytree(mined.path, tmp_path / str(number))
        as_folders(tmp_path / str(number))
        (part,) = (tmp_path / str(number) / "parts").iterdir()
        part.rename(part.with_name(f"copy{number}-{part.name}"))
        manifest = tmp_path / str(number) / "dictionary.json"
        manifest.write_text(manifest.read_text().replace(part.name, f"copy{number}-{part.name}"))
        copies.append(tmp_path / str(number))
    many = merge(copies, tmp_path / "many")
    show(many, tmp_path / "page.html", windows=2)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 * 2
    assert f"Below are the 2 windows with the\nmost twins of {len(many.windows)};" in page
    show(many, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg;base64,") == 3 * 6
    with pytest.raises(ConfigError, match="windows: expected at least 1, got 0"):
        show(many, tmp_path / "page.html", windows=0)
