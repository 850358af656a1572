from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formats import as_folders
from PIL import Image
from safetensors.torch import load_file, save

from solo_infoaug import _jpeg
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.files import PackFiles
from solo_infoaug.dictionary.links import Chains, relinked
from solo_infoaug.dictionary.store import POSITIVES
from solo_infoaug.errors import ConfigError, DictionaryError

N, S, SIDE = 12, 3, 8


def _content() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Pixels tell patch and moment; windows of 6, 4 and 2 patches; some have no twin."""
    pixels = torch.zeros(N, S, 3, SIDE, SIDE, dtype=torch.uint8)
    pixels[:, :, 0] = torch.arange(N)[:, None, None, None]
    pixels[:, :, 1] = torch.arange(S)[None, :, None, None]
    twins = torch.full((N, 2), -1)
    for a, b in ((0, 1), (2, 3), (6, 8), (10, 11)):
        twins[a, 0], twins[b, 0] = b, a
    twins[0, 1] = 2
    mi = torch.where(twins >= 0, torch.linspace(1, 2, 2 * N).reshape(N, 2), torch.zeros(()))
    return pixels, twins, mi, [0] * 6 + [1] * 4 + [2] * 2


@pytest.fixture
def made(tmp_path: Path) -> TwinDictionary:
    pixels, twins, mi, windows = _content()
    return TwinDictionary.create(tmp_path / "made", pixels, twins, mi, windows=windows)


def _sample(dictionary: TwinDictionary, size: int = 8, seed: int = 0, **kwargs):
    return dictionary.sample(size, torch.Generator().manual_seed(seed), **kwargs)


def _ids(pixels: torch.Tensor) -> torch.Tensor:
    return pixels[:, 0, 0, 0].long()


def _moments(pixels: torch.Tensor) -> torch.Tensor:
    return pixels[:, 1, 0, 0].long()


def test_what_is_written_is_read(made: TwinDictionary) -> None:
    pixels, twins, mi, windows = _content()
    read = TwinDictionary.load(made.path)
    assert len(read) == N
    assert torch.equal(read.pixels, pixels)
    assert torch.equal(read.twins, twins)
    assert torch.equal(read.mi, mi.float())
    assert read.patches["window"].tolist() == windows
    assert read.anchors.tolist() == [0, 1, 2, 3, 6, 8, 10, 11]
    assert [list(window.patches) for window in read.windows] == [
        list(range(6)),
        list(range(6, 10)),
        [10, 11],
    ]


def test_all_arms_see_the_same_patches(made: TwinDictionary) -> None:
    seen = [_sample(made, positives=positives, temporal=True) for positives in POSITIVES]
    for patch, _, index in seen:
        assert torch.equal(index, seen[0][2])
        assert torch.equal(patch, seen[0][0])
        assert torch.equal(_ids(patch), index)
        assert set(index.tolist()) <= set(made.anchors.tolist())


def test_no_patch_comes_twice_unless_it_must(made: TwinDictionary) -> None:
    assert sorted(_sample(made, 8)[2].tolist()) == made.anchors.tolist()
    assert len(_sample(made, 20)[2]) == 20


def test_mi_arm_gives_the_twin(made: TwinDictionary) -> None:
    _, twin, index = _sample(made, 200)
    assert torch.equal(_ids(twin), made.twins[index, 0])
    assert (_moments(twin) == 0).all()


def test_top_k_draws_among_the_best(made: TwinDictionary) -> None:
    _, twin, index = _sample(made, 400, top_k=2)
    assert set(_ids(twin)[index == 0].tolist()) == {1, 2}
    assert set(_ids(twin)[index == 1].tolist()) == {0}  # it has only one
    assert (_ids(twin) >= 0).all()


@pytest.mark.parametrize(
    ("positives", "mates"), [("random", {0, 1, 3, 4, 5}), ("random_with_twin", {0, 1, 3})]
)
def test_random_arms_stay_in_the_window_and_off_the_patch(
    made: TwinDictionary, positives: str, mates: set[int]
) -> None:
    """`random` takes any other patch of the window, `random_with_twin` one that has a twin."""
    _, partner, index = _sample(made, 1200, positives=positives)
    partner = _ids(partner)
    window = torch.from_numpy(made.patches["window"])
    assert torch.equal(window[partner], window[index])
    assert (partner != index).all()
    assert set(partner[index == 2].tolist()) == mates
    counts = torch.bincount(partner[index == 2], minlength=6)[sorted(mates)]
    assert counts.min() > 0.6 * counts.sum() / len(mates)
    assert set(partner[index == 6].tolist()) == ({7, 8, 9} if positives == "random" else {8})
    assert set(partner[index == 11].tolist()) == {10}


def test_random_mates_stand_for_the_patches_that_are_not_stored(made: TwinDictionary) -> None:
    """Of 4 patches with a twin and 12 without two of the latter are stored: each stands for six."""
    path = _part(made) / "video.json"
    record = json.loads(path.read_text())
    record["windows"][0]["reasons"] = {"twin": 4, "static": 7, "border or flat": 5, "lost": 99}
    path.write_text(json.dumps(record))
    read = TwinDictionary.load(made.path)
    for seed in range(3):
        _, partner, index = _sample(read, 8000, seed, positives="random")
        shares = torch.bincount(_ids(partner)[index == 2], minlength=6) / (index == 2).sum()
        assert shares[2] == 0
        assert torch.allclose(shares, torch.tensor([1, 1, 0, 1, 6, 6]) / 15, atol=0.06)
        # what was drawn for the other arms is what it was
        for positives in ("random_with_twin", "twins"):
            ours, theirs = (_sample(one, 50, seed, positives=positives)[1] for one in (read, made))
            assert torch.equal(ours, theirs)


def test_random_with_twin_where_a_window_has_one_patch_with_a_twin(tmp_path: Path) -> None:
    pixels, _, _, _ = _content()
    twins = torch.full((N, 1), -1)
    twins[4, 0] = 5
    lonely = TwinDictionary.create(tmp_path / "one", pixels, twins, torch.ones(N, 1))
    for positives in ("random", "random_with_twin"):
        _, partner, index = _sample(lonely, 300, positives=positives)
        assert set(index.tolist()) == {4}
        assert set(_ids(partner).tolist()) == set(range(N)) - {4}


def test_a_window_with_a_single_patch_has_no_mate(tmp_path: Path) -> None:
    """Its own twin is itself: there is nobody else."""
    pixels, _, _, _ = _content()
    twins = torch.full((N, 1), -1)
    twins[0, 0], twins[3, 0] = 0, 4
    windows = [0] + [1] * (N - 1)
    made = TwinDictionary.create(tmp_path / "one", pixels, twins, torch.ones(N, 1), windows=windows)
    for positives in ("random", "random_with_twin"):
        _, partner, index = _sample(made, 200, positives=positives)
        assert set(_ids(partner)[index == 0].tolist()) == {0}
        assert set(_ids(partner)[index == 3].tolist()) == set(range(1, N)) - {3}


def test_patches_without_a_twin_are_their_own_partners(made: TwinDictionary) -> None:
    assert made.without_twin.tolist() == [4, 5, 7, 9]
    for positives in POSITIVES:
        patch, partner, index = _sample(
            made, 7, positives=positives, temporal=True, without_twin_share=0.5
        )
        assert set(index[:3].tolist()) <= set(made.anchors.tolist())
        assert sorted(index[3:].tolist()) == [4, 5, 7, 9]
        assert torch.equal(_ids(patch), index)
        assert torch.equal(_ids(partner)[3:], index[3:])
        expected = made.twins[index[:3], 0] if positives == "twins" else None
        assert expected is None or torch.equal(_ids(partner)[:3], expected)
    # at least one pair of twins is left
    assert _sample(made, 2, without_twin_share=0.9)[2][0] in made.anchors
    # patches without a twin change nothing about the pairs of a smaller one
    alone, beside = _sample(made, 3), _sample(made, 6, without_twin_share=0.5)
    assert all(torch.equal(a, b[:3]) for a, b in zip(alone, beside, strict=True))


def test_self_arm_and_moments(made: TwinDictionary) -> None:
    patch, partner, index = _sample(made, 300, positives="self", temporal=True)
    assert torch.equal(_ids(partner), index)
    for pixels in (patch, partner):
        assert set(_moments(pixels).tolist()) == set(range(S))
    assert (_moments(patch) != _moments(partner)).any()
    assert (_moments(_sample(made, 300, positives="self")[0]) == 0).all()


def test_the_generator_decides(made: TwinDictionary) -> None:
    one, two, other = (
        _sample(made, 5, seed, positives="random", temporal=True) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[2], other[2])


@pytest.mark.parametrize("version", [3, 4])
def test_what_is_drawn_is_what_format_3_drew(made: TwinDictionary, version: int) -> None:
    """Bit for bit: the hash is of what the last version before packs drew."""
    if version == 3:
        made = TwinDictionary.load(as_folders(made.path))
    digest = hashlib.sha256()
    for positives in POSITIVES:
        for temporal in (False, True, 3.0):
            for top_k in (1, 2):
                for share in (0.0, 0.4):
                    drawn = _sample(
                        made,
                        7,
                        11,
                        positives=positives,
                        temporal=temporal,
                        top_k=top_k,
                        without_twin_share=share,
                    )
                    for one in drawn:
                        digest.update(one.numpy().tobytes())
    assert digest.hexdigest()[:16] == "7176f6948b3ae12c"
    assert made.fingerprint == "43e2def59abe38a8"


def test_a_sample_has_names_and_unpacks(made: TwinDictionary) -> None:
    pairs = _sample(made, 3)
    patch, partner, index = pairs
    assert pairs.patch is patch
    assert pairs.partner is partner
    assert pairs.patch_index is index
    assert torch.equal(_ids(pairs.patch), pairs.patch_index)
    assert torch.equal(_ids(pairs.partner), made.twins[pairs.patch_index, 0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"without_twin_share": 1.0},
            "without_twin_share: expected at least 0 and less than 1, got 1.0",
        ),
        (
            {"positives": "best"},
            "positives: expected one of twins, random, random_with_twin, self, got 'best'",
        ),
        ({"size": 0}, "batch_size: expected at least 1, got 0"),
        ({"top_k": 0}, "top_k: expected at least 1 or None, got 0"),
        ({"temporal": 0}, "temporal: expected true, false or a number of seconds > 0, got 0"),
    ],
)
def test_sample_errors(made: TwinDictionary, kwargs: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _sample(made, **kwargs)


def test_no_twin_at_all(tmp_path: Path) -> None:
    pixels = _content()[0]
    none = TwinDictionary.create(tmp_path / "n", pixels, torch.full((N, 1), -1), torch.zeros(N, 1))
    with pytest.raises(DictionaryError, match="no patch has a twin"):
        _sample(none)


def test_fingerprint_is_of_the_content(made: TwinDictionary, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(made.path, moved)
    assert TwinDictionary.load(moved).fingerprint == made.fingerprint
    pixels, twins, mi, windows = _content()
    pixels[0, 0, 2, 0, 0] = 1
    other = TwinDictionary.create(tmp_path / "other", pixels, twins, mi, windows=windows)
    assert other.fingerprint != made.fingerprint


def test_copies_open_the_folder_again(made: TwinDictionary) -> None:
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert copied.fingerprint == made.fingerprint
        assert torch.equal(copied.pixels, made.pixels)
    assert len(pickle.dumps(made)) < 1000


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solo_infoaug.dictionary.writing._SHARD_PATCHES", 5)
    pixels, twins, mi, windows = _content()
    sharded = TwinDictionary.create(tmp_path / "sharded", pixels, twins, mi, windows=windows)
    assert len(PackFiles(sharded.path / "packs" / "00000.zip", "patches").names()) == 2 + 2 + 6
    assert torch.equal(sharded.pixels, pixels)
    index = torch.tensor([11, 0, 6, 5, 0])
    assert torch.equal(sharded.crops(index, 2), pixels[index, 2])
    monkeypatch.setattr("solo_infoaug.dictionary.pixels._OPEN_FILES", 1)
    folders = TwinDictionary.load(as_folders(sharded.path))
    assert torch.equal(folders.pixels, pixels)
    assert torch.equal(_ids(_sample(folders, 50, positives="self")[1]), _sample(folders, 50)[2])


# --- damage


def _part(made: TwinDictionary) -> Path:
    """The folder of the only video, in format 3, whose files are those of format 4."""
    return next((as_folders(made.path, keep=True) / "parts").iterdir())


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=r"no twin dictionary at .*solo-infoaug mine"):
        TwinDictionary.load(tmp_path / "nowhere")
    with pytest.raises(DictionaryError, match="no finished twin dictionary"):
        TwinDictionary.load(tmp_path)


def test_newer_format(made: TwinDictionary) -> None:
    manifest = made.path / "dictionary.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "version": 99}))
    with pytest.raises(DictionaryError, match=r"version 99 is newer .* pip install -U"):
        TwinDictionary.load(made.path)


@pytest.mark.parametrize("name", ["index.safetensors", "pixels-0000.safetensors", "video.json"])
@pytest.mark.parametrize("left", [0, 5, 0.5, 0.99])
def test_truncated(made: TwinDictionary, name: str, left: float) -> None:
    path = _part(made) / name
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data)) if left < 1 else int(left)])
    with pytest.raises(DictionaryError, match=name):
        TwinDictionary.load(made.path)


@pytest.mark.parametrize("name", ["index.safetensors", "pixels-0000.safetensors", "video.json"])
def test_missing_file(made: TwinDictionary, name: str) -> None:
    (_part(made) / name).unlink()
    with pytest.raises(DictionaryError, match=name):
        TwinDictionary.load(made.path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{}", '{"format": "x"}', "[" * 100_000, "9" * 10_000, "\x00", '"\ud800"'],
)
def test_hostile_manifest(made: TwinDictionary, content: str) -> None:
    (made.path / "dictionary.json").write_text(content, errors="surrogatepass")
    with pytest.raises(DictionaryError, match=r"dictionary\.json"):
        TwinDictionary.load(made.path)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "", ".", 3, None, "a/b", ["x"]])
def test_manifest_cannot_name_other_places(made: TwinDictionary, name: object) -> None:
    manifest = made.path / "dictionary.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "videos": [name]}))
    with pytest.raises(DictionaryError, match="`videos` is not a list of names"):
        TwinDictionary.load(made.path)


# --- fuzzing: whatever is in the files, our error or a dictionary


def _use(folder: Path) -> None:
    """Load and use all of a dictionary; only our own error may come out."""
    try:
        dictionary = TwinDictionary.load(folder)
        _sample(dictionary, 16, positives="random_with_twin", temporal=True, top_k=2)
        dictionary.crops(torch.arange(len(dictionary)))
        for window in dictionary.windows:
            assert window.image.ndim == 3
            assert set(window.arrays) >= {"tracks", "mi"}
    except (DictionaryError, ConfigError):
        pass


_FILES = [
    "dictionary.json",
    "parts/*/video.json",
    "parts/*/index.safetensors",
    "parts/*/pixels-0000.safetensors",
    "parts/*/windows/0000.safetensors",
    "parts/*/windows/0000.jpg",
]


_PACKED = ["dictionary.json", "index.safetensors", "packs/00000.zip"]


@pytest.mark.parametrize(
    ("pattern", "packed"), [(name, False) for name in _FILES] + [(name, True) for name in _PACKED]
)
def test_fuzz(made: TwinDictionary, pattern: str, packed: bool) -> None:
    if not packed:
        as_folders(made.path, keep=True)
    path = next(made.path.glob(pattern))
    whole = path.read_bytes()
    generator = random.Random(pattern)
    header = min(len(whole), 1200)  # where a flipped bit does most
    for trial in range(60):
        data = bytearray(whole)
        if trial % 4 == 3:
            data = data[: generator.randrange(len(data))]
        for _ in range(generator.choice((1, 1, 4, 32))):
            if data:
                place = generator.randrange(min(len(data), header if trial % 2 else len(data)))
                data[place] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        _use(made.path)
    path.write_bytes(whole)
    assert torch.equal(TwinDictionary.load(made.path).pixels, made.pixels)


@pytest.mark.parametrize(
    "size", [0, 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1, 100_000_001], ids=lambda size: f"{size:x}"
)
@pytest.mark.parametrize("name", ["index.safetensors", "pixels-0000.safetensors"])
def test_hostile_header_size(made: TwinDictionary, name: str, size: int) -> None:
    path = _part(made) / name
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(DictionaryError, match=name):
        TwinDictionary.load(made.path)


def test_hostile_tensor_header(made: TwinDictionary) -> None:
    """Shapes that overflow, offsets outside the file: an error, no crash, no allocation."""
    path = _part(made) / "pixels-0000.safetensors"
    for shape, offsets in (
        ([2**62, 4, 3, 8, 8], [0, 8]),
        ([-1, 3, 3, 8, 8], [0, 8]),
        ([12, 3, 3, 8, 8], [0, 2**50]),
        ([12, 3, 3, 8, 8], [2**50, 2**50 + 6912]),
        ([12, 3, 3, 8, 8], [8, 0]),
    ):
        header = {"pixels": {"dtype": "U8", "shape": shape, "data_offsets": offsets}}
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(6912))
        with pytest.raises(DictionaryError, match=r"pixels-0000\.safetensors"):
            TwinDictionary.load(made.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["index"].update(patches=10**12), "damaged"),
        (lambda record: record["index"].update(patches="many"), "damaged"),
        (lambda record: record["windows"][0].update(patches=-6), "do not fit"),
        (lambda record: record["windows"].pop(), "do not fit"),
        (lambda record: record.update(windows={}), "is not a list of records"),
        (lambda record: record["pixels"][0].update(file="../../x"), "is not a file name"),
        (lambda record: record["pixels"][0].update(patches=3), "unexpected shape"),
        (lambda record: record.update(pixels=[]), "do not fit"),
        (lambda record: record.pop("name"), "damaged"),
        (lambda record: record.update(source="camera"), "`source` is 'camera'"),
        (lambda record: record["source"].update(fps="25"), "`fps` is '25'"),
        (lambda record: record["source"].update(fps=0), "`fps` is 0"),
        (lambda record: record.update(frames="many"), "`frames` is 'many'"),
        (lambda record: record.update(frames_left_out=-3), "`frames_left_out` is -3"),
        (lambda record: record.update(damaged_packets=float("nan")), "`damaged_packets` is nan"),
        (lambda record: record.update(reasons={"static": "x"}), "`static` is 'x'"),
        (lambda record: record["windows"][0].update(reasons={"static": "x"}), "damaged"),
        (lambda record: record["windows"][0].update(reasons=[1]), "damaged"),
    ],
)
def test_hostile_record(made: TwinDictionary, change, message: str) -> None:
    path = _part(made) / "video.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(DictionaryError, match=message):
        TwinDictionary.load(made.path)


@pytest.mark.parametrize(
    ("key", "value"), [("config", "x"), ("config", [1]), ("failed", [1]), ("left_out", 3)]
)
def test_hostile_values_in_the_manifest(made: TwinDictionary, key: str, value: object) -> None:
    path = made.path / "dictionary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DictionaryError, match=rf"dictionary\.json: damaged: `{key}` is "):
        TwinDictionary.load(made.path)


@pytest.mark.parametrize(
    ("twin", "message"), [(99, "out of range"), (-2, "out of range"), (7, "another window")]
)
def test_hostile_twins(made: TwinDictionary, twin: int, message: str) -> None:
    """The index is rewritten with its hash: what it says is checked all the same."""
    path = _part(made) / "index.safetensors"
    content = load_file(path)
    content["twins"][0, 0] = twin
    data = save(content)
    path.write_bytes(data)
    record = json.loads((_part(made) / "video.json").read_text())
    record["index"]["sha256"] = hashlib.sha256(data).hexdigest()
    (_part(made) / "video.json").write_text(json.dumps(record))
    with pytest.raises(DictionaryError, match=message):
        TwinDictionary.load(made.path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pixels", {"pixels": torch.zeros(4, 1, 3, 8, 8)}),
        ("pixels", {"pixels": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}),
        ("twins", {"twins": torch.tensor([[1], [0], [3], [4]])}),
        ("twins", {"twins": torch.tensor([[2], [0], [3], [2]])}),
        ("twins", {"twins": torch.tensor([[-1, 1]] * 4), "mi": torch.ones(4, 2)}),
        ("twins", {"twins": torch.tensor([[1], [0], [3]])}),
        ("mi", {"mi": torch.ones(4)}),
        ("windows", {"windows": [0, 1, 0, 1]}),
        ("windows", {"windows": [-1, -1, 1, 1]}),
        ("windows", {"windows": [0, 0, 1]}),
    ],
)
def test_arrays_that_do_not_fit_leave_nothing(
    tmp_path: Path, name: str, change: dict[str, object]
) -> None:
    arrays = {
        "pixels": torch.zeros(4, 1, 3, 8, 8, dtype=torch.uint8),
        "twins": torch.tensor([[1], [0], [3], [2]]),
        "mi": torch.ones(4, 1),
        "windows": [0, 0, 1, 1],
    }
    with pytest.raises(DictionaryError, match=f"^{name}: expected"):
        TwinDictionary.create(tmp_path / "twins", **{**arrays, **change})
    assert not (tmp_path / "twins").exists()
    TwinDictionary.create(tmp_path / "twins", **arrays)


# --- formats


def _as_version(made: TwinDictionary, version: int) -> Path:
    """The dictionary as an earlier version wrote it: patches are not linked."""
    as_folders(made.path, version, keep=True)
    path = _part(made) / "index.safetensors"
    content = load_file(path)
    del content["next"]
    data = save(content)
    path.write_bytes(data)
    record = json.loads((_part(made) / "video.json").read_text())
    record["index"]["sha256"] = hashlib.sha256(data).hexdigest()
    (_part(made) / "video.json").write_text(json.dumps({**record, "version": version}))
    manifest = made.path / "dictionary.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": version}))
    return made.path


def test_format_2_is_read(made: TwinDictionary) -> None:
    old = TwinDictionary.load(_as_version(made, 2))
    assert torch.equal(old.pixels, made.pixels)
    assert torch.equal(old.twins, made.twins)
    assert (old.next == -1).all()
    assert all(torch.equal(a, b) for a, b in zip(_sample(old), _sample(made), strict=True))


def test_format_1_is_refused(made: TwinDictionary) -> None:
    with pytest.raises(DictionaryError, match=r"version 1 is older .* \(2 to 4\); mine .* anew"):
        TwinDictionary.load(_as_version(made, 1))


def test_format_3_without_links_is_damaged(made: TwinDictionary) -> None:
    with pytest.raises(DictionaryError, match="`next` should be"):
        TwinDictionary.load(_as_version(made, 3))


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({0: 99}, "out of range"),
        ({0: -2}, "out of range"),
        ({0: 6, 1: 6}, "two patches are linked to the same one"),
        ({6: 0}, "no later window of the shot"),
        ({0: 1}, "no later window of the shot"),
        ({0: 6}, "no later window of the shot"),  # windows without a shot are shots of their own
    ],
)
def test_hostile_links(made: TwinDictionary, links: dict[int, int], message: str) -> None:
    path = _part(made) / "index.safetensors"
    content = load_file(path)
    for patch, following in links.items():
        content["next"][patch] = following
    data = save(content)
    path.write_bytes(data)
    record = json.loads((_part(made) / "video.json").read_text())
    record["index"]["sha256"] = hashlib.sha256(data).hexdigest()
    (_part(made) / "video.json").write_text(json.dumps(record))
    with pytest.raises(DictionaryError, match=message):
        TwinDictionary.load(made.path)


# --- crops as JPEG


def _smooth(side: int = 64) -> torch.Tensor:
    """uint8 [N, S, 3, side, side]: patch, moment and place can be told from smooth colours."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    pixels = torch.empty(N, S, 3, side, side)
    pixels[:, :, 0] = 20 * torch.arange(N)[:, None, None, None].float()
    pixels[:, :, 1] = 60 * torch.arange(S)[None, :, None, None] + x / 2
    pixels[:, :, 2] = y + 40.0
    return pixels.to(torch.uint8)


