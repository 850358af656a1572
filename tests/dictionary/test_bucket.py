"""A dictionary in a bucket, of which a bounded part lies on the local disk."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from formats import as_folders

from solo_infoaug.dictionary import TwinDictionary, bucket, packs
from solo_infoaug.dictionary.locate import choose_dictionary
from solo_infoaug.dictionary.shuffling import PackOrder, visits
from solo_infoaug.dictionary.store import POSITIVES
from solo_infoaug.errors import ConfigError, DictionaryError

from .test_packs import write_clips

# --- the order of draws: no files


def _order(rounds: int, room: int = 250, packs: int = 7) -> PackOrder:
    """Packs of 100 bytes, each of two blocks of 10 patches; every second patch is drawn."""
    first = np.arange(0, 20 * packs, 10)
    pack = np.tile(np.arange(packs), 2)  # the blocks of a pack are no neighbours
    return PackOrder([100] * packs, np.arange(0, 20 * packs, 2), first, pack, room, rounds)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_pass_has_each_patch_as_often_as_was_said(rounds: int) -> None:
    order, whole = _order(rounds), 70 * rounds
    drawn = [rows for step in range(2 * whole // 14) for _, rows in order.draws(5, step * 14, 14)]
    both = np.concatenate(drawn)
    for one in (both[:whole], both[whole:]):
        assert Counter(one.tolist()) == dict.fromkeys(range(0, 140, 2), rounds)
    assert not np.array_equal(both[:whole], both[whole:])
    # From any number on the same are drawn, by another object, in other pieces
    again = [rows for _, rows in _order(rounds).draws(5, 33, 71)]
    assert np.array_equal(np.concatenate(again), both[33 : 33 + 71])
    other = np.concatenate([rows for _, rows in order.draws(6, 0, whole)])
    assert not np.array_equal(other, both[:whole])


def test_a_visit_is_of_packs_that_have_room() -> None:
    found = visits(1, 0, [100, 60, 40, 300, 70], [5, 5, 0, 5, 5], 200, 2)
    assert sorted(pack for visit in found for pack in visit.packs) == [0, 1, 3, 4]
    sizes = [100, 60, 40, 300, 70]
    for visit in found:
        assert sum(sizes[pack] for pack in visit.packs) <= 200 or visit.packs == (3,)
        assert visit.stop - visit.first == 2 * 5 * len(visit.packs)
    assert [visit.first for visit in found] == [0, *(visit.stop for visit in found[:-1])]
    orders = {tuple(v.packs for v in visits(1, turn, sizes, [5] * 5, 200, 2)) for turn in range(9)}
    assert len(orders) > 3


def test_patches_of_a_visit_are_of_its_packs() -> None:
    order = _order(1)
    seen = []
    for step in range(5):
        for visit, rows in order.draws(0, 14 * step, 14):
            assert set((rows // 10 % 7).tolist()) <= set(visit.packs)
            assert len(visit.packs) <= 2
            seen.append(visit.packs)
    assert len(set(seen)) == 4


# --- buckets


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwinDictionary:
    """Eight videos in four packs; patch and moment can be told from the colour of a crop."""
    monkeypatch.setattr(packs, "PACK_BYTES", 2 * 15_000)
    return write_clips(tmp_path / "local", 8)


@pytest.fixture
def url(local: TwinDictionary) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.put(str(local.path), "/bucket/twins", recursive=True)
    yield "memory://bucket/twins"
    system.rm("/bucket", recursive=True)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packs that were fetched, in order."""
    names: list[str] = []
    fetch = bucket.Bucket._fetch

    def noted(self: bucket.Bucket, place: str, path: Path, size: int | None) -> None:
        if path.suffix == ".zip":
            names.append(path.name)
        fetch(self, place, path, size)

    monkeypatch.setattr(bucket.Bucket, "_fetch", noted)
    return names


def _room(local: TwinDictionary, count: float) -> float:
    """GB for the index and so many packs."""
    pack_bytes = local._index["pack_bytes"]
    index = (local.path / "index.safetensors").stat().st_size
    return (index + count * int(pack_bytes.max())) / 1e9


