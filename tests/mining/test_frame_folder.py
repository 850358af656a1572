"""Folders of numbered images, as tracking data sets have them, and what a search leaves out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from solo_infoaug.cli import app
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import VideoError
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.frame_folder import FrameFolder
from solo_infoaug.mining.trackers import FileTracker
from solo_infoaug.mining.video import find_videos, open_video, search, video_digest, video_name
from solo_infoaug.viewer import show

SMALL = MineConfig(min_frames=24, window=64, stride=64, temporal_crops=2, camera="none", parallax=0)


def _images(folder: Path, names: Iterable[str], frames: Sequence[np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, frames, strict=False):
        Image.fromarray(frame).save(folder / name, quality=95)
    return folder


def _davis(root: Path, frames: Sequence[np.ndarray]) -> Path:
    names = [f"{n:05d}.jpg" for n in range(len(frames))]
    return _images(root / "JPEGImages" / "480p" / "bear", names, frames)


def _got(root: Path, frames: Sequence[np.ndarray]) -> Path:
    names = [f"{n + 1:08d}.png" for n in range(len(frames))]
    return _images(root / "GOT-10k_Val_000001.x", names, frames)


def _mot(root: Path, frames: Sequence[np.ndarray]) -> Path:
    names = [f"{n + 1:06d}.jpg" for n in range(len(frames))]
    return _images(root / "MOT17-02" / "img1", names, frames)


def _every_fifth(root: Path, frames: Sequence[np.ndarray]) -> Path:
    names = [f"frame{5 * n}.png" for n in range(len(frames))]
    return _images(root / "vos", names, frames)


@pytest.mark.parametrize(
    ("make", "name"),
    [(_davis, "bear"), (_got, "GOT-10k_Val_000001.x"), (_mot, "MOT17-02"), (_every_fifth, "vos")],
)
def test_layouts_of_tracking_data_sets(tmp_path: Path, scene, make, name: str) -> None:
    folder = make(tmp_path, scene[0])
    assert find_videos([tmp_path]) == [folder] == find_videos([folder])
    assert video_name(folder) == name
    with open_video(folder, fps=10) as video:
        frames = list(video.frames())
        assert (video.record["fps"], video.record["duration"]) == (10, 6.4)
    assert [frame.number for frame in frames] == list(range(64))
    assert not any(frame.gap for frame in frames)
    assert frames[0].size == (160, 256)
    for place in (0, 11, 63):
        image = frames[place].image().astype(int)
        assert np.abs(image - scene[0][place].astype(int)).mean() < 12
    assert frames[0].image((40, 64), "gray").shape == (40, 64)


def test_mined_with_files_and_resumed(tmp_path: Path, video: Path, scene) -> None:
    _davis(tmp_path / "data", scene[0][::-1])
    (tmp_path / "data" / "two.mp4").write_bytes(video.read_bytes())
    one = mine(tmp_path / "data", tmp_path / "one", SMALL, progress=False)
    assert one.videos == ["bear", "two.mp4"]
    half = mine(tmp_path / "data" / "JPEGImages", tmp_path / "two", SMALL, progress=False)
    assert half.videos == ["bear"]
    two = mine([tmp_path / "data"], tmp_path / "two", SMALL, progress=False)
    assert two.fingerprint == one.fingerprint
    show(one, tmp_path / "twins.mp4", [tmp_path / "data"])
    assert (tmp_path / "twins.mp4").stat().st_size > 0


def test_fractions_and_steps(tmp_path: Path, scene) -> None:
    folder = _davis(tmp_path, scene[0])
    with open_video(folder) as video:
        head = [frame.number for frame in video.frames(0.0, 0.3)]
        tail = [frame.number for frame in video.frames(0.3, 1.0)]
        assert head + tail == list(range(64))
        assert len(head) == 19
        assert [frame.number for frame in video.frames(step=20)] == [0, 20, 40, 60]


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"", lambda data: b"x"])
@pytest.mark.parametrize("make", [_davis, _got])
def test_a_damaged_image_is_named_and_breaks_the_shot(tmp_path: Path, scene, make, damage) -> None:
    folder = make(tmp_path, scene[0])
    broken = sorted(folder.iterdir())[30]
    broken.write_bytes(damage(broken.read_bytes()))
    with open_video(folder) as video:
        frames = list(video.frames())
        assert (video.damaged, video.left_out) == (1, 1)
        assert video.record["damaged_files"] == [broken.name]
    assert [frame.number for frame in frames] == [n for n in range(64) if n != 30]
    assert [frame.number for frame in frames if frame.gap] == [31]


def test_a_missing_image_breaks_the_shot(tmp_path: Path, scene) -> None:
    folder = _davis(tmp_path, scene[0])
    (folder / "00030.jpg").unlink()
    with open_video(folder) as video:
        assert [frame.number for frame in video.frames() if frame.gap] == [30]
        assert video.record["missing_images"] == 1


def test_digest_is_that_of_the_content(tmp_path: Path, scene) -> None:
    one, two = _davis(tmp_path / "1", scene[0]), _davis(tmp_path / "2", scene[0])
    assert video_digest(one) == video_digest(two)
    two.joinpath("notes.txt").touch()
    assert video_digest(one) == video_digest(two)
    _images(two, ["00005.jpg"], scene[0][7:])
    assert video_digest(one) != video_digest(two)
    other = _davis(tmp_path / "3", scene[0])
    dictionary = mine([one, other], tmp_path / "twins", SMALL, progress=False)
    assert dictionary.info["duplicates"] == {str(other): str(one)}


def test_kinds_of_pixels(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 65536, 1024, np.uint16), (64, 1))
    wide = tmp_path / "wide"
    wide.mkdir()
    for n in range(4):
        Image.fromarray(ramp).save(wide / f"{n}.png")
    with FrameFolder(wide) as video:
        shown = next(video.frames()).image(layout="gray")
    assert np.abs(shown.astype(int) - (ramp >> 8)).max() <= 1
    clear = np.dstack([np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64), np.uint8)])
    clear[:, :32, 3] = 255
    with FrameFolder(_images(tmp_path / "clear", [f"{n}.png" for n in range(4)], [clear] * 4)) as v:
        image = next(v.frames()).image()
    assert (image[:, :32] == 200).all()
    assert (image[:, 32:] == 0).all()


def test_exif_orientation(tmp_path: Path, scene) -> None:
    folder = _davis(tmp_path, scene[0][:5])
    exif = Image.Exif()
    exif[0x112] = 6
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.load()
        image.save(path, quality=95, exif=exif)
    with FrameFolder(folder) as video:
        frame = next(video.frames())
        assert (video.record["width"], video.record["height"]) == (160, 256)
    turned = np.rot90(scene[0][0], -1)
    assert np.abs(frame.image().astype(int) - turned.astype(int)).mean() < 12


def _sizes(count: int) -> list[np.ndarray]:
    return [np.zeros((20 + n, 30, 3), np.uint8) for n in range(count)]


@pytest.mark.parametrize(
    ("names", "frames", "why"),
    [
        ([f"IMG_{n}.jpg" for n in (3, 9, 20, 31, 55)], _sizes(1) * 5, "not consecutive"),
        ([f"IMG_{n}.jpg" for n in range(5)], _sizes(5), "sizes differ: IMG_0.jpg is 30×20"),
        (["one.png", "two.png", "three.png", "4.png"], _sizes(1) * 4, "fewer than 4"),
        (
            [f"{side}_{n}.png" for side in ("left", "right") for n in range(6)],
            _sizes(1) * 12,
            "2 numbered sequences lie in one folder",
        ),
        (["1.png", "01.png", "2.png", "3.png", "4.png"], _sizes(1) * 5, "not consecutive"),
    ],
)
def test_a_collection_of_pictures_is_no_video(
    tmp_path: Path, names: list[str], frames: list[np.ndarray], why: str
) -> None:
    folder = _images(tmp_path / "photos", names, frames)
    with pytest.raises(VideoError, match=why):
        open_video(folder)
    with pytest.raises(VideoError, match=rf"no video in folder .*\n.*{why}"):
        find_videos([folder])
    (folder / "a.mp4").touch()
    with pytest.warns(UserWarning, match=f"{len(names)} images are not frames of a video: .*{why}"):
        assert find_videos([folder]) == [folder / "a.mp4"]


def test_label_masks_are_no_video(tmp_path: Path, scene) -> None:
    folder = _davis(tmp_path, scene[0][:5])
    masks = tmp_path / "Annotations" / "480p" / "bear"
    masks.mkdir(parents=True)
    for n in range(5):
        Image.fromarray(np.zeros((16, 16), np.uint8)).convert("P").save(masks / f"{n:05d}.png")
    found, left_out = search([tmp_path])
    assert found == [folder]
    assert left_out == [
        f"{masks}: 5 images are not frames of a video: they are palette images, as label masks are"
    ]


def test_tracks_of_a_folder_of_frames(tmp_path: Path, scene) -> None:
    arrays = {"tracks": np.zeros((2, 64, 2), np.float32), "visibility": np.ones((2, 64), bool)}
    for make in (_davis, _got, _mot):
        folder = make(tmp_path, scene[0][:5])
        own = folder.parent if folder.name == "img1" else folder
        beside = own.parent / f"{video_name(folder)}.npz"
        np.savez(beside, **arrays)
        assert FileTracker(folder, MineConfig(tracker="file")).path == beside
        np.savez(tmp_path / beside.name, **arrays)
        elsewhere = MineConfig(tracker="file", tracks_folder=str(tmp_path))
        assert FileTracker(folder, elsewhere).path == tmp_path / beside.name


# --- searching


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "store" / "deep" / "a.mp4").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "deep" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "gone.mp4").symlink_to(tmp_path / "nothing")
    found, left_out = search([tmp_path / "data"])
    assert found == [tmp_path / "data" / "linked" / "deep" / "a.mp4"]
    assert left_out == [
        f"{tmp_path / 'data'}: left out what is not known as video: 1 broken links or not files"
    ]


def test_webp_is_an_image(tmp_path: Path, scene) -> None:
    """A folder of numbered ones is frames, and not so many videos."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for n, frame in enumerate(scene[0][:8]):
        Image.fromarray(frame).save(folder / f"{n:03d}.webp", lossless=True)
    assert find_videos([tmp_path]) == [folder]
    with FrameFolder(folder) as video:
        for frame, truth in zip(video.frames(), scene[0], strict=False):
            assert (frame.image() == truth).all()
    first, *rest = (Image.fromarray(frame) for frame in scene[0][:4])
    first.save(folder / "003.webp", save_all=True, append_images=rest)
    with pytest.raises(VideoError, match=r"003\.webp holds several pictures"):
        FrameFolder(folder)
    # each may be a video then; FFmpeg says of each what it cannot do
    assert len(find_videos([tmp_path])) == 8


