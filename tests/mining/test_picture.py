"""Bars around the picture are no part of the scene; a scene that is dark or plain there is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from videos import WriteVideo, texture

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.frame import Frame
from solo_infoaug.mining.picture import Rectangle, active_picture, perhaps_barred, whole
from solo_infoaug.mining.windows import windows

HEIGHT, WIDTH = 240, 320
# The seam itself, and what scaling and compression leave around it
MARGIN = 8

Make = Callable[[np.ndarray, int], np.ndarray]


def _pan(count: int = 24, seed: int = 0) -> list[np.ndarray]:
    """A camera that moves over a texture."""
    wide = texture(HEIGHT + 80, WIDTH + 160, seed)
    return [wide[t : t + HEIGHT, 3 * t : 3 * t + WIDTH].copy() for t in range(count)]


def _padded(rows: int, columns: int, value: int = 0) -> Make:
    around = ((rows, rows), (columns, columns), (0, 0))
    return lambda image, t: np.pad(image, around, constant_values=value)


def _blurred(image: np.ndarray, t: int) -> np.ndarray:
    """As phones' videos are broadcast: before an enlarged copy of themselves, out of focus."""
    wide = WIDTH + 2 * 200
    large = cv2.resize(image, (wide, HEIGHT * wide // WIDTH))
    top = (large.shape[0] - HEIGHT) // 2
    around = cv2.GaussianBlur(large[top : top + HEIGHT], (0, 0), 12)
    around[:, 200:-200] = image
    return around


def _subtitled(image: np.ndarray, t: int) -> np.ndarray:
    framed = _padded(60, 0)(image, t).copy()
    return cv2.putText(framed, "what is said", (60, 335), 0, 0.9, (255, 255, 255), 2)


def _fading(image: np.ndarray, t: int) -> np.ndarray:
    return _padded(0, 90)((image * (t / 24)).astype(np.uint8), t)


BARRED: dict[str, tuple[Make, Rectangle]] = {
    "pillarbox": (_padded(0, 54), Rectangle(0, 54, HEIGHT, WIDTH)),
    "portrait": (_padded(0, 300), Rectangle(0, 300, HEIGHT, WIDTH)),
    "letterbox": (_padded(40, 0), Rectangle(40, 0, HEIGHT, WIDTH)),
    "both": (_padded(50, 70), Rectangle(50, 70, HEIGHT, WIDTH)),
    "grey": (_padded(0, 80, 90), Rectangle(0, 80, HEIGHT, WIDTH)),
    "white": (_padded(60, 0, 255), Rectangle(60, 0, HEIGHT, WIDTH)),
    "blurred": (_blurred, Rectangle(0, 200, HEIGHT, WIDTH)),
    "subtitles in the bar": (_subtitled, Rectangle(60, 0, HEIGHT, WIDTH)),
    "fade": (_fading, Rectangle(0, 90, HEIGHT, WIDTH)),
    "dark": (
        lambda image, t: _padded(40, 0)((image * 0.15).astype(np.uint8), t),
        Rectangle(40, 0, HEIGHT, WIDTH),
    ),
}


def _through(codec: str, images: list[np.ndarray], folder: Path, **options: str) -> list[Frame]:
    path = folder / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return [Frame(t, raw) for t, raw in enumerate(container.decode(video=0))]


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("name", list(BARRED))
def test_bars_are_left_out_and_little_else(tmp_path: Path, name: str, codec: str) -> None:
    make, truth = BARRED[name]
    images = [make(image, t) for t, image in enumerate(_pan())]
    (window,) = windows(_through(codec, images, tmp_path, b="3M"), MineConfig())
    found = window.within
    assert found is not None
    for start, length, begin, end in (
        (truth.top, truth.height, found.top, found.top + found.height),
        (truth.left, truth.width, found.left, found.left + found.width),
    ):
        assert start <= begin <= start + MARGIN * (begin > 0)
        assert start + length - MARGIN * (begin > 0) <= end <= start + length


def _vignette(image: np.ndarray, t: int) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    far = np.hypot((x - WIDTH / 2) / WIDTH, (y - HEIGHT / 2) / HEIGHT)
    return (image * np.clip(1.6 - 2.4 * far, 0, 1)[..., None]).astype(np.uint8)


def _wall(image: np.ndarray, t: int) -> np.ndarray:
    walled = image.copy()
    walled[:, :100] = 170
    return walled


def _dark_side(image: np.ndarray, t: int) -> np.ndarray:
    dark = np.where(np.arange(WIDTH) < 80, 0.2, 1.0)[None, :, None]
    return (image * dark).astype(np.uint8)


def _horizon(image: np.ndarray, t: int) -> np.ndarray:
    """A plain sky above; the ground is not plain."""
    sky = image.copy()
    sky[:70] = (90, 140, 230)
    return sky


SCENES: dict[str, Make] = {
    "as it is": lambda image, t: image,
    "vignette": _vignette,
    "wall": _wall,
    "dark at a side": _dark_side,
    "sky": _horizon,
    "night": lambda image, t: (image * 0.08).astype(np.uint8),
    "black": lambda image, t: image * 0,
}


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("name", list(SCENES))
def test_scenes_that_are_dark_or_plain_at_the_border_stay_whole(
    tmp_path: Path, name: str, moves: bool
) -> None:
    pan = _pan()
    images = [SCENES[name](pan[t if moves else 0], t) for t in range(24)]
    frames = _through("libx264", images, tmp_path, crf="23")
    assert [window.within for window in windows(frames, MineConfig())] == [None]
    keyframes = [frame.image() for frame in frames[::3]]
    assert active_picture(keyframes) == whole((HEIGHT, WIDTH))


def test_a_dark_window_keeps_the_picture_of_the_one_before() -> None:
    make, truth = BARRED["pillarbox"]
    seen = active_picture([make(image, 0) for image in _pan(8)])
    assert abs(seen.left - truth.left) <= MARGIN
    black = [np.zeros((HEIGHT, WIDTH + 108, 3), np.uint8)] * 8
    assert active_picture(black) == whole((HEIGHT, WIDTH + 108))
    assert active_picture(black, seen) == seen
    bright = [np.concatenate([image, image], axis=1)[:, : WIDTH + 108] for image in _pan(8)]
    assert active_picture(bright, seen) == whole((HEIGHT, WIDTH + 108))


def _frames(images: list[np.ndarray]) -> Iterator[Frame]:
    for number, image in enumerate(images):
        raw = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        yield Frame(number, raw)


def test_windows_show_the_picture_in_full_resolution() -> None:
    """A portrait picture of 400×225 in a wide frame: what is tracked has 200 columns, not 63."""
    tall = texture(480, 305, 0)
    images = [
        np.pad(tall[t : t + 400, t : t + 225], ((0, 0), (244, 244), (0, 0))) for t in range(24)
    ]
    (window,) = windows(_frames(images), MineConfig(track_size=200))
    assert window.within is not None
    height, width = window.size
    assert height == 400
    assert 225 - 2 * MARGIN <= width <= 225
    assert window.frame_size == (400, 713)
    assert {small.shape for small in window.small} == {(round(400 * 200 / width), 200)}
    assert window.corner.tolist() == [window.within.left, 0]
    for place in (0, 10, 23):
        expected = cv2.cvtColor(window.within.of(images[place]), cv2.COLOR_RGB2GRAY)
        expected = cv2.resize(expected, window.small[0].shape[::-1], interpolation=cv2.INTER_AREA)
        off = np.abs(window.small[place].astype(int) - expected.astype(int))
        assert off.mean() < 1.5


def test_bars_may_come_and_go() -> None:
    make, _ = BARRED["pillarbox"]
    pan = [np.concatenate([image, image[:, :108]], axis=1) for image in _pan(48)]
    images = [make(pan[t][:, 54:-54], t) if t >= 24 else pan[t] for t in range(48)]
    found = [window.within for window in windows(_frames(images), MineConfig(cut_threshold=99.0))]
    assert found[0] is None
    assert found[1] is not None


def test_only_frames_that_may_have_bars_are_held() -> None:
    pan = _pan(1)[0]
    assert not perhaps_barred(cv2.resize(pan, (120, 90), interpolation=cv2.INTER_AREA))
    for make, _ in BARRED.values():
        framed = make(pan, 12)
        size = (round(90 * framed.shape[1] / framed.shape[0]), 90)
        assert perhaps_barred(cv2.resize(framed, size, interpolation=cv2.INTER_AREA))


# --- what is mined


def _walk(seed: int) -> np.ndarray:
    """float64 [48, 2]: a random motion of some persistence."""
    rng, path, speed = np.random.default_rng(seed), np.zeros((48, 2)), np.zeros(2)
    for t in range(1, 48):
        speed = 0.6 * speed + rng.normal(0, 1.6, 2)
        path[t] = np.clip(path[t - 1] + speed, -22, 22)
    return path


def _movers() -> tuple[list[np.ndarray], np.ndarray]:
    """Two squares with motions of their own before a background that the camera pans over.

    Returns frames and the corners of the squares, int [T, 2, 2] (x, y).
    """
    pan, squares = _pan(48), [texture(80, 80, seed) for seed in (1, 2)]
    paths = [np.array(start) + _walk(seed) for start, seed in (((30, 70), 11), ((200, 70), 12))]
    corners = np.stack(paths, axis=1).round().astype(int)
    for image, places in zip(pan, corners, strict=True):
        for square, (x, y) in zip(squares, places, strict=True):
            image[y : y + 80, x : x + 80] = square
    return pan, corners


def _shares(found: TwinDictionary, corners: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """How much of each patch that has a twin is on a square."""
    rows, shares = found.patches, []
    for i in np.flatnonzero(np.asarray(found.twins)[:, 0] >= 0):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        for x, y in corners[int(rows["frame"][i])]:
            mask[y : y + 80, x : x + 80] = True
        size = int(rows["size"][i])
        x, y = (np.array([rows["x"][i], rows["y"][i]]) - shift - size / 2).round().astype(int)
        inside = x >= 0 and y >= 0 and x + size <= WIDTH and y + size <= HEIGHT
        assert inside, "a patch reaches into the bars"
        shares.append(mask[y : y + size, x : x + size].mean())
    return np.array(shares)


def test_bars_change_little_of_what_is_mined(tmp_path: Path, write_video: WriteVideo) -> None:
    images, corners = _movers()
    counts = {}
    for rows, columns in ((0, 0), (0, 54), (0, 300), (100, 0)):
        framed = [_padded(rows, columns)(image, 0) for image in images]
        path = write_video(tmp_path / f"{rows}-{columns}.mp4", framed)
        found = mine(path, tmp_path / f"twins-{rows}-{columns}", progress=False)
        shares = _shares(found, corners, np.array([columns, rows]))
        assert np.mean(shares >= 0.5) > 0.9
        counts[rows, columns] = int((shares >= 0.75).sum())
        record = json.loads(found.part_files(0).read("video.json"))
        pictures = record["source"].get("active_pictures", {})
        assert bool(pictures) == (rows + columns > 0)
        assert {window.get("picture") for window in record["windows"]} <= {None, *pictures}
        assert record["windows"][0]["height"] == HEIGHT + 2 * rows
        assert record["windows"][0]["patch"] == 16
    plain = counts.pop((0, 0))
    assert plain > 100
    for count in counts.values():
        assert count >= 0.8 * plain
