from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from solo_infoaug.cli import app
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary_tools import describe, filter_twins, merge, split
from solo_infoaug.errors import ConfigError, DictionaryError


def _make(path: Path, seed: int, count: int = 12, shots: int = 3, top_k: int = 3, side: int = 8):
    """Each patch's twins are the next ones of its shot, MI falling from patch to patch."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 2, 3, side, side), generator=generator).to(torch.uint8)
    per = count // shots
    twins = torch.full((count, top_k), -1)
    for patch in range(count):
        first = patch // per * per
        others = [first + (patch - first + step) % per for step in range(1, per)]
        twins[patch, : len(others)] = torch.tensor(others[:top_k])
    mi = torch.rand(count, top_k, generator=generator).sort(dim=1, descending=True).values
    mi = torch.where(twins >= 0, mi, torch.zeros(()))
    of_shot = np.arange(count) // per
    return TwinDictionary.create(path, pixels, twins, mi, shots=of_shot, name=f"v{seed}")


@pytest.fixture
def two(tmp_path: Path) -> tuple[TwinDictionary, TwinDictionary]:
    return _make(tmp_path / "one", 1), _make(tmp_path / "two", 2)


def test_merge(two, tmp_path: Path) -> None:
    one, other = two
    merged = merge([one.path, other.path, one.path], tmp_path / "merged")
    assert merged.videos == ["v1", "v2"]
    assert torch.equal(merged.pixels, torch.cat([one.pixels, other.pixels]))
    moved = torch.where(other.twins >= 0, other.twins + len(one), other.twins)
    assert torch.equal(merged.twins, torch.cat([one.twins, moved]))
    assert torch.equal(merged.mi, torch.cat([one.mi, other.mi]))
    assert len(merged.shots) == 6
    assert merged.shots[4].arrays["tracks"].shape[1] == len(merged.shots[4].patches)


def test_merge_errors(two, tmp_path: Path) -> None:
    other = _make(tmp_path / "big", 3, side=16)
    with pytest.raises(DictionaryError, match=r"do not fit together: .*crops \[2, 3, 16, 16\]"):
        merge([two[0].path, other.path], tmp_path / "merged")
    with pytest.raises(DictionaryError, match="holds a dictionary already"):
        merge([two[0].path], two[1].path)


def test_split_by_video(two, tmp_path: Path) -> None:
    whole = merge([item.path for item in two], tmp_path / "merged")
    first, second = split(whole.path, tmp_path / "split", fraction=0.5)
    assert sorted(first.videos + second.videos) == ["v1", "v2"]
    again = split(whole.path, tmp_path / "again", fraction=0.5)
    assert [part.fingerprint for part in again] == [first.fingerprint, second.fingerprint]


def test_split_by_shot(two, tmp_path: Path) -> None:
    first, second = split(two[0].path, tmp_path / "split", fraction=0.67, by="shot")
    assert (len(first.shots), len(second.shots)) == (2, 1)
    rows = torch.cat([first.pixels, second.pixels]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(two[0])
    # Twins still point at the same pictures
    for part in (first, second):
        for patch in range(len(part)):
            place = int((two[0].pixels == part.pixels[patch]).flatten(1).all(1).nonzero())
            old = two[0].pixels[two[0].twins[place, 0]]
            assert torch.equal(part.pixels[part.twins[patch, 0]], old)


def test_split_errors(two, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="single video and cannot be split by video"):
        split(two[0].path, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"fraction must be in \(0, 1\), not 1"):
        split(two[0].path, tmp_path / "s", fraction=1)
    with pytest.raises(ConfigError, match="by must be video or shot, not 'day'"):
        split(two[0].path, tmp_path / "s", by="day")


def test_filter(two, tmp_path: Path) -> None:
    one = two[0]
    limit = float(one.mi[one.mi > 0].median())
    kept = filter_twins(one.path, tmp_path / "kept", min_mi=limit, top_k=2)
    assert kept.twins.shape[1] == 2
    assert torch.equal(kept.pixels, one.pixels)
    for patch in range(len(one)):
        good = [(int(t), float(m)) for t, m in zip(one.twins[patch], one.mi[patch], strict=True)]
        good = [(t, m) for t, m in good if t >= 0 and m >= limit][:2]
        found = [(int(t), float(m)) for t, m in zip(kept.twins[patch], kept.mi[patch], strict=True)]
        assert [pair for pair in found if pair[0] >= 0] == good
    with pytest.raises(ConfigError, match="top_k must be at least 1"):
        filter_twins(one.path, tmp_path / "none", top_k=0)


def test_describe_and_verify(two) -> None:
    found = describe(two[0], verify=True)
    assert (found["videos"], found["shots"], found["patches"]) == (1, 3, 12)
    assert found["pairs"] == int((two[0].twins >= 0).sum())
    assert json.loads(json.dumps(found)) == found
    path = next(two[0].path.rglob("pixels-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    damaged = TwinDictionary.load(two[0].path)  # pixels are not read
    with pytest.raises(DictionaryError, match=r"pixels-0000\.safetensors: damaged"):
        describe(damaged, verify=True)


def test_commands(two, tmp_path: Path) -> None:
    run = CliRunner().invoke
    paths = [str(item.path) for item in two]
    assert run(app, ["merge", *paths, "-o", str(tmp_path / "m")]).exit_code == 0
    info = run(app, ["info", str(tmp_path / "m"), "--verify"])
    assert json.loads(info.output)["videos"] == 2
    split_ = run(app, ["split", str(tmp_path / "m"), "-o", str(tmp_path / "s"), "--by", "shot"])
    assert split_.exit_code == 0, split_.output
    kept = run(app, ["filter", str(tmp_path / "m"), "-o", str(tmp_path / "f"), "--top-k", "1"])
    assert kept.exit_code == 0, kept.output
    assert TwinDictionary.load(tmp_path / "f").twins.shape[1] == 1