def test_what_is_left_out_is_counted_and_said(tmp_path: Path, video: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "two.mp4").write_bytes(video.read_bytes())
    for name in ("a.txt", "b.txt", "c.xyz", "README", ".hidden.mp4", "two.npz"):
        (data / name).touch()
    said = f"{data}: left out what is not known as video: 2 .txt, 1 .xyz, 1 hidden, "
    said += "1 without ending"
    with pytest.warns(UserWarning, match="left out") as warned:
        dictionary = mine(data, tmp_path / "twins", SMALL, progress=False)
    assert [str(warning.message) for warning in warned] == [said]
    assert dictionary.info["left_out"] == [said]
    run = CliRunner().invoke(app, ["info", str(tmp_path / "twins")])
    assert said in run.output


def test_names_that_are_no_text_or_markup(tmp_path: Path, video: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    strange = [b"caf\xe9.mp4", b"[red]x[oops].mp4", b"no video \xff.mp4"]
    for n, name in enumerate(strange):
        content = b"nothing" if n == 2 else video.read_bytes() + bytes(n)
        (data / os.fsdecode(name)).write_bytes(content)
    dictionary = mine(data, tmp_path / "twins", SMALL)
    assert dictionary.videos == ["[red]x[oops].mp4", r"caf\udce9.mp4"]
    ((path, why),) = dictionary.info["failed"].items()
    assert path.endswith(r"no video \udcff.mp4")
    assert "cannot be opened as a video" in why
    again = TwinDictionary.load(tmp_path / "twins")
    assert again.videos == dictionary.videos
    for kind in ("html", "png", "mp4"):
        show(again, tmp_path / f"twins.{kind}", [data] if kind == "mp4" else [])
