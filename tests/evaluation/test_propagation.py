"""Label propagation: against loops, against closed forms, and on features that make it trivial."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation.clips import find_clips
from solo_infoaug.evaluation.maps import MapOf, colour_map
from solo_infoaug.evaluation.propagation import (
    Propagation,
    _near,
    boundary_accuracy,
    hand_on,
    propagate,
    region_similarity,
    score,
)
from solo_infoaug.evaluation.segmentation import _with_an_object, evaluate_segmentation
from solo_infoaug.training import pretrain


def test_one_frame_by_loops() -> None:
    """Every place, every context frame, every place near it, in double precision."""
    random = torch.Generator().manual_seed(0)
    height, width, how = 5, 6, Propagation(k=4, frames=2, radius=2, temperature=0.2)
    frames = [
        F.normalize(torch.randn(3, height, width, generator=random).double(), dim=0)
        for _ in range(4)
    ]
    labels = [torch.rand(2, height, width, generator=random).double() for _ in range(3)]
    context = list(zip(frames[:3], labels, strict=True))
    near = _near(height, width, how.radius, torch.device("cpu"))
    found = hand_on(frames[3], context, near, how)
    for y in range(height):
        for x in range(width):
            known = []
            for features, soft in context:
                for v in range(max(0, y - 2), min(height, y + 3)):
                    for u in range(max(0, x - 2), min(width, x + 3)):
                        cosine = sum(
                            float(a) * float(b)
                            for a, b in zip(frames[3][:, y, x], features[:, v, u], strict=True)
                        )
                        known.append((cosine, soft[:, v, u].tolist()))
            best = sorted(known, reverse=True)[: how.k]
            weights = [math.exp(cosine / how.temperature) for cosine, _ in best]
            for label in range(2):
                votes = sum(w * soft[label] for w, (_, soft) in zip(weights, best, strict=True))
                assert float(found[label, y, x]) == pytest.approx(votes / sum(weights), abs=1e-9)


def _moving() -> list[np.ndarray]:
    """Ids 0, 4 and 9 that move by a place of eight pixels a frame."""
    masks = []
    for t in range(5):
        mask = np.zeros((64, 96), np.uint8)
        mask[8:32, 8 + 8 * t : 32 + 8 * t], mask[40:56, 64 - 8 * t : 88 - 8 * t] = 4, 9
        masks.append(mask)
    return masks


def test_features_that_know_the_objects_are_perfect() -> None:
    masks = _moving()

    def features(frame: Tensor) -> Tensor:
        ids = frame[0, ::8, ::8]
        return torch.stack([ids == number for number in (0, 4, 9)]).float()

    frames = [np.repeat(mask[..., None], 3, 2) for mask in masks]
    found = propagate(frames, masks[0], features, Propagation())
    # resized bilinearly from places of 8 pixels, each of the four corners loses the 6 pixels with
    # (1/2 + a)(1/2 + b) < 1/2, where a and b are 1/16, 3/16, 5/16 or 7/16
    scores = score(found, masks)
    for number, area in ((4, 24 * 24), (9, 16 * 24)):
        assert scores[number]["j"] == pytest.approx(100 * (1 - 24 / area))
    small = [mask[::8, ::8] for mask in masks]
    whole = propagate(
        [np.repeat(mask[..., None], 3, 2) for mask in small],
        small[0],
        lambda frame: torch.stack([frame[0] == number for number in (0, 4, 9)]).float(),
        Propagation(),
    )
    assert score(whole, small) == {4: {"j": 100, "f": 100}, 9: {"j": 100, "f": 100}}


def test_what_is_out_of_reach_is_not_taken() -> None:
    """With no reach, and features that tell nothing, every place keeps its label."""
    first = _moving()[0][::8, ::8]
    frames = [np.zeros((*first.shape, 3), np.uint8)] * 3
    flat = propagate(frames, first, lambda x: torch.ones(2, *x.shape[1:]), Propagation(radius=0))
    assert all(np.array_equal(mask, first) for mask in flat)


def _square(x: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((100, 100), bool)
    mask[40 : 40 + side, x : x + side] = True
    return mask


def test_region_similarity_of_squares() -> None:
    assert region_similarity(_square(10), _square(10)) == 1
    assert region_similarity(_square(10), _square(20)) == pytest.approx(10 / 30)
    assert region_similarity(_square(10), _square(60)) == 0
    empty = np.zeros((100, 100), bool)
    assert region_similarity(empty, empty) == 1
    assert region_similarity(_square(10), empty) == 0


def test_boundary_accuracy_of_squares() -> None:
    """⌈0.008 · diagonal⌉ is 2 pixels here."""
    empty = np.zeros((100, 100), bool)
    assert boundary_accuracy(_square(10), _square(10)) == 1
    assert boundary_accuracy(_square(10), _square(12)) == 1  # within the tolerance
    assert boundary_accuracy(_square(10), _square(60)) == 0
    assert (boundary_accuracy(empty, empty), boundary_accuracy(_square(10), empty)) == (1, 0)
    # half planes with parallel edges of 100 pixels, three apart, and a third edge that is right
    one, two = empty.copy(), empty.copy()
    one[:, 50:], two[:, 53:] = True, True
    assert boundary_accuracy(one, two) == 0
    assert boundary_accuracy(one, two, tolerance=3 / 142) == 1
    both = one.copy()
    both[:, 80:] = False
    # half of its boundary is right, and all of the other is found: 2 · ½ / (1 + ½)
    assert boundary_accuracy(both, one) == pytest.approx(2 / 3)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """DAVIS 2017's layout: two videos of two objects in colours of their own."""
    colours = np.zeros((10, 3), np.uint8)
    colours[[0, 4, 9]] = [20, 120, 20], [230, 20, 20], [20, 20, 240]
    for name in ("one", "two"):
        for t, mask in enumerate(_moving()):
            image = colours[mask]
            for kind, pixels, ending in (
                ("JPEGImages", image, "jpg"),
                ("Annotations", mask, "png"),
            ):
                file = tmp_path / kind / "480p" / name / f"{t:05}.{ending}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file, quality=95)
    return tmp_path