@pytest.fixture
def jpeg(tmp_path: Path) -> TwinDictionary:
    _, twins, mi, windows = _content()
    path = tmp_path / "jpeg"
    return TwinDictionary.create(path, _smooth(), twins, mi, windows=windows, jpeg=True)


def test_jpeg_crops_are_what_was_stored(jpeg: TwinDictionary) -> None:
    pixels = _smooth()
    assert jpeg.pixels_shape == pixels.shape
    index, moment = torch.tensor([11, 0, 6, 5, 0] * 20), torch.tensor([2, 0, 1, 1, 2] * 20)
    found = jpeg.crops(index, moment)  # enough for several threads
    assert (found.int() - pixels[index, moment].int()).abs().max() <= 3
    as_folders(jpeg.path, keep=True)
    stored = sum(path.stat().st_size for path in jpeg.path.rglob("pixels-*"))
    assert stored < pixels.numel() / 6


def test_pillow_reads_the_same_colours(jpeg: TwinDictionary) -> None:
    """Prefix and rest are a JPEG file, in the usual order of channels."""
    tensors = load_file(next(as_folders(jpeg.path, keep=True).rglob("pixels-0000.safetensors")))
    first = int(tensors["sizes"][0, 0])
    data = tensors["prefix"].numpy().tobytes() + tensors["jpeg"][:first].numpy().tobytes()
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(pixels - _smooth()[0, 0].permute(1, 2, 0).numpy()).max() <= 3


