from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from formats import as_folders, with_former_names
from typer.testing import CliRunner
from videos import path_of, texture

from solo_infoaug.cache import last_dictionary
from solo_infoaug.cli import app
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.tools import merge
from solo_infoaug.errors import DictionaryError, OutputError, VideoError
from solo_infoaug.mining import MineConfig, mine, mine_one, sample_clips
from solo_infoaug.mining.candidates import REASONS

# The camera of the two objects stands still, and they fill a third of the frame.
SETTINGS = ["-s", "min_frames=24", "-s", "window=64", "-s", "stride=64", "-s", "temporal_crops=3"]
SETTINGS += ["-s", "camera=none", "-s", "parallax=0", "-s", "context=1"]
SMALL = MineConfig(
    min_frames=24, window=64, stride=64, temporal_crops=3, context=1.0, camera="none", parallax=0
)


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory, video: Path) -> TwinDictionary:
    return mine(video, tmp_path_factory.mktemp("mined") / "twins", SMALL, progress=False)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _owner(x: np.ndarray, y: np.ndarray, size: float, boxes: np.ndarray) -> np.ndarray:
    """Which object each patch lies on, wholly; −1 for the background, −2 for both."""
    owner, half = np.full(len(x), -1), size / 2
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        inside = (x - half >= x0) & (x + half <= x1) & (y - half >= y0) & (y + half <= y1)
        touching = (x + half > x0) & (x - half < x1) & (y + half > y0) & (y - half < y1)
        owner[touching] = -2
        owner[inside] = number
    return owner


def _boxes(scene, frame: int) -> np.ndarray:
    """Where the objects are in a frame."""
    moved = [path_of(64, 10 + number)[frame] for number in range(2)]
    return scene[1] + np.tile(moved, 2)


def _owners(dictionary: TwinDictionary, scene) -> np.ndarray:
    rows = dictionary.patches
    (frame,) = set(rows["frame"].tolist())
    return _owner(rows["x"], rows["y"], 16, _boxes(scene, frame))


def test_twins_lie_on_the_same_object(mined: TwinDictionary, scene) -> None:
    owner = _owners(mined, scene)
    twins = mined.twins[:, 0].numpy()
    decided = (owner >= 0) & (twins >= 0) & (owner[twins] != -2)
    assert decided.sum() >= 60
    assert (owner[twins] == owner)[decided].mean() >= 0.98
    # Of the whole grid, most patches on objects have a twin and none on the background
    arrays = mined.windows[0].arrays
    x, y = arrays["centres"].T
    owner = _owner(x, y, 16, _boxes(scene, mined.windows[0].record["frame"]))
    twin = arrays["reason"] == REASONS.index("twin")
    assert (owner >= 0).sum() >= 100
    assert twin[owner >= 0].mean() >= 0.8
    assert (owner == -1).sum() >= 150
    assert twin[owner == -1].mean() <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["colour", "both"])
def test_colour_as_a_signal(tmp_path: Path, write_video, signal: str) -> None:
    """Two lamps that flicker over a still wall: what each lights up has the same twins."""
    wall = texture(160, 256, 0).astype(float) / 2 + 30
    rng = np.random.default_rng(0)
    frames = []
    for left, right in rng.uniform(0.75, 1.5, (64, 2)):
        image = wall.copy()
        image[40:120, 24:104] *= left
        image[40:120, 152:232] *= right
        frames.append(image.clip(0, 255).astype(np.uint8))
    video = write_video(tmp_path / "lamps.mp4", frames)
    config = MineConfig(**{**SMALL.to_json(), "signal": signal, "min_motion": 0.05})
    made = mine(video, tmp_path / signal, config, progress=False)
    boxes = np.array([[24, 40, 104, 120], [152, 40, 232, 120]])
    owner = _owner(made.patches["x"], made.patches["y"], 16, boxes)
    twins = made.twins[:, 0].numpy()
    decided = (owner >= 0) & (twins >= 0) & (owner[twins] >= 0)
    assert decided.sum() >= 50
    assert (owner[twins] == owner)[decided].mean() >= 0.98
    assert (twins[owner == -1] >= 0).mean() <= 0.05


