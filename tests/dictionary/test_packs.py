"""Finished videos come together in packs, whenever a run ends and goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from formats import as_folders

from solo_infoaug.dictionary import TwinDictionary, index, packs
from solo_infoaug.dictionary.files import PackFiles, PackWriter
from solo_infoaug.dictionary.packs import Finished, Packer
from solo_infoaug.dictionary.pixels import encode
from solo_infoaug.dictionary.store import POSITIVES
from solo_infoaug.dictionary.tools import filter_twins, merge
from solo_infoaug.dictionary.writing import VideoWriter, write_manifest
from solo_infoaug.errors import DictionaryError

SIDE = 16


def write_clip(out: Path, number: int, jpeg: bool = False) -> str:
    """A finished video of two windows, of 4 and 3 patches with 2 moments; returns its key."""
    rng = np.random.default_rng(number)
    key = f"clip{number}"
    writer = VideoWriter(out, key, f"{key}.mp4", {"fps": 20.0 + number})
    for window, count in enumerate((4, 3)):
        tint = rng.integers(0, 256, (count, 2, 3, 1, 1), np.uint8)
        pixels = np.broadcast_to(tint, (count, 2, 3, SIDE, SIDE)).copy()
        twins = np.full((count, 2), -1)
        twins[0], twins[1, 0] = (1, 2), 0
        there = (twins >= 0).astype(np.float32)
        writer.add_window(
            {"shot": 0, "frame": 9 + 12 * window, "first": 12 * window, "frames": 24},
            image=rng.integers(0, 256, (20, 30, 3), np.uint8),
            patches={
                "frame": np.full(count, 9 + 12 * window, np.int32),
                **{name: rng.random(count, np.float32) for name in ("x", "y", "size", "entropy")},
            },
            pixels=encode(pixels) if jpeg else pixels,
            twins=twins,
            mi=there * rng.random((count, 2), np.float32),
            p_value=1 - there,
            moment_frames=rng.integers(0, 99, (count, 2)).astype(np.int32),
            arrays={
                "tracks": rng.random((24, count, 2), np.float32),
                "mi": rng.random((count, count), np.float32),
            },
        )
    writer.finish(following=np.array([5, -1, 4, -1, -1, -1, -1]))
    return key


def write_clips(out: Path, count: int, jpeg: bool = False) -> TwinDictionary:
    write_manifest(out, [write_clip(out, number, jpeg) for number in range(count)], {})
    return TwinDictionary.load(out)


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack holds three of these videos."""
    monkeypatch.setattr(packs, "PACK_BYTES", 3 * 15_000)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.usefixtures("small_packs")
@pytest.mark.parametrize("jpeg", [False, True])
def test_format_4_is_what_format_3_was(tmp_path: Path, jpeg: bool) -> None:
    """All that is read, and all that is drawn, bit for bit; the files in a pack are those of 3."""
    packed = write_clips(tmp_path / "packed", 7, jpeg)
    shutil.copytree(packed.path, tmp_path / "folders")
    folders = TwinDictionary.load(as_folders(tmp_path / "folders"))
    assert not (folders.path / "packs").exists()
    assert folders.fingerprint == packed.fingerprint
    assert folders.videos == packed.videos
    for name in ("twins", "mi", "p_value", "moment_frames", "next", "anchors", "without_twin"):
        assert torch.equal(getattr(folders, name), getattr(packed, name)), name
    for name in ("patches", "seconds", "context"):
        assert np.array_equal(getattr(folders, name), getattr(packed, name)), name
    assert torch.equal(folders.pixels[:], packed.pixels[:])
    assert len(folders.windows) == len(packed.windows) == 14
    for one, other in zip(folders.windows, packed.windows, strict=True):
        assert (one.video, one.index, one.patches) == (other.video, other.index, other.patches)
        assert one.record == other.record
        assert np.array_equal(one.image, other.image)
        assert all(np.array_equal(other.arrays[name], found) for name, found in one.arrays.items())
    for positives in POSITIVES:
        for temporal in (False, True, 0.7):
            drawn = [
                one.sample(
                    9,
                    torch.Generator().manual_seed(5),
                    positives=positives,
                    temporal=temporal,
                    without_twin_share=0.3,
                )
                for one in (folders, packed)
            ]
            assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


@pytest.mark.usefixtures("small_packs")
def test_what_is_opened_is_not_read(tmp_path: Path) -> None:
    """Neither packs nor records: a dictionary without its packs opens, and says what is missing."""
    made = write_clips(tmp_path / "made", 4)
    shutil.rmtree(made.path / "packs")
    opened = TwinDictionary.load(made.path)
    assert len(opened) == 28
    assert len(opened.windows) == 8
    with pytest.raises(DictionaryError, match=r"packs/0000[01]\.zip: cannot be read: No such file"):
        opened.sample(9, torch.Generator().manual_seed(0))
    with pytest.raises(DictionaryError, match=r"packs/00000\.zip: missing"):
        opened.windows[0]


