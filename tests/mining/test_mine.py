from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from solo_infoaug.cache import last_dictionary
from solo_infoaug.cli import app
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import DictionaryError, VideoError
from solo_infoaug.mining import MineConfig, mine, pipeline, sample_clips

SETTINGS = ["-s", "min_frames=24", "-s", "window=64", "-s", "stride=64", "-s", "moments=3"]
SMALL = MineConfig(min_frames=24, window=64, stride=64, moments=3)


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory, video: Path) -> TwinDictionary:
    return mine(video, tmp_path_factory.mktemp("mined") / "twins", SMALL, progress=False)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _owner(dictionary: TwinDictionary, boxes: np.ndarray) -> np.ndarray:
    """Which object each patch lies on, wholly; −1 for the background, −2 for both."""
    rows = dictionary.patches
    owner = np.full(len(rows), -1)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        half = rows["size"] / 2
        x, y = rows["x"], rows["y"]
        inside = (x - half >= x0) & (x + half <= x1) & (y - half >= y0) & (y + half <= y1)
        touching = (x + half > x0) & (x - half < x1) & (y + half > y0) & (y - half < y1)
        owner[touching] = -2
        owner[inside] = number
    return owner


def test_twins_lie_on_the_same_object(mined: TwinDictionary, scene) -> None:
    owner = _owner(mined, scene[1])
    twins = mined.twins[:, 0].numpy()
    on_object = (owner >= 0) & (twins >= 0)
    assert ((owner >= 0) & (twins >= 0)).sum() / (owner >= 0).sum() >= 0.8
    decided = on_object & (owner[twins] != -2)
    assert decided.sum() >= 10
    assert (owner[twins] == owner)[decided].mean() >= 0.95
    # Background that the objects (they stray by 18 pixels at most) never cover
    x0, y0 = (scene[1][:, :2] - 18 - 8).T[..., None]
    x1, y1 = (scene[1][:, 2:] + 18 + 8).T[..., None]
    x, y = mined.patches["x"], mined.patches["y"]
    free = ~((x > x0) & (x < x1) & (y > y0) & (y < y1)).any(axis=0)
    assert free.sum() >= 20
    assert (twins[free] >= 0).mean() <= 0.05


def test_what_is_stored(mined: TwinDictionary, scene) -> None:
    count = len(mined)
    assert mined.pixels.shape == (count, 3, 3, 32, 32)
    assert mined.pixels.dtype == torch.uint8
    assert mined.moment_frames.shape == (count, 3)
    assert (mined.moment_frames[:, 0] == 0).all()
    assert (mined.moment_frames.diff(dim=1) > 0).float().mean() > 0.9
    # The first moment is the patch itself, from the first frame
    row = int(mined.anchors[0])
    x, y, size = (mined.patches[name][row] for name in ("x", "y", "size"))
    top, left = round(float(y - size / 2)), round(float(x - size / 2))
    patch = scene[0][0][top : top + int(size), left : left + int(size)]
    assert abs(float(mined.pixels[row, 0].float().mean()) - patch.mean()) < 6


def test_moments_follow_the_patch(mined: TwinDictionary, scene) -> None:
    """A later crop of a moving patch looks like its first: much more than like other patches."""
    anchors = torch.from_numpy(np.flatnonzero(_owner(mined, scene[1]) >= 0))
    pixels = mined.pixels[anchors].float().flatten(2)
    pixels = pixels - pixels.mean(dim=2, keepdim=True)
    first, last = (torch.nn.functional.normalize(pixels[:, s], dim=1) for s in (0, -1))
    found = (first @ last.T).argmax(dim=1) == torch.arange(len(anchors))
    assert found.float().mean() > 0.8