@pytest.mark.slow
def test_colour_adds_to_motion(tmp_path: Path, write_video) -> None:
    """A card that moves, and a lamp on the wall: `both` has the twins of the one and the other."""
    wall, card = texture(160, 256, 0).astype(float) / 2 + 30, texture(80, 80, 1)
    rng = np.random.default_rng(0)
    turns = np.cumsum(rng.uniform(0.2, 0.5, (64, 2)), axis=0)
    offsets = (18 * np.sin(turns)).round().astype(int)
    frames = []
    for light, (dx, dy) in zip(rng.uniform(0.75, 1.5, 64), offsets, strict=True):
        image = wall.copy()
        image[40:120, 24:104] *= light
        image[40 + dy : 120 + dy, 148 + dx : 228 + dx] = card
        frames.append(image.clip(0, 255).astype(np.uint8))
    video = write_video(tmp_path / "both.mp4", frames)

    def twins(signal: str) -> dict[tuple[int, float, float], tuple[float, float]]:
        config = MineConfig(**{**SMALL.to_json(), "signal": signal, "min_motion": 0.01})
        made = mine(video, tmp_path / signal, config, progress=False)
        table, twin = made.patches, made.twins[:, 0].numpy()
        places = [*zip(*(table[name].tolist() for name in ("frame", "x", "y")), strict=True)]
        return {places[i]: places[twin[i]][1:] for i in np.flatnonzero(twin >= 0)}

    motion, colour, both = (twins(signal) for signal in ("motion", "colour", "both"))
    assert len(motion) >= 20
    assert all(place[1] > 128 for place in motion)
    lamp = {place: twin for place, twin in colour.items() if place[1] < 128}
    assert len(lamp) >= 20
    assert {place: twin for place, twin in both.items() if place[1] < 128} == lamp
    thing = {place: twin for place, twin in both.items() if place[1] > 128}
    # Frames in colour are made grey in another way, so that a few tracks differ
    assert len(thing.keys() & motion.keys()) >= 0.9 * len(motion)
    assert all(x > 128 for x, _ in thing.values())


def test_what_is_stored(mined: TwinDictionary, scene) -> None:
    count = len(mined)
    assert mined.pixels.shape == (count, 3, 3, 32, 32)
    assert mined.pixels.dtype == torch.uint8
    assert mined.moment_frames.shape == (count, 3)
    # First the middle frame of the window, then others along the track
    assert (mined.moment_frames[:, 0] == 32).all()
    assert (mined.moment_frames[:, 1] < mined.moment_frames[:, 2]).float().mean() > 0.9
    assert (mined.moment_frames[:, 1:] != 32).float().mean() > 0.9
    assert (torch.from_numpy(mined.patches["frame"]) == 32).all()
    # The first moment is the patch itself, from the middle frame
    row = int(mined.anchors[0])
    x, y, size = (mined.patches[name][row] for name in ("x", "y", "size"))
    top, left = round(float(y - size / 2)), round(float(x - size / 2))
    patch = scene[0][32][top : top + int(size), left : left + int(size)]
    assert abs(float(mined.pixels[row, 0].float().mean()) - patch.mean()) < 6


def test_patches_without_a_twin_are_kept_for_the_random_arm(
    tmp_path: Path, video: Path, mined: TwinDictionary
) -> None:
    assert int((mined.twins[:, 0] < 0).sum()) == 64
    reasons = mined.windows[0].record["reasons"]
    assert len(mined.anchors) == reasons["twin"]
    assert reasons["static"] > 64
    settings = {**SMALL.to_json(), "extra_patches": 5}
    few = mine(video, tmp_path / "few", MineConfig(**settings), progress=False)
    assert int((few.twins[:, 0] < 0).sum()) == 5
    # The twins are the same pairs
    places = [
        {(*_place(made, i), *_place(made, int(made.twins[i, 0]))) for i in made.anchors.tolist()}
        for made in (mined, few)
    ]
    assert places[0] == places[1]


def _place(dictionary: TwinDictionary, row: int) -> tuple[float, float]:
    return float(dictionary.patches["x"][row]), float(dictionary.patches["y"][row])