@pytest.mark.usefixtures("small_packs")
def test_a_pack_is_closed_when_it_is_full(tmp_path: Path) -> None:
    made = write_clips(tmp_path / "made", 7)
    names = sorted(path.name for path in made.path.rglob("*") if path.is_file())
    assert names == [
        "00000.zip",
        "00001.zip",
        "00002.zip",
        "dictionary.json",
        "index.safetensors",
    ]
    (fourth,) = made.windows[6:7]
    assert fourth._files == PackFiles(made.path / "packs" / "00001.zip", "clip3")
    # Crops come first in a pack
    members = zipfile.ZipFile(made.path / "packs" / "00000.zip").namelist()
    assert members[:3] == [f"clip{n}/pixels-0000.safetensors" for n in range(3)]
    assert all(zipfile.ZipFile(path).testzip() is None for path in Finished(made.path).packs())


def test_many_small_videos_close_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "_PACK_VIDEOS", 2)
    assert len(Finished(write_clips(tmp_path / "made", 5).path).packs()) == 3


_KILLED = """
import os, signal, sys
from pathlib import Path
from solo_infoaug.dictionary import files, packs
from test_packs import write_clip

packs.PACK_BYTES = 3 * 15_000
copy, remove = files.PackWriter.copy, packs._remove

def run(out, moment):
    done = []

    def die_at(number, work, *arguments):
        done.append(arguments)
        if len(done) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        work(*arguments)

    if moment == "copying":
        files.PackWriter.copy = lambda *arguments: die_at(30, copy, *arguments)
    else:
        number = {"named": 1, "removing": 3}[moment]
        packs._remove = lambda *arguments: die_at(number, remove, *arguments)
    packer = packs.Packer(packs.Finished(out))
    for key in [write_clip(out, number) for number in range(7)]:
        packer.add(key)

for moment in ("copying", "named", "removing"):
    child = os.fork()
    if not child:
        run(Path(sys.argv[1]) / moment, moment)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders in which a process was killed with −9, named by the moment."""
    folder = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    subprocess.run(
        [sys.executable, "-c", _KILLED, str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        check=True,
    )
    return folder


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        # a pack and half of the next; a pack and all that it was made of; some of that
        ("copying", (1, 4)),
        ("named", (1, 7)),
        ("removing", (1, 5)),
    ],
)
@pytest.mark.usefixtures("small_packs")
def test_a_kill_loses_nothing_and_doubles_nothing(
    tmp_path: Path, killed: Path, moment: str, left: tuple[int, int]
) -> None:
    out = killed / moment
    found = Finished(out)
    assert (len(found.packs()), len(list((out / "parts").glob("*.zip")))) == left
    keys = [f"clip{number}" for number in range(7)]
    assert all(map(found.is_mined, keys))
    for path in (out / "packs").glob(".*"):  # as `mine` does
        path.unlink()
    write_manifest(out, keys, {})
    assert _files(out) == _files(write_clips(tmp_path / "whole", 7).path)


@pytest.mark.usefixtures("small_packs")
def test_the_order_of_the_manifest_is_not_that_of_the_packs(tmp_path: Path) -> None:
    made = write_clips(tmp_path / "made", 4)
    keys = [f"clip{number}" for number in (3, 1, 0, 2)]
    write_manifest(made.path, keys, {})
    other = TwinDictionary.load(made.path)
    assert other.videos == [f"{key}.mp4" for key in keys]
    rows = torch.cat([torch.arange(7) + 7 * number for number in (3, 1, 0, 2)])
    assert torch.equal(other.pixels, made.pixels[rows])
    assert [w.record for w in other.windows] == [
        made.windows[n].record for n in (6, 7, 2, 3, 0, 1, 4, 5)
    ]
    for positives in POSITIVES:
        patch, partner, index = other.sample(
            8, torch.Generator().manual_seed(1), positives=positives
        )
        assert torch.equal(patch, other.pixels[index, 0])
        here, there = (
            other.patches["window"][rows] for rows in (index.numpy(), _rows(other, partner))
        )
        assert np.array_equal(here, there)


def _rows(dictionary: TwinDictionary, crops: torch.Tensor) -> np.ndarray:
    """Which patches are shown; their colours differ."""
    colours = dictionary.pixels[:, 0, :, 0, 0]
    return np.array([int((colours == crop[:, 0, 0]).all(1).nonzero()) for crop in crops])


def test_tools_pack_what_lies_in_folders(tmp_path: Path) -> None:
    """Formats 3 and 4 merge; a merged or filtered dictionary is of format 4."""
    write_clips(tmp_path / "old", 2)
    old = TwinDictionary.load(as_folders(tmp_path / "old"))
    out = tmp_path / "new"
    write_manifest(out, [write_clip(out, number) for number in (1, 2)], {})
    merged = merge([old.path, out], tmp_path / "merged")
    assert merged.videos == ["clip0.mp4", "clip1.mp4", "clip2.mp4"]
    assert merged.info["version"] == 4
    assert torch.equal(merged.pixels[:14], old.pixels)
    assert torch.equal(merged.pixels, write_clips(tmp_path / "three", 3).pixels)
    kept = filter_twins(old.path, tmp_path / "kept", top_k=1)
    assert [path.name for path in Finished(kept.path).packs()] == ["00000.zip"]
    assert torch.equal(kept.pixels, old.pixels)