@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        slice(2, 5),
        (slice(None), 1),
        (4, 2),
        (..., 0),
        torch.tensor([3, 1]),
        (torch.tensor([3, 1]), torch.tensor([0, 2])),
        np.array([5, 5]),
        [1, 2],
        torch.arange(N) % 2 == 0,
        (2, 1, 0),
        (slice(0, 2), 0, slice(None), 5, slice(None, None, 2)),
    ],
    ids=str,
)
def test_lazy_pixels_are_indexed_as_a_tensor_is(jpeg: TwinDictionary, key: Any) -> None:
    places = torch.arange(N)[:, None].expand(N, S), torch.arange(S).expand(N, S)
    whole = jpeg.crops(*(place.reshape(-1) for place in places)).reshape(jpeg.pixels_shape)
    found = jpeg.pixels[key]
    assert found.shape == whole[key].shape
    assert torch.equal(found, whole[key])


def test_lazy_pixels_decode_what_is_shown(
    jpeg: TwinDictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    plain = _jpeg.decode_all
    monkeypatch.setattr(_jpeg, "decode_all", lambda images, out: decoded.append(len(images)))
    jpeg.pixels[2:4, 1]
    monkeypatch.setattr(_jpeg, "decode_all", plain)
    assert decoded == [2]
    assert len(jpeg.pixels) == N
    assert np.asarray(jpeg.pixels).shape == jpeg.pixels.shape
    assert torch.equal(jpeg.pixels, jpeg.pixels[:])  # functions of torch take it as a tensor
    with pytest.raises(IndexError, match="index patches and moments"):
        jpeg.pixels[None]


def test_jpeg_is_sampled_like_raw(jpeg: TwinDictionary, made: TwinDictionary) -> None:
    for positives in POSITIVES:
        ours, theirs = (_sample(one, 6, positives=positives, temporal=True) for one in (jpeg, made))
        assert torch.equal(ours[2], theirs[2])
        for a, b in zip(ours[:2], theirs[:2], strict=True):
            assert torch.equal((_ids(a) / 20).round(), _ids(b))


def test_fuzz_jpeg(jpeg: TwinDictionary) -> None:
    path = next(as_folders(jpeg.path, keep=True).rglob("pixels-0000.safetensors"))
    whole = path.read_bytes()
    generator = random.Random(0)
    for trial in range(150):
        data = bytearray(whole)
        if trial % 4 == 3:
            data = data[: generator.randrange(len(data))]
        for _ in range(generator.choice((1, 1, 4, 32))):
            if data:
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        _use(jpeg.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(prefix=t["prefix"][:100]), "its crops have no JPEG header"),
        (lambda t: t["sizes"].__setitem__((0, 0), 7), "do not add up"),
        (lambda t: t["sizes"].__setitem__((0, 0), -1), "do not add up"),
        (lambda t: t.pop("jpeg"), "`jpeg` should be"),
        (lambda t: t["jpeg"].zero_(), None),
    ],
)
def test_hostile_jpeg(jpeg: TwinDictionary, change, message: str | None) -> None:
    path = next(as_folders(jpeg.path, keep=True).rglob("pixels-0000.safetensors"))
    tensors = load_file(path)
    change(tensors)
    path.write_bytes(save(tensors))
    if message is None:  # what is inside a crop is found, if at all, when it is decoded
        _use(jpeg.path)
        return
    with pytest.raises(DictionaryError, match=message):
        TwinDictionary.load(jpeg.path)