def test_moments_follow_the_patch(mined: TwinDictionary, scene) -> None:
    """A later crop of a moving patch looks like its first: much more than like other patches.

    Those that overlap it by more than half a patch may look alike as well.
    """
    anchors = torch.from_numpy(np.flatnonzero(_owners(mined, scene) >= 0))
    pixels = mined.pixels[anchors].float().flatten(2)
    pixels = pixels - pixels.mean(dim=2, keepdim=True)
    first, last = (torch.nn.functional.normalize(pixels[:, s], dim=1) for s in (0, -1))
    best = (first @ last.T).argmax(dim=1)
    assert (best == torch.arange(len(anchors))).float().mean() > 0.8


def test_window_records(mined: TwinDictionary) -> None:
    assert len(mined.windows) == 1
    window = mined.windows[0]
    arrays = window.arrays
    assert window.image.shape == (160, 256, 3)
    assert (window.shot, window.first) == (0, 0)
    assert (window.record["frame"], window.record["frames"]) == (32, 64)
    count = len(mined)
    assert arrays["tracks"].shape == (64, count, 2)
    assert arrays["visible"].shape == (64, count)
    assert arrays["visible"][32].all()
    assert arrays["motion"].shape == (count, 63, 2)
    assert np.allclose(arrays["tracks"][32, :, 0], mined.patches["x"])
    # Nothing was removed: what a patch does of its own is what it does
    both = (arrays["visible"][1:] & arrays["visible"][:-1]).T
    steps = np.diff(arrays["tracks"], axis=0).swapaxes(0, 1)
    assert np.allclose(arrays["motion"], steps * both[..., None], atol=1e-3)
    assert arrays["mi"].shape == (count, count)
    best = np.nanmax(np.where(np.isnan(arrays["mi"]), -1, arrays["mi"]), axis=1)
    anchors = mined.anchors.numpy()
    twins = mined.mi[anchors, 0].numpy()
    assert (twins <= best[anchors] + 1e-6).all()  # the best that is significant and far enough
    row = anchors[0]
    assert mined.mi[row, 0] == arrays["mi"][row, mined.twins[row, 0]]
    assert arrays["reason"].shape == (len(arrays["centres"]),)
    counts = {name: int((arrays["reason"] == n).sum()) for n, name in enumerate(REASONS)}
    assert counts == window.record["reasons"]


def test_twins_do_not_overlap(mined: TwinDictionary) -> None:
    rows = np.stack([mined.patches["x"], mined.patches["y"]], axis=1)
    i, j = np.nonzero(mined.twins.numpy() >= 0)
    apart = np.abs(rows[i] - rows[mined.twins.numpy()[i, j]]).max(axis=1)
    assert apart.min() >= 15.5


def test_windows_of_a_shot(tmp_path: Path, video: Path) -> None:
    settings = {**SMALL.to_json(), "window": 24, "stride": 12, "min_frames": 16}
    made = mine(video, tmp_path / "twins", MineConfig(**settings), progress=False)
    assert [window.first for window in made.windows] == [0, 12, 24, 36, 48]
    assert {window.shot for window in made.windows} == {0}
    assert [window.record["frames"] for window in made.windows] == [24, 24, 24, 24, 16]
    window = torch.from_numpy(made.patches["window"]).long()
    twins = made.twins[:, 0]
    assert torch.equal(window[twins[twins >= 0]], window[twins >= 0])
    for number, record in enumerate(made.windows):
        moments = made.moment_frames[window == number]
        assert int(moments.min()) >= record.first
        assert int(moments.max()) < record.first + record.record["frames"]


def test_every_patch_is_asked_for_its_best(tmp_path: Path, video: Path) -> None:
    """All gates open and no test, as for patches that are held out: no number is divided by 0."""
    settings = {
        **SMALL.to_json(),
        "min_motion": 0.0,
        "motion_over_noise": 0.0,
        "max_error_ratio": 1.0,
        "min_support": 0,
        "max_difference": 4.0,
        "max_drift": 2.0,
        "max_along_background": 1.0,
        "max_twin_error_ratio": 1.0,
        "mi_of_distance": 0.0,
        "fdr": 1.0,
        "grid_step": 1.0,
    }
    made = mine(video, tmp_path / "open", MineConfig(**settings), progress=False)
    reasons = made.windows[0].record["reasons"]
    assert reasons["static"] == 0
    assert reasons["twin"] > 50
    assert torch.isfinite(made.mi).all()