def _ended(dictionary: TwinDictionary) -> None:
    assert dictionary.stream is not None
    ahead = dictionary.stream._bucket._ahead
    if ahead is not None:
        ahead.join()


def test_with_room_for_all_it_is_drawn_from_as_a_folder_is(
    local: TwinDictionary, url: str, fetched: list[str]
) -> None:
    there = TwinDictionary.load(url)
    assert fetched == []
    assert (there.fingerprint, there.place) == (local.fingerprint, url)
    for positives in POSITIVES:
        for options in (
            {},
            {"temporal": 0.7, "top_k": 2},
            {"without_twin_share": 0.4, "temporal": True},
        ):
            drawn = [
                one.sample(9, torch.Generator().manual_seed(3), positives=positives, **options)
                for one in (local, there)
            ]
            assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    assert torch.equal(there.pixels, local.pixels)
    assert sorted(fetched) == [f"0000{number}.zip" for number in range(4)]
    # Another run finds them, and so does a copy
    copied = pickle.loads(pickle.dumps(TwinDictionary.load(url)))
    assert torch.equal(copied.pixels, local.pixels)
    assert len(fetched) == 4
    with pytest.raises(DictionaryError, match=r"windows and records are read only"):
        there.windows[0]


@pytest.mark.parametrize("repeats", [1, 2])
def test_with_less_room_packs_come_and_go(
    local: TwinDictionary, url: str, fetched: list[str], repeats: int
) -> None:
    room = _room(local, 2)
    there = TwinDictionary.load(url, cache_gb=room, repeats=repeats)
    assert there.stream is not None
    assert there.stream.partial
    anchors, batch = len(local.anchors), 8
    steps = 2 * anchors * repeats // batch
    assert steps * batch == 2 * anchors * repeats  # two passes
    seen: list[int] = []
    for step in range(steps):
        patch, twin, index = there.sample(
            batch, torch.Generator().manual_seed(step), order=(7, step)
        )
        assert torch.equal(patch, local.pixels[index, 0])
        assert torch.equal(twin, local.pixels[local.twins[index, 0], 0])
        seen += index.tolist()
        _ended(there)
        files = [path for path in there.path.rglob("[!.]*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= room * 1e9
    for one in (seen[: len(seen) // 2], seen[len(seen) // 2 :]):
        assert Counter(one) == dict.fromkeys(local.anchors.tolist(), repeats)
    # Each pack once a pass, but those that are still here; and one for the pass to come
    assert 5 <= len(fetched) <= 2 * 4 + 1


def test_what_is_drawn_follows_from_the_order_alone(local: TwinDictionary, url: str) -> None:
    """As in a run that goes on from a checkpoint, or has a batch prepared that it does not take."""
    one, other = (TwinDictionary.load(url, cache_gb=_room(local, 2)) for _ in range(2))

    def drawn(dictionary: TwinDictionary, step: int, seed: int = 1) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        arguments = {"positives": "random", "without_twin_share": 0.3, "temporal": True}
        return list(dictionary.sample(6, generator, order=(seed, step), **arguments))

    first = [drawn(one, step) for step in range(6)]
    for step in (4, 2, 5):
        assert all(map(torch.equal, drawn(other, step), first[step]))
    assert not torch.equal(drawn(other, 2, seed=2)[2], first[2][2])
    index = first[0][2]
    assert set(index[:4].tolist()) <= set(local.anchors.tolist())
    assert set(index[4:].tolist()) <= set(local.without_twin.tolist())
    # Without an order batches are counted
    counted = [other.sample(6, torch.Generator().manual_seed(0))[2] for _ in range(2)]
    assert not torch.equal(*counted)


def test_processes_of_a_run_draw_different_patches(local: TwinDictionary, url: str) -> None:
    there = TwinDictionary.load(url, cache_gb=_room(local, 2))
    of = [there.sample(3, torch.Generator(), order=(0, turn))[2].tolist() for turn in range(8)]
    assert len({patch for patches in of for patch in patches}) == 24


def test_the_least_recently_used_goes_and_others_dictionaries_too(
    local: TwinDictionary, url: str, tmp_path: Path
) -> None:
    TwinDictionary.load(url).pixels  # noqa: B018
    write_clips(tmp_path / "second", 9)
    second = TwinDictionary.load(f"file://{tmp_path}/second", cache_gb=_room(local, 2.2))
    second.sample(4, torch.Generator(), order=(0, 0))
    _ended(second)
    cache = bucket._folder()
    files = [path for path in cache.rglob("[!.]*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= _room(local, 2.2) * 1e9
    assert {path.parent.parent for path in files if path.suffix == ".zip"} == {second.path}


def test_less_room_than_before_is_kept_from_the_beginning(local: TwinDictionary, url: str) -> None:
    TwinDictionary.load(url).pixels  # noqa: B018
    there = TwinDictionary.load(url, cache_gb=_room(local, 2))
    files = [path for path in there.path.rglob("[!.]*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= _room(local, 2) * 1e9
    assert len(files) > 1


def test_the_network_fails_for_a_while(
    local: TwinDictionary, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(bucket.time, "sleep", waited.append)
    there = TwinDictionary.load(url)
    assert there.stream is not None
    system = there.stream._bucket._system
    opened, failures = system.open, [3]

    def failing(*arguments: object, **options: object) -> object:
        failures[0] -= 1
        if failures[0] > 0:
            raise ConnectionError("reset by\npeer")
        return opened(*arguments, **options)

    monkeypatch.setattr(system, "open", failing)
    assert torch.equal(there.crops(torch.tensor([0])), local.crops(torch.tensor([0])))
    assert waited == [1.0, 10.0]
    failures[0] = 99
    with pytest.raises(
        DictionaryError,
        match=r"^memory://bucket/twins/packs/0000\d\.zip: cannot be fetched: reset by peer$",
    ):
        there.crops(torch.tensor([55]))


def _short(system: fsspec.AbstractFileSystem) -> None:
    system.pipe_file("/bucket/twins/packs/00000.zip", b"PK")


def _gone(system: fsspec.AbstractFileSystem) -> None:
    system.rm_file("/bucket/twins/packs/00000.zip")


@pytest.mark.parametrize(
    ("change", "message"),
    [(_short, "00000.zip is shorter than its index says"), (_gone, "00000.zip: cannot be fetched")],
)
def test_packs_that_are_not_whole(
    url: str, change: Callable[[fsspec.AbstractFileSystem], None], message: str
) -> None:
    change(fsspec.filesystem("memory"))
    with pytest.raises(DictionaryError, match=message):
        TwinDictionary.load(url).crops(torch.tensor([0]))


def _raising(error: Exception) -> Callable[..., None]:
    def work(*_: object, **__: object) -> None:
        raise error

    return work


def test_places_that_cannot_be_used(
    local: TwinDictionary, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DictionaryError, match=r"memory://nowhere/x holds no finished twin dict"):
        TwinDictionary.load("memory://nowhere/x")
    with pytest.raises(DictionaryError, match=r"^nosuch://x: cannot be read: Protocol not known"):
        TwinDictionary.load("nosuch://x")
    with pytest.raises(ConfigError, match=r"infoaug\.cache_gb: expected at least .* two packs of"):
        TwinDictionary.load(url, cache_gb=_room(local, 1.5))
    with monkeypatch.context() as patch:
        denied = PermissionError(13, "Access Denied")
        patch.setattr(type(fsspec.filesystem("memory")), "cat_file", _raising(denied))
        with pytest.raises(
            DictionaryError, match=r"^memory://bucket/twins: cannot be read: Access"
        ):
            TwinDictionary.load(url)
    with pytest.raises(ConfigError, match="repeats: expected a whole number ≥ 1, got 0"):
        TwinDictionary.load(url, repeats=0)
    as_folders(local.path)
    with pytest.raises(DictionaryError, match=r"format 3 has a folder a video, .* merge OLD"):
        TwinDictionary.load(f"file://{local.path}")


def test_a_url_is_chosen_as_it_is_written(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dictionary(url).place == url
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", url)
    assert choose_dictionary().place == url


def test_no_thread_is_left(local: TwinDictionary, url: str) -> None:
    there = TwinDictionary.load(url, cache_gb=_room(local, 2))
    there.sample(3, torch.Generator(), order=(0, 0))
    _ended(there)
    assert not [one for one in threading.enumerate() if one.name == "infoaug-fetch"]
