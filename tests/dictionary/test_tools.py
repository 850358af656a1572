from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from formats import as_folders
from typer.testing import CliRunner

from solo_infoaug.cli import app
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.pixels import encode
from solo_infoaug.dictionary.tools import describe, filter_twins, merge, split
from solo_infoaug.dictionary.writing import VideoWriter, write_manifest
from solo_infoaug.errors import ConfigError, DictionaryError


def _make(path: Path, seed: int, count: int = 12, windows: int = 3, top_k: int = 3, side: int = 8):
    """Each patch's twins are the next ones of its window, MI falling from patch to patch."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 2, 3, side, side), generator=generator).to(torch.uint8)
    per = count // windows
    twins = torch.full((count, top_k), -1)
    for patch in range(count):
        first = patch // per * per
        others = [first + (patch - first + step) % per for step in range(1, per)]
        twins[patch, : len(others)] = torch.tensor(others[:top_k])
    mi = torch.rand(count, top_k, generator=generator).sort(dim=1, descending=True).values
    mi = torch.where(twins >= 0, mi, torch.zeros(()))
    of_window = np.arange(count) // per
    return TwinDictionary.create(path, pixels, twins, mi, windows=of_window, name=f"v{seed}")


@pytest.fixture
def two(tmp_path: Path) -> tuple[TwinDictionary, TwinDictionary]:
    return _make(tmp_path / "one", 1), _make(tmp_path / "two", 2)


def test_merge(two, tmp_path: Path) -> None:
    one, other = two
    merged = merge([one.path, other.path, one.path], tmp_path / "merged")
    assert merged.videos == ["v1", "v2"]
    assert torch.equal(merged.pixels, torch.cat([one.pixels[:], other.pixels[:]]))
    moved = torch.where(other.twins >= 0, other.twins + len(one), other.twins)
    assert torch.equal(merged.twins, torch.cat([one.twins, moved]))
    assert torch.equal(merged.mi, torch.cat([one.mi, other.mi]))
    assert len(merged.windows) == 6
    assert merged.windows[4].arrays["tracks"].shape[1] == len(merged.windows[4].patches)


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
    assert (len(first.windows), len(second.windows)) == (2, 1)
    rows = torch.cat([first.pixels[:], second.pixels[:]]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(two[0])
    # Twins still point at the same pictures
    for part in (first, second):
        for patch in range(len(part)):
            place = int((two[0].pixels == part.pixels[patch]).flatten(1).all(1).nonzero())
            old = two[0].pixels[two[0].twins[place, 0]]
            assert torch.equal(part.pixels[part.twins[patch, 0]], old)


def _overlapping(path: Path, jpeg: bool = False, key: str = "clip") -> TwinDictionary:
    """A video of two shots: three windows of two patches in the first, one in the second.

    The patches of the first window are linked crosswise to those of the second, and one of these
    to one of the third.
    """
    generator = torch.Generator().manual_seed(0)
    writer = VideoWriter(path, key, "clip.mp4", {"fps": 25.0})
    for index, (shot, first, apart) in enumerate(((0, 0, 1), (0, 12, 1), (0, 24, 4), (3, 90, 10))):
        pixels = torch.randint(0, 256, (2, 1, 3, 8, 8), generator=generator, dtype=torch.uint8)
        pixels = pixels.numpy()
        writer.add_window(
            {"shot": shot, "frame": first + 12, "first": first, "frames": 24},
            image=np.zeros((48, 256, 3), np.uint8),
            patches={
                "frame": np.full(2, first + 12, np.int32),
                "x": np.array([8, 8 + 16 * apart], np.float32),
                "y": np.full(2, 8 + index, np.float32),
                "size": np.full(2, 16, np.float32),
                "entropy": np.zeros(2, np.float32),
            },
            pixels=encode(pixels) if jpeg else pixels,
            twins=np.array([[1], [0]]),
            mi=np.ones((2, 1), np.float32),
            p_value=np.zeros((2, 1), np.float32),
            moment_frames=np.full((2, 1), first + 12, np.int32),
            arrays={
                "tracks": np.zeros((24, 2, 2), np.float32),
                "mi": np.full((2, 2), np.nan, np.float32),
            },
        )
    writer.finish(
        counts={
            "frames": 3000,
            "windows_mined": 7,
            "damaged_packets": 2,
            "frames_left_out": 5,
            "reasons": {"twin": 8, "static": 120, "lost": 72},
        },
        following=np.array([3, 2, 5, -1, -1, -1, -1, -1]),
    )
    config = {"frame_step": 2}
    write_manifest(path, [key], {"config": config, "failed": {}})
    return TwinDictionary.load(path)


def test_overlapping_windows_of_a_shot_stay_together(tmp_path: Path) -> None:
    """They share frames: apart, one side would be tested on what the other was trained on."""
    whole = _overlapping(tmp_path / "whole")
    assert whole.patches["shot"].tolist() == [0] * 6 + [3] * 2
    parts = split(whole.path, tmp_path / "split", fraction=0.5, by="shot")
    assert sorted(len(part.windows) for part in parts) == [1, 3]
    assert sorted(set(part.patches["shot"].tolist()).pop() for part in parts) == [0, 3]
    with pytest.raises(DictionaryError, match="single shot and cannot be split by shot"):
        split(
            next(part for part in parts if len(part.windows) == 3).path, tmp_path / "s", by="shot"
        )


def test_shots_are_counted_through_all_videos(tmp_path: Path) -> None:
    whole = _overlapping(tmp_path / "whole")
    other = _overlapping(tmp_path / "other", key="second")
    merged = merge([whole.path, other.path], tmp_path / "merged")
    assert merged.patches["shot"].tolist() == [0] * 6 + [3] * 2 + [4] * 6 + [7] * 2
    assert merged.patches["window"].tolist() == np.arange(8).repeat(2).tolist()


def test_links_survive_and_are_counted(tmp_path: Path) -> None:
    whole = _overlapping(tmp_path / "whole")
    links = [3, 2, 5, -1, -1, -1, -1, -1]
    assert whole.next.tolist() == links
    # 0 → 3 and 1 → 2 → 5 are linked, 24 frames of 25 a second from end to end
    expected = {"patches": 5, "with_twin": 5, "links": 3, "longest_seconds": 0.96}
    assert describe(whole)["linked"] == expected
    kept = filter_twins(whole.path, tmp_path / "kept", min_mi=2.0)
    assert kept.next.tolist() == links
    parts = split(whole.path, tmp_path / "split", fraction=0.5, by="shot")
    assert sorted(part.next.tolist() for part in parts) == [[-1, -1], links[:6]]
    other = _overlapping(tmp_path / "other", key="second")
    merged = merge([whole.path, other.path], tmp_path / "merged")
    assert merged.next.tolist() == links + [link + 8 if link >= 0 else -1 for link in links]


def test_twins_are_drawn_from_other_windows(tmp_path: Path) -> None:
    """Crops tell which patch they are of; the twin of 0 is 1, which 2 and 5 continue."""
    whole = _overlapping(tmp_path / "whole")
    pixels = whole.pixels[:, 0]

    def shown(seconds: float | bool) -> tuple[set[int], set[int]]:
        generator = torch.Generator().manual_seed(0)
        patch, twin, index = whole.sample(400, generator, temporal=seconds)
        rows = index == 0
        return tuple(
            {int((pixels == crop).flatten(1).all(1).nonzero()) for crop in crops[rows]}
            for crops in (patch, twin)
        )

    assert shown(True) == ({0}, {1})
    assert shown(0.4) == ({0}, {1})  # windows are 0.48 s apart
    assert shown(0.5) == ({0, 3}, {1, 2})
    assert shown(1) == ({0, 3}, {1, 2, 5})
    one, two = (whole.sample(8, torch.Generator().manual_seed(3), temporal=1.0) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_raw_and_jpeg_are_merged(tmp_path: Path) -> None:
    raw = _overlapping(tmp_path / "raw")
    jpeg = _overlapping(tmp_path / "jpeg", jpeg=True, key="second")
    merged = merge([raw.path, jpeg.path], tmp_path / "merged")
    assert torch.equal(merged.pixels[:8], raw.pixels)
    assert torch.equal(merged.pixels[8:], TwinDictionary.load(jpeg.path).pixels[:])
    assert merged.sample(20, torch.Generator().manual_seed(0))[0].shape == (20, 3, 8, 8)


def test_jpegs_are_written_again_as_they_are(tmp_path: Path) -> None:
    """They lose nothing a second time."""
    jpeg = _overlapping(tmp_path / "jpeg", jpeg=True)
    kept = filter_twins(jpeg.path, tmp_path / "kept", min_mi=2.0)
    stored, again = (one.part_files(0).read("pixels-0000.safetensors") for one in (jpeg, kept))
    assert stored == again
    parts = split(jpeg.path, tmp_path / "split", fraction=0.5, by="shot")
    rows = torch.cat([part.pixels[:] for part in sorted(parts, key=len, reverse=True)])
    assert torch.equal(rows, jpeg.pixels[:])
    assert describe(jpeg, verify=True)["verified"]


def test_describe_says_what_came_of_each_video(tmp_path: Path) -> None:
    found = describe(_overlapping(tmp_path / "whole"))
    (row,) = found["by_video"]
    # 3000 frames, every second one of 25 a second: 4 minutes
    assert row["minutes"] == pytest.approx(4.0)
    assert (row["windows"], row["patches"], row["with_twin"]) == (7, 200, 8)
    assert row["twins_a_minute"] == 2.0
    assert row["share_with_twin"] == 0.04
    assert row["patches_by_reason"] == {"twin": 8, "static": 120, "lost": 72}
    assert found["patches_by_reason"] == row["patches_by_reason"]
    # 4 patches are 1 side apart, 2 are 4 apart, 2 are 10 apart
    assert found["twins_apart"] == {"median": 2.5, "p90": 10.0, "share_next_to_each_other": 0.5}
    assert (found["damaged_packets"], found["frames_left_out"]) == (2, 5)


def test_describe_without_a_twin_or_a_rate(tmp_path: Path) -> None:
    pixels = torch.zeros(4, 1, 3, 8, 8, dtype=torch.uint8)
    none = TwinDictionary.create(
        tmp_path / "none", pixels, torch.full((4, 1), -1), torch.zeros(4, 1)
    )
    found = describe(none)
    assert found["twins_apart"] is None
    assert found["mi_nats"] is None
    assert found["by_video"][0]["minutes"] is None
    assert found["by_video"][0]["twins_a_minute"] is None


def test_what_was_counted_survives_filtering(tmp_path: Path) -> None:
    whole = _overlapping(tmp_path / "whole")
    kept = filter_twins(whole.path, tmp_path / "kept", min_mi=2.0)
    (before,), (after,) = describe(whole)["by_video"], describe(kept)["by_video"]
    assert after["with_twin"] == 0
    for name in ("minutes", "windows", "patches_by_reason"):
        assert after[name] == before[name]
    assert [window.first for window in kept.windows] == [0, 12, 24, 90]


def test_split_errors(two, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="single video and cannot be split by video"):
        split(two[0].path, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"fraction: expected in \(0, 1\), got 1"):
        split(two[0].path, tmp_path / "s", fraction=1)
    with pytest.raises(ConfigError, match="by: expected video or shot, got 'day'"):
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
    with pytest.raises(ConfigError, match="top_k: expected 1 to"):
        filter_twins(one.path, tmp_path / "none", top_k=0)


def test_describe_and_verify(two) -> None:
    found = describe(two[0], verify=True)
    assert (found["videos"], found["windows"], found["patches"]) == (1, 3, 12)
    assert found["pairs"] == int((two[0].twins >= 0).sum())
    assert json.loads(json.dumps(found)) == found
    place = two[0].part_files(0).where("pixels-0000.safetensors")
    whole = bytearray(place.path.read_bytes())
    for byte, message in (
        (place.start + place.size - 1, r"00000\.zip: damaged"),  # by the CRC of ZIP
        (two[0].part_files(0).where("index.safetensors").start + 900, r"00000\.zip: damaged"),
    ):
        data = bytearray(whole)
        data[byte] ^= 1
        place.path.write_bytes(data)
        damaged = TwinDictionary.load(two[0].path)  # pixels are not read
        with pytest.raises(DictionaryError, match=message):
            describe(damaged, verify=True)
    place.path.write_bytes(whole)
    index = two[0].path / "index.safetensors"
    data = bytearray(index.read_bytes())
    data[-1] ^= 1
    index.write_bytes(data)
    with pytest.raises(DictionaryError, match=r"index\.safetensors: damaged: its content"):
        describe(TwinDictionary.load(two[0].path), verify=True)


def test_verify_reads_folders(two) -> None:
    """Format 3 has no CRC, but hashes in the record."""
    path = next(as_folders(two[0].path).rglob("pixels-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    damaged = TwinDictionary.load(two[0].path)
    with pytest.raises(DictionaryError, match=r"pixels-0000\.safetensors: damaged"):
        describe(damaged, verify=True)


def test_commands(two, tmp_path: Path) -> None:
    run = CliRunner().invoke
    paths = [str(item.path) for item in two]
    assert run(app, ["merge", *paths, "-o", str(tmp_path / "m")]).exit_code == 0
    info = run(app, ["info", str(tmp_path / "m"), "--verify"])
    assert json.loads(info.stdout)["videos"] == 2
    split_ = run(app, ["split", str(tmp_path / "m"), "-o", str(tmp_path / "s"), "--by", "shot"])
    assert split_.exit_code == 0, split_.output
    kept = run(app, ["filter", str(tmp_path / "m"), "-o", str(tmp_path / "f"), "--top-k", "1"])
    assert kept.exit_code == 0, kept.output
    assert TwinDictionary.load(tmp_path / "f").twins.shape[1] == 1
