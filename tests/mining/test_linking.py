"""Which patch continues which, from window to window; and what a crop shows around its patch."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from videos import path_of

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.crops import crops, squares
from solo_infoaug.mining.linking import Links, link
from solo_infoaug.mining.storing import Stored

SIZE = 20


def _window(first: int, tracks: np.ndarray, shot: int = 0, seen: np.ndarray | None = None):
    """A stored window, as far as linking looks at it: tracks [T, P, 2]."""
    frames, count, _ = tracks.shape
    seen = np.ones((frames, count), bool) if seen is None else seen
    return Stored(
        record={"shot": shot, "first": first, "frames": frames},
        image=None,
        patches={"size": np.full(count, SIZE, np.float32)},
        pixels=None,
        twins=np.full((count, 1), -1),
        mi=None,
        p_value=None,
        moment_frames=None,
        arrays={"tracks": tracks.astype(np.float32), "visible": seen},
    )


def _rest(points: list[tuple[float, float]], frames: int = 8) -> np.ndarray:
    return np.tile(np.array(points, float), (frames, 1, 1))


def test_the_nearest_within_half_a_side_continues() -> None:
    before = _rest([(100, 100), (200, 100), (300, 100)])
    before[-1, 0] = 150, 100  # where it ends counts
    after = _rest([(209.9, 100), (152, 101), (310.1, 100)])
    after[1:] += 500  # where it begins counts
    assert link(_window(0, before), _window(8, after)).tolist() == [1, 0, -1]


def test_only_mutual_neighbours_are_linked() -> None:
    before, after = _rest([(100, 100), (106, 100)]), _rest([(104, 100)])
    assert link(_window(0, before), _window(8, after)).tolist() == [-1, 0]
    assert link(_window(0, after), _window(8, before)).tolist() == [1]


def test_both_must_be_seen() -> None:
    points = [(100, 100), (200, 100), (300, 100)]
    seen = np.ones((8, 3), bool)
    seen[-1, 0] = seen[0, 1] = False
    shown = _rest(points)
    windows = _window(0, shown, seen=seen), _window(8, shown, seen=seen)
    assert link(*windows).tolist() == [-1, -1, 2]


def test_overlapping_windows_are_compared_in_a_frame_of_both() -> None:
    before, after = _rest([(100, 100)]), _rest([(160, 100)])
    before[5:] = 160, 100
    assert link(_window(0, before), _window(5, after)).tolist() == [0]
    assert link(_window(0, before), _window(4, after)).tolist() == [-1]
    # every second frame is mined: the first of the next window is 10 frames later
    assert link(_window(0, before), _window(10, after), frame_step=2).tolist() == [0]


@pytest.mark.parametrize("after", [{"first": 9}, {"first": 0}, {"first": 8, "shot": 1}])
def test_windows_that_do_not_meet(after: dict) -> None:
    """A frame between them is missing, the same one twice, another shot."""
    points = _rest([(100, 100)])
    assert link(_window(0, points), _window(tracks=points, **after)).tolist() == [-1]


def test_links_count_through_the_video() -> None:
    links = Links(1)
    for number, points in enumerate(([(0, 0), (50, 0)], [(50, 1)], [(90, 0), (50, 2), (0, 0)])):
        links.add(_window(8 * number, _rest(points)))
    assert links.following.tolist() == [-1, 2, 4, -1, -1, -1]


# --- crops


def _places(height: int = 60, width: int = 90) -> np.ndarray:
    """uint8 [H, W, 3]: row and column of each pixel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.zeros_like(x)], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "context", "shape"),
    [
        (10, 2.0, (60, 90)),
        (4, 5.0, (60, 90)),
        (9, 3.5, (60, 90)),
        (20, 2.5, (20, 30)),
        (14, 5.0, (20, 30)),  # larger than the frame
        (7, 9.0, (9, 200)),
    ],
)
def test_crops_are_reflected_at_the_border(
    size: int, context: float, shape: tuple[int, int]
) -> None:
    """Against NumPy's padding of the whole image; patches outside are moved inside."""
    (height, width), span = shape, round(context * size)
    image, rng = _places(height, width), np.random.default_rng(0)
    path = rng.uniform((-20, -20), (width + 20, height + 20), (1, 60, 2))
    path[0, :4] = (0, 0), (width, 0), (0, height), (width, height)
    times = np.zeros((60, 1), np.int64)
    found = crops({0: image}, times, path, size, span, context)[:, 0]
    padded = np.pad(image, ((span, span), (span, span), (0, 0)), mode="reflect")
    for shown, (x, y) in zip(found, path[0], strict=True):
        left = min(max(round(x - size / 2), 0), width - size) - (span - size) // 2 + span
        top = min(max(round(y - size / 2), 0), height - size) - (span - size) // 2 + span
        expected = padded[top : top + span, left : left + span]
        assert np.array_equal(shown.transpose(1, 2, 0), expected)
    one_by_one = np.stack([*squares({0: image}, times, path, size, span, context)])
    assert np.array_equal(one_by_one.transpose(0, 3, 1, 2), found)