# --- what continues a patch in other windows


def test_chains() -> None:
    """0 → 3 → 5 and 1 → 4, a second apart; 2 is alone."""
    following = np.array([3, 4, -1, 5, -1, -1])
    chains = Chains.of(following, np.array([0.0, 0.0, 0.0, 1.0, 1.0, 2.0]))
    for patch, seconds, expected in (
        (0, 0.5, {0}),
        (0, 1.0, {0, 3}),
        (0, 2.0, {0, 3, 5}),
        (3, 1.0, {0, 3, 5}),
        (5, 1.5, {3, 5}),
        (5, 99.0, {0, 3, 5}),
        (1, 99.0, {1, 4}),
        (2, 99.0, {2}),
    ):
        first, stop = chains.reach(np.array([patch]), seconds)
        assert set(chains.order[first[0] : stop[0]].tolist()) == expected
        drawn = chains.draw(torch.full((300,), patch), seconds, torch.linspace(0, 0.999, 300))
        counts = torch.bincount(drawn, minlength=6)
        assert set(counts.nonzero()[:, 0].tolist()) == expected
        assert counts[sorted(expected)].min() >= 300 // len(expected) - 1


def test_links_of_what_is_kept() -> None:
    following = np.array([2, 3, -1, 4, -1])
    assert relinked(following, np.arange(5)).tolist() == following.tolist()
    assert relinked(following, np.array([1, 3])).tolist() == [1, -1]
    assert relinked(following, np.array([0, 3, 4])).tolist() == [-1, 2, -1]