def test_folders_of_an_interrupted_earlier_version_are_packed(tmp_path: Path) -> None:
    """Format 3, of two videos of which a run of that version had finished the first."""
    write_clips(tmp_path / "made", 1)
    out = as_folders(tmp_path / "made")
    (out / "dictionary.json").unlink()
    assert Finished(out).is_mined("clip0")
    write_clip(out, 1)
    write_manifest(out, ["clip0", "clip1"], {})
    assert not (out / "parts").exists()
    assert torch.equal(TwinDictionary.load(out).pixels, write_clips(tmp_path / "two", 2).pixels)


def test_an_index_takes_the_place_of_another_when_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary that grows can be opened all the while; what a kill left of an index goes."""
    out = write_clips(tmp_path / "made", 2).path
    key = write_clip(out, 2)
    (out / ".index.safetensors.99").touch()
    (out / ".index.safetensors.columns").mkdir()
    (out / ".index.safetensors.columns" / "twins").touch()
    lengths = []
    join = index._join
    monkeypatch.setattr(
        index, "_join", lambda *a: (lengths.append(len(TwinDictionary.load(out))), join(*a))[1]
    )
    write_manifest(out, ["clip0", "clip1", key], {})
    assert lengths == [14]
    assert len(TwinDictionary.load(out)) == 21
    assert not [path for path in out.iterdir() if path.name.startswith(".index")]


def test_a_video_that_is_finished_again_is_the_later_one(tmp_path: Path) -> None:
    """As when a version finds twins where the one before found none."""
    writer = VideoWriter(tmp_path, "clip3", "clip3.mp4", {"mined_with": "0"})
    writer.finish_without_twins("nothing moves")
    finished = Finished(tmp_path)
    packer = Packer(finished)
    packer.add("clip3")
    packer.close()
    assert (finished.twinless("clip3") or {})["why"] == "nothing moves"
    assert not finished.is_mined("clip3")
    write_clip(tmp_path, 3)
    assert finished.is_mined("clip3")
    write_manifest(tmp_path, ["clip3"], {})
    assert TwinDictionary.load(tmp_path).videos == ["clip3.mp4"]
    assert Finished(tmp_path).is_mined("clip3")
    assert not (tmp_path / "parts").exists()


def test_what_is_written_and_not_finished_leaves_nothing(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path / "a.zip")
    writer.write("x/y", b"z")
    writer.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compressed", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_packs_are_refused(tmp_path: Path, compressed: int) -> None:
    """A few bytes may stand for terabytes there, and no crop can be reached in one step."""
    made = write_clips(tmp_path / "made", 1)
    pack = made.path / "packs" / "00000.zip"
    with zipfile.ZipFile(pack) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(pack, "w", compressed) as file:
        for name, data in members.items():
            file.writestr(name, data)
    with pytest.raises(DictionaryError, match=r"00000\.zip: damaged: .* is compressed"):
        TwinDictionary.load(made.path).windows[0]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("twins", 10**9, "a twin's index is out of range"),
        ("anchors", -5, "a twin's index is out of range"),
        ("starts", 10**12, "a crop lies outside of it"),
        ("starts", -1, "a crop lies outside of it"),
        ("block_file", 9, "do not fit"),
        ("block_first", 3, "do not fit"),
        ("video_window", 1, "do not fit"),
        ("window_context", float("nan"), "do not fit"),
        ("side", 0, "do not fit"),
        ("next", 10**9, "a link's index is out of range"),
    ],
)
def test_hostile_index(tmp_path: Path, column: str, value: float, message: str) -> None:
    """What an open look finds is found at once, the rest when it is drawn."""
    from safetensors.torch import load_file, save

    made = write_clips(tmp_path / "made", 1)
    path = made.path / "index.safetensors"
    tensors = load_file(path)
    tensors[column] = torch.full_like(tensors[column], value)
    path.write_bytes(save(tensors))
    with pytest.raises(DictionaryError, match=message):
        TwinDictionary.load(made.path).sample(4, torch.Generator().manual_seed(0), temporal=0.7)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("packs", ["../x.zip"]),
        ("packs", "00000.zip"),
        ("names", ["a", "b"]),
        ("names", [3]),
        ("fingerprint", None),
    ],
)
def test_hostile_manifest(tmp_path: Path, key: str, value: object) -> None:
    path = write_clips(tmp_path / "made", 1).path / "dictionary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DictionaryError, match=rf"dictionary\.json: damaged: `{key}` "):
        TwinDictionary.load(path.parent)
