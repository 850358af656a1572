from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from solo_infoaug.errors import ConfigError
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.synthetic import Scene, SceneConfig, score

TINY = SceneConfig(frames=8, height=120, width=200, objects=2, articulated=1, noise=0.0)


def test_the_seed_decides() -> None:
    one, two = Scene.make(TINY), Scene.make(TINY)
    other = Scene.make(SceneConfig(**{**vars(TINY), "seed": 1}))
    for a, b, c in zip(one.frames(), two.frames(), other.frames(), strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


@pytest.mark.parametrize("camera", ["still", "all"])
def test_pixels_go_where_the_paths_say(camera: str) -> None:
    scene = Scene.make(SceneConfig(**{**vars(TINY), "camera": camera}))
    frames = list(scene.frames())
    rng = np.random.default_rng(0)
    points = rng.uniform([5, 5], [195, 115], (300, 2)).round()
    paths, seen = scene.paths(points)
    assert np.allclose(paths[0], points)
    first = frames[0][points[:, 1].astype(int), points[:, 0].astype(int)].astype(float)
    x, y = paths[7][:, 0].round().astype(int), paths[7][:, 1].round().astype(int)
    good = seen[7] & (x > 0) & (y > 0) & (x < 199) & (y < 119)
    last = frames[7][y[good], x[good]].astype(float)
    assert good.sum() > 200
    shuffled = np.abs(last[rng.permutation(len(last))] - first[good]).mean()
    assert np.abs(last - first[good]).mean() < 0.5 * shuffled


def test_objects_own_pixels_and_move_and_the_background_rests() -> None:
    scene = Scene.make(TINY)
    owners = scene.owners(0)
    assert set(np.unique(owners)) == {0, 1, 2}
    for owner, moves in ((0, False), (1, True), (2, True)):
        y, x = np.nonzero(owners == owner)
        paths, _ = scene.paths(np.stack([x, y], axis=1)[::50].astype(float))
        assert (np.abs(paths - paths[:1]).max() > 0.5) == moves


def test_a_pole_hides_what_is_behind_it() -> None:
    scene = Scene.make(SceneConfig(**{**vars(TINY), "poles": 1}))
    owners = scene.owners(0)
    assert (owners[:, 100] == -1).all()
    assert (owners == -1).mean() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera": "drone"}, "camera must be one of"),
        ({"frames": 0}, "at least 1 frame"),
        ({"articulated": 9}, r"articulated must be in \[0, objects=4\]"),
    ],
)
def test_errors(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SceneConfig(**changes)


@pytest.mark.slow
@pytest.mark.parametrize("camera", ["still", "all"])
def test_twins_of_a_scene_lie_on_their_own_object(tmp_path: Path, camera: str) -> None:
    """The defaults, on a scene that was not used to choose them."""
    scene = Scene.make(SceneConfig(camera=camera, seed=100))
    dictionary = mine(scene.write(tmp_path / "scene.mp4"), tmp_path / "twins", progress=False)
    found = score(scene, dictionary)
    assert found.objects >= 10
    assert found.background >= 60
    assert found.purity >= 0.9
    assert found.recall >= 0.8
    assert found.false_alarms <= 0.05
    assert found.chance < 0.1
    assert (dictionary.shots[0].record["camera"]["removed"]) is True


@pytest.mark.slow
def test_a_moving_camera_needs_its_motion_removed(tmp_path: Path) -> None:
    scene = Scene.make(SceneConfig(camera="shake", seed=100))
    video = scene.write(tmp_path / "scene.mp4")
    left_in = mine(video, tmp_path / "twins", MineConfig(camera="none"), progress=False)
    assert score(scene, left_in).false_alarms > 0.4


def test_score_counts(tmp_path: Path) -> None:
    """Twins that are set by hand: all right, then all on the background."""
    import torch

    from solo_infoaug.dictionary import TwinDictionary

    scene = Scene.make(SceneConfig(frames=40, height=240, width=320, objects=2, articulated=0))
    from solo_infoaug.mining.synthetic import _ownership
    from solo_infoaug.mining.tracking import grid

    size = 24
    centres = grid(240, 320, size)
    owner, share, clean = _ownership(scene, centres, size)
    count = len(centres)
    for right in (True, False):
        twins = torch.full((count, 1), -1)
        for index in np.flatnonzero((owner > 0) & (share >= 0.75)):
            same = (owner == owner[index]) if right else (owner == 0)
            same[index] = False
            twins[index, 0] = int(np.flatnonzero(same)[0])
        made = TwinDictionary.create(
            tmp_path / str(right),
            torch.zeros(count, 1, 3, 8, 8, dtype=torch.uint8),
            twins,
            torch.ones(count, 1),
        )
        made.patches["x"], made.patches["y"], made.patches["size"] = *centres.T, size
        found = score(scene, made)
        assert found.objects > 5
        assert found.recall == 1.0
        assert found.purity == float(right)
        assert found.background == int(((owner == 0) & clean).sum())
        assert found.false_alarms == 0.0