def test_the_command_remembers_and_the_function_does_not(tmp_path: Path, video: Path) -> None:
    mine(video, tmp_path / "twins", SMALL, progress=False)
    assert last_dictionary() is None
    run = CliRunner().invoke(app, ["mine", str(video), "-o", str(tmp_path / "twins"), *SETTINGS])
    assert run.exit_code == 0, run.output
    remembered = last_dictionary()
    assert remembered is not None
    assert remembered.path == str((tmp_path / "twins").resolve())


def test_a_cache_that_cannot_be_written_fails_nothing(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOLO_INFOAUG_CACHE", str(tmp_path / "file" / "cache"))
    run = CliRunner().invoke(app, ["mine", str(video), "-o", str(tmp_path / "twins"), *SETTINGS])
    assert run.exit_code == 0, run.output
    assert "could not be remembered" in run.output


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
    real, calls = mine_one.mine_video, []

    def interrupted(path: Path, *args: object, **options: object) -> float:
        calls.append(path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(path, *args, **options)

    monkeypatch.setattr(mine_one, "mine_video", interrupted)
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
    assert set(failed) == {"text.mp4"}
    twinless = {Path(name).name: why for name, why in dictionary.info["twinless"].items()}
    assert set(twinless) == {"one.mp4", "still.mp4"}
    assert "cannot be opened as a video" in failed["text.mp4"]
    assert "no shot has at least min_frames=24 frames (1 frames in all)" in twinless["one.mp4"]


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
    precious.mkdir(parents=True)
    other = write_video(tmp_path / "other.mp4", scene[0][::-1])
    with pytest.raises(DictionaryError, match="other videos"):
        mine(other, out, SMALL, progress=False)
    with pytest.raises(DictionaryError, match="other settings"):
        mine(video, out, MineConfig(min_frames=24, window=60, stride=60), progress=False)
    assert mine([video, other], out, SMALL, progress=False).videos == ["other.mp4", "two.mp4"]
    assert mine(other, out, SMALL, progress=False, overwrite=True).videos == ["other.mp4"]
    assert precious.is_dir()


def test_a_dictionary_of_folders_grows_into_packs(
    tmp_path: Path, video: Path, write_video, scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What format 3 has is not mined again. A damaged pack does not keep from overwriting."""
    out = tmp_path / "twins"
    before = mine(video, out, SMALL, progress=False)
    pixels = before.pixels.clone()
    as_folders(out)
    assert torch.equal(mine(video, out, SMALL, progress=False).pixels, pixels)
    assert not (out / "packs").exists()  # nothing was left to do
    other = write_video(tmp_path / "zother.mp4", scene[0][::-1])
    real, calls = mine_one.mine_video, []
    monkeypatch.setattr(
        mine_one,
        "mine_video",
        lambda path, *a, **k: (calls.append(path.name), real(path, *a, **k))[1],
    )
    grown = mine([video, other], out, SMALL, progress=False)
    assert calls == ["zother.mp4"]
    assert grown.videos == ["two.mp4", "zother.mp4"]
    assert torch.equal(grown.pixels[: len(pixels)], pixels)
    assert not (out / "parts").exists()
    (out / "packs" / "00000.zip").write_bytes(b"PK")
    with pytest.raises(DictionaryError, match=r"00000\.zip: damaged"):
        mine([video, other], out, SMALL, progress=False)
    assert len(mine(video, out, SMALL, progress=False, overwrite=True)) == len(pixels)


def test_two_runs_into_one_folder(
    tmp_path: Path, video: Path, write_video, scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is told so, and takes nothing from the first; what a dead one left is removed."""
    other = write_video(tmp_path / "zother.mp4", scene[0][::-1])
    out, real, told = tmp_path / "twins", mine_one.mine_video, []

    def meanwhile(path: Path, *args: object, **options: object) -> float:
        with pytest.raises(DictionaryError, match="another run is writing its dictionary here"):
            mine(other, out, SMALL, progress=False, overwrite=True)
        told.append(path.name)
        return real(path, *args, **options)

    monkeypatch.setattr(mine_one, "mine_video", meanwhile)
    mine(video, out, SMALL, progress=False)
    assert told == ["two.mp4"]
    monkeypatch.undo()
    left = out / "parts" / ".two-01234567-01234567.99"
    left.mkdir(parents=True)
    half = out / "packs" / ".00001.99"
    half.touch()
    assert mine([video, other], out, SMALL, progress=False).videos == ["two.mp4", "zother.mp4"]
    assert not left.exists()
    assert not half.exists()


def test_the_lock_ends_with_its_owner(tmp_path: Path, video: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from solo_infoaug.dictionary.writing import only_writer\n"
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


def test_settings_renamed_since_a_dictionary_was_mined(
    tmp_path: Path, video: Path, write_video, scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is continued and merged as one of the same settings; others are still others."""
    out = tmp_path / "twins"
    before = mine(video, out, SMALL, progress=False)
    copied = tmp_path / "copied"
    shutil.copytree(out, copied)
    with_former_names(out)
    assert "moments" in TwinDictionary.load(out).info["config"]
    merged = merge([out, copied], tmp_path / "merged")
    assert merged.info["config"] == SMALL.to_json()
    assert merged.info["merged_configs"] == [SMALL.to_json()] * 2

    calls = []
    real = mine_one.mine_video
    monkeypatch.setattr(
        mine_one,
        "mine_video",
        lambda path, *a, **k: (calls.append(path.name), real(path, *a, **k))[1],
    )
    assert mine(video, out, SMALL, progress=False).fingerprint == before.fingerprint
    other = write_video(tmp_path / "zother.mp4", scene[0][::-1])
    grown = mine([video, other], out, SMALL, progress=False)
    assert calls == ["zother.mp4"]
    assert grown.videos == ["two.mp4", "zother.mp4"]
    assert grown.info["config"] == SMALL.to_json()
    with_former_names(out)
    fewer = dataclasses.replace(SMALL, extra_patches=5)
    with pytest.raises(DictionaryError, match="other settings"):
        mine([video, other], out, fewer, progress=False)


@pytest.mark.parametrize("name", ["file", "file/deep"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, video: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        mine(video, tmp_path / name, SMALL, progress=False)


def test_held_out_stretch(tmp_path: Path, video: Path) -> None:
    settings = json.loads(json.dumps(SMALL.to_json()))
    head = MineConfig(**{**settings, "stop_fraction": 0.6})
    tail = MineConfig(**{**settings, "start_fraction": 0.6})
    one = mine(video, tmp_path / "head", head, progress=False)
    two = mine(video, tmp_path / "tail", tail, progress=False)
    assert int(one.moment_frames.max()) < int(two.moment_frames.min())
    assert int(two.moment_frames.min()) == two.windows[0].first


@pytest.mark.slow
def test_a_real_clip(tmp_path: Path) -> None:
    clip, part = sample_clips()[0], {"start_fraction": 0.2, "stop_fraction": 0.35}
    dictionary = mine(clip, tmp_path / "twins", MineConfig(**part), progress=False)
    assert dictionary.videos == ["bigbuckbunny.mp4"]
    assert len(dictionary.anchors) > 30
    assert torch.isfinite(dictionary.mi).all()


def test_a_bollard_in_front_of_a_wall_has_no_twin(tmp_path: Path) -> None:
    """The camera sways; the bollard moves as the wall behind it and further."""
    clip = sample_clips()[1]
    with pytest.raises(VideoError, match="nothing moves"):
        mine(clip, tmp_path / "twins", progress=False)
    settings = MineConfig(max_along_background=1.0)
    without_rule = mine(clip, tmp_path / "without", settings, progress=False)
    assert without_rule.videos == ["bikes.mp4"]
    assert len(without_rule.anchors) > 30
    assert torch.isfinite(without_rule.mi).all()