@pytest.mark.parametrize(("size", "context"), [(40, 4.0), (25, 4.0), (96, 1.0), (37, 6.0)])
def test_a_crop_that_is_shrunk_shows_all_of_its_square(size: int, context: float) -> None:
    """Against the square itself, shrunk by area."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (431, 643, 3), np.uint8), (0, 0), 15)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    path = np.array([[[320.0, 210.0], [250.0, 222.0]]])
    found = crops({0: image}, np.zeros((2, 1), np.int64), path, size, 32, context)[:, 0]
    span = round(context * size)
    for shown, (x, y) in zip(found, path[0], strict=True):
        left, top = (round(place - size / 2) - (span - size) // 2 for place in (x, y))
        square = image[top : top + span, left : left + span]
        exact = cv2.resize(square, (32, 32), interpolation=cv2.INTER_AREA)
        error = np.abs(shown.transpose(1, 2, 0).astype(float) - exact)
        moved = np.abs(np.roll(exact, 1, axis=1).astype(float) - exact)
        assert error.mean() < 0.6 * moved.mean()  # places are rounded to pixels of the shrunk image


@pytest.mark.parametrize("context", [1.0, 2.0, 2.5, 4.0])
def test_the_patch_is_in_the_middle_of_its_context(context: float) -> None:
    """Beyond the border it is shifted inside; what is around it is reflected."""
    image = np.full((80, 120, 3), 50, np.uint8)
    image[0:16, 0:16] = 250  # the patch, whose track has left the frame by 4 pixels
    image[30:46, 60:76] = 250
    path = np.array([[[4.0, 8.0], [68.0, 38.0]]])
    moments = np.zeros((2, 1), np.int64)
    found = crops({0: image}, moments, path, 16, 80, context)[:, 0, 0]
    inner = 80 / context
    for place, shown in enumerate(found):
        inside = shown[40, int(40 - inner / 2) + 3 : int(40 + inner / 2) - 3]
        assert (inside > 240).all()
        if context > 1 and place == 1:
            assert (shown[40, : int(40 - inner / 2) - 3] < 60).all()


def test_one_side_of_context_is_what_it_was() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (70, 90, 3), np.uint8)
    path = rng.uniform(-5, 95, (1, 40, 2))
    found = crops({0: image}, np.zeros((40, 1), np.int64), path, 17, 32)[:, 0]
    for patch, (x, y) in enumerate(path[0]):
        left = min(max(round(x - 8.5), 0), 90 - 17)
        top = min(max(round(y - 8.5), 0), 70 - 17)
        expected = cv2.resize(image[top : top + 17, left : left + 17], (32, 32))
        assert np.array_equal(found[patch].transpose(1, 2, 0), expected)


# --- mined

SMALL = MineConfig(context=1.0, min_frames=16, window=32, stride=32, camera="none", parallax=0)


def _with(**settings: object) -> MineConfig:
    return MineConfig(**{**SMALL.to_json(), **settings})


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory, video: Path) -> TwinDictionary:
    return mine(video, tmp_path_factory.mktemp("mined") / "twins", SMALL, progress=False)


def _table(dictionary: TwinDictionary) -> bytes:
    return dictionary.part_files(0).read("index.safetensors")


@pytest.mark.parametrize(
    "settings", [{"context": 4.0}, {"crop_size": 96}, {"context": 2.0, "crop_format": "jpeg"}]
)
def test_what_a_crop_shows_changes_no_twin(
    tmp_path: Path, video: Path, mined: TwinDictionary, settings: dict
) -> None:
    other = mine(video, tmp_path / "twins", _with(**settings), progress=False)
    assert _table(other) == _table(mined)
    assert set(other.context.tolist()) == {settings.get("context", 1.0)}
    for ours, theirs in zip(other.windows, mined.windows, strict=True):
        for name, array in ours.arrays.items():
            assert array.tobytes() == theirs.arrays[name].tobytes()


def test_the_middle_of_a_context_is_the_patch(
    tmp_path: Path, video: Path, mined: TwinDictionary
) -> None:
    wide = mine(video, tmp_path / "w", _with(context=2.0, crop_size=64), progress=False)
    middle = wide.pixels[:, :, :, 16:48, 16:48].float()
    plain = mined.pixels.float()
    assert (middle - plain).abs().mean() < 3
    assert (middle - plain[torch.arange(len(plain)) - 1]).abs().mean() > 20


def test_jpeg_is_near_what_raw_is(tmp_path: Path, video: Path) -> None:
    """38 dB and a sixth of the size, as the pages promise."""
    raw, jpeg = (
        mine(video, tmp_path / name, _with(crop_size=96, crop_format=name), progress=False)
        for name in ("raw", "jpeg")
    )
    error = (jpeg.pixels[:].float() - raw.pixels.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) >= 38
    sizes = [one.part_files(0).where("pixels-0000.safetensors").size for one in (raw, jpeg)]
    assert sizes[1] <= sizes[0] / 6


def test_jpeg_is_the_same_with_any_number_of_threads(tmp_path: Path, video: Path) -> None:
    made = [
        mine(video, tmp_path / str(n), _with(crop_size=96), threads=n, progress=False)
        for n in (1, 3)
    ]
    files = [
        {path.relative_to(one.path): path.read_bytes() for path in one.path.rglob("*.s*")}
        for one in made
    ]
    assert files[0] == files[1]


def test_links_follow_the_objects(mined: TwinDictionary, scene) -> None:
    """Patches on an object are continued by patches where the object has carried them."""
    assert len(mined.windows) == 2
    linked = (mined.next >= 0).nonzero()[:, 0].numpy()
    rows, later = mined.patches[linked], mined.patches[mined.next[linked].numpy()]
    anchors = np.isin(linked, mined.anchors.numpy())
    assert anchors.sum() > 30
    moved = np.stack([later["x"] - rows["x"], later["y"] - rows["y"]], axis=1)[anchors]
    first, second = int(rows["frame"][0]), int(later["frame"][0])
    ways = [path_of(64, 10 + number) for number in range(2)]
    expected = np.stack([way[second] - way[first] for way in ways])
    error = np.abs(moved[:, None] - expected).max(axis=2).min(axis=1)
    assert (error < mined.patches["size"][0] / 2 + 2).mean() > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 0.5}, r"context: expected in \[1, 16\] sides of a patch, got 0.5"),
        ({"crop_format": "png"}, "crop_format: expected one of auto, raw, jpeg"),
    ],
)
def test_settings(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MineConfig(**settings)