@pytest.mark.parametrize("backbone", ["small_resnet", "resnet18", "vit_tiny"])
def test_a_checkpoint_is_evaluated(
    host: Any, make_cfg: Callable[..., Any], videos: Path, backbone: str
) -> None:
    cfg = make_cfg("simclr", None, max_epochs=1)
    cfg.backbone = {"name": backbone}
    if backbone == "vit_tiny":
        cfg.backbone.kwargs = {"img_size": 16, "patch_size": 8}
    checkpoint = pretrain(cfg).checkpoint
    assert checkpoint is not None
    found = evaluate_segmentation(checkpoint, videos, size=64, stride=8)
    assert set(found) == {"ours", "untrained network", "mean colour"}
    assert found["mean colour"]["j"] > 90
    for values in found.values():
        assert values["jf"] == pytest.approx((values["j"] + values["f"]) / 2)
        assert 0 <= values["j"] <= 100


def test_videos_without_an_object_in_the_first_mask_are_left_out(videos: Path) -> None:
    """Their J and F would be NaN, and so would the means over all videos."""
    clips = find_clips(videos, 1)
    for name in ("one", "two"):
        first = videos / "Annotations" / "480p" / name / "00000.png"
        Image.fromarray(np.zeros_like(np.asarray(Image.open(first)))).save(first)
        if name == "one":
            with pytest.warns(UserWarning, match="one: left out"):
                assert [clip.name for clip in _with_an_object(clips)] == ["two"]
    with pytest.raises(ConfigError, match="--path: expected a video whose first mask"):
        _with_an_object(clips)


def test_packed_ids_are_read(tmp_path: Path) -> None:
    masks = np.stack(_moving())
    (tmp_path / "a.mp4").touch()
    np.savez(tmp_path / "a.npz", ids=masks)
    (clip,) = find_clips(tmp_path, 1, "--path")
    assert np.array_equal(clip.read_masks(), masks)
    with pytest.raises(ConfigError, match=r"--path: expected a folder with one video or more"):
        find_clips(tmp_path / "nothing", 1, "--path")


def test_a_backbone_without_a_map_is_named() -> None:
    from types import SimpleNamespace

    other: Any = SimpleNamespace(module=torch.nn.Linear(3, 3), name="convnext_tiny")
    with pytest.raises(ConfigError, match=r"expected a ResNet.*got convnext_tiny"):
        MapOf(other, 64)
    assert colour_map(torch.zeros(3, 64, 96, dtype=torch.uint8), 64).shape == (4, 8, 12)
