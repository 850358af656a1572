"""Other ways to draw pairs: some random, no window twice, only distant twins."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from solo_infoaug.dictionary import TwinDictionary, sampling
from solo_infoaug.dictionary.sampling import draw_apart
from solo_infoaug.errors import ConfigError, DictionaryError

SIZES = (12, 8, 8, 4, 2, 2)
"""Patches of each window, all with a twin but the last two of windows of more than four."""


@pytest.fixture
def made(tmp_path: Path) -> TwinDictionary:
    """Pixels tell the patch. Neighbours are twins, and second twins the patch four further on."""
    windows = [window for window, size in enumerate(SIZES) for _ in range(size)]
    count = len(windows)
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1, 1).repeat(1, 1, 3, 8, 8)
    twins = torch.full((count, 2), -1)
    for patch, window in enumerate(windows):
        first, size = windows.index(window), SIZES[window]
        inside = patch - first
        if size <= 4 or inside < size - 2:
            twins[patch, 0] = first + (inside ^ 1)
        if size > 4 and inside < size - 6:
            twins[patch, 1] = patch + 4
    mi = (twins >= 0).float() * torch.tensor([2.0, 1.0])
    return TwinDictionary.create(tmp_path / "made", pixels, twins, mi, windows=windows)


def _sample(dictionary: TwinDictionary, size: int, seed: int = 0, **how: Any) -> list[torch.Tensor]:
    """Numbers of the patches, of their partners, and the index."""
    patch, partner, index = dictionary.sample(size, torch.Generator().manual_seed(seed), **how)
    return [patch[:, 0, 0, 0].long(), partner[:, 0, 0, 0].long(), index]


@pytest.mark.parametrize("positives", ["twins", "random_with_twin", "self"])
@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 4), (0.3, 2), (1.0, 8)])
def test_a_share_of_the_pairs_is_random(
    made: TwinDictionary, positives: str, share: float, count: int
) -> None:
    for seed in range(5):
        how: dict[str, Any] = {"without_twin_share": 0.2, "top_k": 2}
        patch, partner, index = _sample(
            made, 10, seed, positives=positives, random_share=share, **how
        )
        _, plain, same = _sample(made, 10, seed, positives=positives, **how)
        _, random, _ = _sample(made, 10, seed, positives="random", **how)
        assert torch.equal(index, same)
        assert torch.equal(patch, index)
        assert torch.equal(partner[:count], random[:count])
        # the rest, and patches without a twin, as before
        assert torch.equal(partner[count:], plain[count:])


def test_random_pairs_are_drawn_for_any_patch(made: TwinDictionary) -> None:
    """They come first in a batch, and which patches come first is random."""
    first = {int(_sample(made, 4, seed)[2][0]) for seed in range(400)}
    assert first == set(made.anchors.tolist())


@pytest.mark.parametrize("many", [1 << 16, 5])
def test_no_window_twice_while_another_is_left(
    made: TwinDictionary, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """Also where only some of the patches are put in an order."""
    monkeypatch.setattr(sampling, "MANY", many)
    window = torch.from_numpy(made.patches["window"]).long()
    available = Counter(window[made.anchors].tolist())
    for size in (1, 4, 6, 9, 20, len(made.anchors)):
        for seed in range(20):
            _, _, index = _sample(made, size, seed, distinct_windows=True)
            taken = Counter(window[index].tolist())
            assert len(index) == size
            most = max(taken.values())
            # a window comes once more than another only if that has no more patches
            assert all(taken[w] >= min(most - 1, available[w]) for w in available)
            if many > 5 or size <= len(available):
                assert len(set(index.tolist())) == size


def test_windows_of_many_patches_come_first_more_often(made: TwinDictionary) -> None:
    window = torch.from_numpy(made.patches["window"]).long()
    drawn = [_sample(made, 1, seed, distinct_windows=True)[2] for seed in range(1500)]
    found = torch.bincount(window[torch.cat(drawn)], minlength=6) / 1500
    expected = torch.bincount(window[made.anchors], minlength=6) / len(made.anchors)
    assert torch.allclose(found, expected, atol=0.05)


def test_patches_without_a_twin_are_of_other_windows_too(made: TwinDictionary) -> None:
    window = torch.from_numpy(made.patches["window"]).long()
    windows_of_others = set(window[made.without_twin].tolist())
    assert windows_of_others == {0, 1, 2}
    for seed in range(30):
        _, _, index = _sample(made, 4, seed, distinct_windows=True, without_twin_share=0.5)
        pairs, others = window[index[:2]].tolist(), window[index[2:]].tolist()
        left = windows_of_others - set(pairs)
        # both windows that are left, or the one and once more another
        assert len(set(others)) == 2
        assert len(set(others) & left) == min(2, len(left))


def test_distinct_windows_need_no_more_than_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw_apart(torch.tensor([3, 3]), 5, generator).shape == (5,)


def test_distant_twins_alone_count(made: TwinDictionary) -> None:
    random = torch.Generator().manual_seed(1)
    made.patches["size"] = 10
    for axis in ("x", "y"):
        made.patches[axis] = torch.randint(0, 60, (len(made),), generator=random).numpy()
    far = made.apart(2)
    for patch in range(len(made)):
        kept = []
        for place, twin in enumerate(made.twins[patch].tolist()):
            if twin < 0:
                continue
            across = abs(float(made.patches["x"][patch]) - float(made.patches["x"][twin]))
            down = abs(float(made.patches["y"][patch]) - float(made.patches["y"][twin]))
            if max(across, down) >= 19.5:
                kept.append((twin, float(made.mi[patch, place]), 0.0))
        kept += [(-1, 0.0, 1.0)] * (2 - len(kept))
        found = zip(far.twins[patch], far.mi[patch], far.p_value[patch], strict=True)
        assert [(int(t), float(m), float(p)) for t, m, p in found] == kept
        assert (patch in far.anchors) == (kept[0][0] >= 0) == (patch not in far.without_twin)
    assert 0 < len(far.anchors) < len(made.anchors)
    # some lost the best of two, and the second moved up
    assert ((far.twins[:, 0] == made.twins[:, 1]) & (far.twins[:, 0] >= 0)).any()
    assert torch.equal(made.apart(0).twins, made.twins)
    for positives in ("twins", "random", "random_with_twin"):
        patch, partner, index = _sample(far, 300, positives=positives)
        assert set(index.tolist()) == set(far.anchors.tolist())
        if positives == "twins":
            assert torch.equal(partner, far.twins[index, 0])
        elif positives == "random_with_twin":
            other = partner != patch
            assert set(partner[other].tolist()) <= set(far.anchors.tolist())
    again = copy.deepcopy(far)
    assert torch.equal(again.twins, far.twins)
    assert torch.equal(_sample(again, 50)[1], _sample(far, 50)[1])


def test_what_cannot_be_drawn_is_an_error(made: TwinDictionary) -> None:
    with pytest.raises(ConfigError, match="random_share: expected at least 0 and at most 1, got 2"):
        _sample(made, 4, random_share=2)
    with pytest.raises(DictionaryError, match="no patch has a twin at a min_distance of 3 patches"):
        made.apart(3)
