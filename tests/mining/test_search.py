"""Which files a search takes, whatever their names, and what it passes over."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from solo_infoaug import MineConfig, TwinDictionary
from solo_infoaug.cli import app
from solo_infoaug.dictionary.exporting import export_patches
from solo_infoaug.errors import ConfigError, VideoError
from solo_infoaug.mining import mine
from solo_infoaug.mining.search import find_videos, search
from solo_infoaug.mining.video import open_video
from solo_infoaug.viewer import show

SMALL = MineConfig(
    window=32, stride=32, min_frames=24, temporal_crops=2, crop_size=16, surrogates=8
)
SETTINGS = [
    *("-s", "window=32", "-s", "stride=32", "-s", "min_frames=24"),
    *("-s", "temporal_crops=2", "-s", "crop_size=16", "-s", "surrogates=8"),
]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory, video: Path) -> TwinDictionary:
    return mine(video, tmp_path_factory.mktemp("mined") / "twins", SMALL, progress=False)


def _frames(folder: Path, count: int = 5) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03d}.png")


# What FFmpeg takes for a protocol, a pipe, a pattern or an option.
_NAMES = ("12:30:00.mp4", "file:b.mp4", "pipe:", "-", "-x.mp4", "concat:b.mp4|c.mp4", "a%03d.mp4")
_MORE = (
    "data:,x.mp4",
    "two\nlines.mp4",
    "[ab]*?.mp4",
    "subfile,,start,0,end,9,,:b.mp4",
    "${b}.mp4",
)


@pytest.mark.parametrize("name", [*_NAMES, *_MORE])
def test_a_file_is_the_one_of_this_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_video, name: str
) -> None:
    def frames(count: int) -> list[np.ndarray]:
        return [np.full((32, 32, 3), 9 * t, np.uint8) for t in range(count)]

    written = write_video(tmp_path / "x.mp4", frames(7))
    written.rename(tmp_path / name)
    write_video(tmp_path / "b.mp4", frames(3))
    monkeypatch.chdir(tmp_path)
    with open_video(Path(name)) as video:
        assert len(list(video.frames())) == 7
        assert video.duration == pytest.approx(7 / 25)


def test_one_image_is_not_the_sequence_that_its_name_stands_for(tmp_path: Path) -> None:
    _frames(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "%03d.png")
    with open_video(tmp_path / "%03d.png") as video:
        assert len(list(video.frames())) == 1


def test_a_film_is_written_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twins: TwinDictionary
) -> None:
    monkeypatch.chdir(tmp_path)
    show(twins, "10:30%d.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["10:30%d.mp4"]


def test_what_is_no_video_of_the_user_is_passed_over(
    tmp_path: Path, video: Path, twins: TwinDictionary
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    good = shutil.copy(video, folder / "good.mp4")
    shutil.copytree(twins.path, folder / "twins")
    export_patches(twins, folder / "patches")
    show(twins, folder / "shown.mp4")
    show(twins, folder / "shown.html")
    _frames(folder / ".Trash-1000" / "frames")
    _frames(folder / "__MACOSX")
    _frames(folder / "lost+found")
    (folder / "c.mp4.download").mkdir()
    for name in (
        ".hidden.mp4",
        "a.mp4",
        "a.mp4.part",
        "b.mp4",
        "b.mp4.aria2",
        "c.mp4.download/c.mp4",
    ):
        shutil.copy(video, folder / name)
    _frames(folder / "frames")
    for number in range(5):  # what macOS puts beside each file on other systems' disks
        (folder / "frames" / f"._{number:03d}.png").write_bytes(b"x")
    found, left_out = search([folder])
    assert found == [good, folder / "frames"]
    told = "\n".join(left_out)
    for what in (
        f"{folder / '.Trash-1000'}: not searched: hidden",
        f"{folder / '__MACOSX'} and 1 other folders: not searched: of the system",
        f"{folder / 'twins'}: not searched: twin dictionary",
        "not searched: output of solo-infoaug",
        f"{folder / 'c.mp4.download'}: not searched: partly downloaded",
        "1 drawn by solo-infoaug",
        "6 hidden",
        "2 partly downloaded",
    ):
        assert what in told


def test_an_unfinished_dictionary_is_passed_over(tmp_path: Path, twins: TwinDictionary) -> None:
    shutil.copytree(twins.path, tmp_path / "videos" / "twins")
    (tmp_path / "videos" / "twins" / "dictionary.json").unlink()
    (tmp_path / "videos" / "twins" / ".lock").touch()
    with pytest.raises(VideoError, match=r"no video in folder(.|\n)*not searched: twin dictionary"):
        find_videos([tmp_path / "videos"])


def _tree(folder: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "raw/a.mp4", "raw/deep/c.mp4", "raw/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    _frames(folder / "frames")
    return folder


@pytest.mark.parametrize(
    ("patterns", "kept", "told"),
    [
        (["b*"], ["a.mp4", "frames", "raw/a.mp4", "raw/deep/c.mp4"], ["'b*': 1 files"]),
        (["a.mp4"], ["b.mp4", "frames", "raw/deep/c.mp4"], ["'a.mp4': 2 files"]),
        (["**/a.mp4"], ["b.mp4", "frames", "raw/deep/c.mp4"], ["'**/a.mp4': 2 files"]),
        (["raw/a*"], ["a.mp4", "b.mp4", "frames", "raw/deep/c.mp4"], ["'raw/a*': 1 files"]),
        (["raw/"], ["a.mp4", "b.mp4", "frames"], ["'raw/': 1 folders"]),
        (["raw/*"], ["a.mp4", "b.mp4", "frames"], ["'raw/*': 1 files, 1 folders"]),
        (["deep", "frames"], ["a.mp4", "b.mp4", "raw/a.mp4"], ["'deep': 1", "'frames': 1"]),
        (["A*"], ["a.mp4", "b.mp4", "frames", "raw/a.mp4", "raw/deep/c.mp4"], ["'A*': nothing"]),
    ],
)
def test_exclude(tmp_path: Path, patterns: list[str], kept: list[str], told: list[str]) -> None:
    folder = _tree(tmp_path / "videos")
    found, left_out = search([folder], patterns)
    assert sorted(path.relative_to(folder).as_posix() for path in found) == kept
    for what in told:
        assert any(line.startswith(f"excluded by {what}") for line in left_out)


def test_exclude_of_everything_or_of_nothing(tmp_path: Path) -> None:
    folder = _tree(tmp_path / "videos")
    with pytest.raises(VideoError, match=r"no video in folder(.|\n)*excluded by '\*': 2 files, 2"):
        search([folder], ["*"])
    with pytest.raises(VideoError, match=r"no video is left\nexcluded by 'a\*': 1 files"):
        search([folder / "a.mp4"], ["a*"])
    assert search([folder / "a.mp4", folder / "b.mp4"], ["a*"])[0] == [folder / "b.mp4"]
    for pattern in ("", "/"):
        with pytest.raises(ConfigError, match="exclude: expected a name"):
            search([folder], [pattern])


@pytest.mark.filterwarnings("ignore:excluded by")
def test_mining_excludes_and_goes_on(tmp_path: Path, video: Path, write_video, scene) -> None:
    folder, out = tmp_path / "videos", str(tmp_path / "twins")
    folder.mkdir()
    shutil.copy(video, folder / "one.mp4")
    write_video(folder / "two.mp4", [np.ascontiguousarray(image[:, ::-1]) for image in scene[0]])
    command = ["mine", str(folder), "-o", out, "-j", "1", *SETTINGS]
    first = CliRunner().invoke(app, [*command, "--exclude", "two*"])
    assert first.exit_code == 0, first.output
    info = TwinDictionary.load(out).info
    assert (info["exclude"], info["left_out"]) == (["two*"], ["excluded by 'two*': 1 files"])
    # without the pattern the rest is mined as well; with it, the dictionary would lose a video
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert TwinDictionary.load(out).videos == ["one.mp4", "two.mp4"]
    less = CliRunner().invoke(app, [*command, "--exclude", "two*"])
    assert less.exit_code == 1
    assert "of videos that are excluded now" in str(less.exception)


_COMBINATIONS = [these for these in product((True, False), repeat=3) if any(these)]


@pytest.mark.parametrize(("twinless", "unreadable", "good"), _COMBINATIONS)
def test_a_video_without_a_twin_is_no_failure(
    tmp_path: Path, video: Path, write_video, scene, twinless: bool, unreadable: bool, good: bool
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "twins"
    folder.mkdir()
    if twinless:
        write_video(folder / "still.mp4", [scene[0][0]] * 40)
    if unreadable:
        (folder / "text.mp4").write_text("no video")
    if good:
        shutil.copy(video, folder / "good.mp4")
    for _ in range(2):  # the second run finds what the first has noted
        command = ["mine", str(folder), "-o", str(out), "-j", "1", *SETTINGS]
        run = CliRunner().invoke(app, command)
        said = run.output + str(run.exception or "")
        assert run.exit_code == (1 if not good else 2 if unreadable else 0), said
        assert ("no patch found a twin" in said) == twinless
        assert ("cannot be opened as a video" in said) == unreadable
        if not good:
            continue
        info = TwinDictionary.load(out).info
        assert info["videos"][0].startswith("good-")
        assert len(info["videos"]) == 1
        still, text = folder / "still.mp4", folder / "text.mp4"
        assert list(info["twinless"]) == ([str(still)] if twinless else [])
        assert list(info["failed"]) == ([str(text)] if unreadable else [])
        assert ("1 video without a twin:" in said) == twinless
        assert ("1 video failed:" in said) == unreadable


def test_a_video_without_a_twin_is_mined_once(
    tmp_path: Path, video: Path, write_video, scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = write_video(tmp_path / "still.mp4", [scene[0][0]] * 40)
    first = mine([still, video], tmp_path / "twins", SMALL, progress=False)
    monkeypatch.setattr("solo_infoaug.mining.mine_one.mine_video", None)
    again = mine([still, video], tmp_path / "twins", SMALL, progress=False)
    assert again.info == first.info
