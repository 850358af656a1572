"""Twins against the truth of generated scenes: the table in docs/mining-measurements.md.

    uv run python benchmarks/mining_truth.py [--scenes 3] [--only moving]

Scenes are written as mp4 and mined as any video. The page says which defaults were chosen with
which seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from solo_infoaug.errors import VideoError
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.scenes.generated import Scene, SceneConfig
from solo_infoaug.scenes.score import Score, score

FIRST_SEED = 10
Options = dict[str, Any]

# Scenes
MOVING: Options = {"camera": "all"}
REST: Options = {"objects": 0, "articulated": 0}
DEEP: Options = {"depth": 4.0, "boxes": 6}
DEEPER: Options = {"depth": 8.0, "boxes": 8, "travel": 3.3}
ALIKE: Options = {"drift": 1.5, "speed": 0.75}
TOUCHING: Options = {"touching": True, "articulated": 0}
LIGHT: Options = {"speed": 0.0, "light": 0.02, "exposure": 0.02}

# Settings
NO_GATE: Options = {
    "min_motion": 0.0,
    "motion_over_noise": 0.0,
    "max_error_ratio": 1.0,
    "max_twin_error_ratio": 1.0,
    "max_along_background": 1.0,
    "min_support": 0,
}
NO_SIGNIFICANCE: Options = {"fdr": 1.0}

ROWS: list[tuple[str, Options, Options]] = [
    ("still camera, defaults", {"camera": "still"}, {}),
    ("moving camera, defaults", MOVING, {}),
    ("moving, poles in front", {**MOVING, "poles": 2}, {}),
    ("moving, strong compression and noise", {**MOVING, "crf": 34, "noise": 8.0}, {}),
    ("moving, motion left in", MOVING, {"camera": "none", "parallax": 0}),
    ("moving, parallax left in", MOVING, {"parallax": 0}),
    ("moving, affine", MOVING, {"camera": "affine"}),
    ("moving, no gate", MOVING, NO_GATE),
    ("moving, no significance", MOVING, NO_SIGNIFICANCE),
    ("moving, neither", MOVING, {**NO_GATE, **NO_SIGNIFICANCE}),
    ("moving, positions", MOVING, {"representation": "position"}),
    ("moving, both", MOVING, {"representation": "both"}),
    ("depth, camera to the side, all rests", {"camera": "sideways", **DEEP, **REST}, {}),
    ("depth, camera forward, all rests", {"camera": "forward", **DEEP, **REST}, {}),
    ("depth, camera walks, all rests", {"camera": "walk", **DEEP, **REST}, {}),
    (
        "depth, camera walks, all rests, parallax left in",
        {"camera": "walk", **DEEP, **REST},
        {"parallax": 0},
    ),
    ("more depth, camera walks faster, all rests", {"camera": "walk", **DEEPER, **REST}, {}),
    ("depth, camera walks, objects move", {"camera": "walk", **DEEP}, {}),
    ("objects alike", ALIKE, {}),
    ("objects that touch", TOUCHING, {}),
    ("objects alike that touch", {**ALIKE, **TOUCHING}, {}),
    ("objects alike that touch, moving camera", {**ALIKE, **TOUCHING, **MOVING}, {}),
    ("light, by motion", LIGHT, {}),
    ("light, by colour", LIGHT, {"signal": "colour"}),
    ("light, moving camera, by colour", {**LIGHT, **MOVING}, {"signal": "colour"}),
    ("light and motion, by both", {**LIGHT, "speed": 1.5}, {"signal": "both"}),
]


def run(scene: Options, settings: Options, scenes: int) -> Score:
    """The score of `scenes` scenes together."""
    total: Score | None = None
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        made, config = Scene.make(SceneConfig(seed=seed, **scene)), MineConfig(**settings)
        with tempfile.TemporaryDirectory() as folder:
            video = made.write(Path(folder) / "scene.mp4")
            try:
                found = score(made, mine(video, Path(folder) / "d", config, progress=False), config)
            except VideoError as error:
                if "no patch found a twin" not in str(error):
                    raise SystemExit(f"{scene} {settings}: {error}") from error
                found = score(made, None, config)
        total = found if total is None else total + found
    assert total is not None
    return total


def _share(part: float, whole: int) -> str:
    return f"{part:.1%} of {whole}" if whole else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    print("| scene, settings | twin on own object | have a twin | background with twin | chance |")
    print("|---|---:|---:|---:|---:|")
    for name, scene, settings in ROWS:
        if arguments.only in name:
            found = run(scene, settings, arguments.scenes)
            print(
                f"| {name} | {_share(found.purity, found.with_twin)} "
                f"| {_share(found.recall, found.objects)} "
                f"| {_share(found.false_alarms, found.background)} "
                f"| {f'{found.chance:.1%}' if found.with_twin else '–'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