def test_shot_records(mined: TwinDictionary) -> None:
    assert len(mined.shots) == 1
    shot = mined.shots[0]
    arrays = shot.arrays
    assert shot.first_frame.shape == (160, 256, 3)
    assert arrays["tracks"].shape == (64, len(mined), 2)
    assert arrays["mi"].shape == (len(mined), len(mined))
    best = np.nanmax(np.where(np.isnan(arrays["mi"]), -1, arrays["mi"]), axis=1)
    anchors = mined.anchors.numpy()
    twins = mined.mi[anchors, 0].numpy()
    assert (twins <= best[anchors] + 1e-6).all()  # the best that is significant
    assert np.isclose(twins, best[anchors]).mean() > 0.8
    assert shot.record["frames"] == 64


def test_the_command_remembers_and_the_function_does_not(tmp_path: Path, video: Path) -> None:
    mine(video, tmp_path / "twins", SMALL, progress=False)
    assert last_dictionary() is None
    run = CliRunner().invoke(app, ["mine", str(video), "-o", str(tmp_path / "twins"), *SETTINGS])
    assert run.exit_code == 0, run.output
    assert last_dictionary() == (tmp_path / "twins").resolve()


def test_a_cache_that_cannot_be_written_fails_nothing(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOLO_INFOAUG_CACHE", str(tmp_path / "file" / "cache"))
    run = CliRunner().invoke(app, ["mine", str(video), "-o", str(tmp_path / "twins"), *SETTINGS])
    assert run.exit_code == 0, run.output
    assert "not noted as the last dictionary" in run.output


def test_same_videos_same_dictionary(
    tmp_path: Path, video: Path, write_video, scene, mined: TwinDictionary
) -> None:
    other = write_video(tmp_path / "other.mp4", scene[0][::-1])
    one = mine([video, other], tmp_path / "one", SMALL, progress=False)
    two = mine([other, video, other], tmp_path / "two", SMALL, progress=False)
    assert one.fingerprint == two.fingerprint != mined.fingerprint
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    assert one.videos == ["other.mp4", "two.mp4"]
    last = one.twins[one.patches["video"] == 1]
    first = int((one.patches["video"] == 0).sum())
    assert ((last >= first) | (last == -1)).all()


def test_interrupted_run_goes_on(
    tmp_path: Path, video: Path, write_video, scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_video(tmp_path / "zother.mp4", scene[0][::-1])
    whole = mine([video, other], tmp_path / "whole", SMALL, progress=False)
    real, calls = pipeline.mine_video, []

    def interrupted(path: Path, *args: object, **options: object) -> None:
        calls.append(path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(path, *args, **options)

    monkeypatch.setattr(pipeline, "mine_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine([video, other], tmp_path / "parts", SMALL, progress=False)
    with pytest.raises(DictionaryError, match="no finished twin dictionary"):
        TwinDictionary.load(tmp_path / "parts")
    again = mine([video, other], tmp_path / "parts", SMALL, progress=False)
    assert calls == ["two.mp4", "zother.mp4", "zother.mp4"]
    assert again.fingerprint == whole.fingerprint
    assert _files(tmp_path / "whole") == _files(tmp_path / "parts")


def test_bad_videos_do_not_stop_the_good(tmp_path: Path, video: Path, write_video) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "good.mp4").write_bytes(video.read_bytes())
    (folder / "text.mp4").write_text("no video")
    write_video(folder / "one.mp4", [np.zeros((64, 64, 3), np.uint8)])
    write_video(folder / "still.mp4", [np.full((64, 64, 3), 99, np.uint8)] * 40)
    dictionary = mine(folder, tmp_path / "twins", SMALL, progress=False)
    assert dictionary.videos == ["good.mp4"]
    failed = {Path(name).name: why for name, why in dictionary.info["failed"].items()}
    assert set(failed) == {"text.mp4", "one.mp4", "still.mp4"}
    assert "cannot be opened as a video" in failed["text.mp4"]
    assert "no shot has at least min_frames=24 frames (1 frames in all)" in failed["one.mp4"]


def test_nothing_to_mine_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be opened as a video"):
        mine(tmp_path / "text.mp4", tmp_path / "twins", progress=False)
    assert not (tmp_path / "twins" / "dictionary.json").exists()


def test_another_dictionary_is_not_overwritten(
    tmp_path: Path, video: Path, write_video, scene
) -> None:
    out = tmp_path / "twins"
    mine(video, out, SMALL, progress=False)
    precious = out / "parts" / "my holiday"
    precious.mkdir()
    other = write_video(tmp_path / "other.mp4", scene[0][::-1])
    with pytest.raises(DictionaryError, match="other videos"):
        mine(other, out, SMALL, progress=False)
    with pytest.raises(DictionaryError, match="other settings"):
        mine(video, out, MineConfig(min_frames=24, window=60, stride=60), progress=False)
    assert mine([video, other], out, SMALL, progress=False).videos == ["other.mp4", "two.mp4"]
    assert mine(other, out, SMALL, progress=False, overwrite=True).videos == ["other.mp4"]
    assert precious.is_dir()


def test_two_runs_into_one_folder(
    tmp_path: Path, video: Path, write_video, scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is told so, and takes nothing from the first; what a dead one left is removed."""
    other = write_video(tmp_path / "zother.mp4", scene[0][::-1])
    out, real, told = tmp_path / "twins", pipeline.mine_video, []

    def meanwhile(path: Path, *args: object, **options: object) -> None:
        with pytest.raises(DictionaryError, match="another run is writing its dictionary here"):
            mine(other, out, SMALL, progress=False, overwrite=True)
        told.append(path.name)
        real(path, *args, **options)

    monkeypatch.setattr(pipeline, "mine_video", meanwhile)
    mine(video, out, SMALL, progress=False)
    assert told == ["two.mp4"]
    monkeypatch.undo()
    left = out / "parts" / ".two-01234567-01234567.99"
    left.mkdir()
    assert mine([video, other], out, SMALL, progress=False).videos == ["two.mp4", "zother.mp4"]
    assert not left.exists()


def test_the_lock_ends_with_its_owner(tmp_path: Path, video: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from solo_infoaug.dictionary import only_writer\n"
        "with only_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "twins")], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "held\n"
    with pytest.raises(DictionaryError, match="another run is writing"):
        mine(video, tmp_path / "twins", SMALL, progress=False)
    run.kill()
    run.communicate()
    assert len(mine(video, tmp_path / "twins", SMALL, progress=False)) > 0


def test_a_finished_dictionary_is_not_written_again(tmp_path: Path, video: Path) -> None:
    mine(video, tmp_path / "twins", SMALL, progress=False)
    (tmp_path / "twins" / ".lock").unlink(missing_ok=True)
    before = _files(tmp_path / "twins")
    again = mine(video, tmp_path / "twins", SMALL, progress=False)
    assert again.videos == ["two.mp4"]
    assert _files(tmp_path / "twins") == before


@pytest.mark.parametrize("name", ["file", "file/deep"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, video: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DictionaryError, match=r"is a file, not a folder|cannot be written"):
        mine(video, tmp_path / name, SMALL, progress=False)


def test_held_out_stretch(tmp_path: Path, video: Path) -> None:
    settings = json.loads(json.dumps(SMALL.to_json()))
    head = MineConfig(**{**settings, "stop_fraction": 0.6})
    tail = MineConfig(**{**settings, "start_fraction": 0.6})
    one = mine(video, tmp_path / "head", head, progress=False)
    two = mine(video, tmp_path / "tail", tail, progress=False)
    assert int(one.moment_frames.max()) < int(two.moment_frames.min())
    assert int(two.moment_frames.min()) == two.shots[0].record["frame"]


@pytest.mark.slow
def test_real_clips(tmp_path: Path) -> None:
    clips = sample_clips()[1:]
    dictionary = mine(clips, tmp_path / "twins", MineConfig(stop_fraction=0.7), progress=False)
    assert dictionary.videos == ["bikes.mp4", "carphone_pristine.mp4"]
    assert len(dictionary.anchors) > 30
    assert torch.isfinite(dictionary.mi).all()
