"""Twins against the truth of generated scenes: the table in docs/mining.md.

    uv run python benchmarks/mining_truth.py [--scenes 3] [--only moving]

Scenes are written as mp4 and mined as any video; the seeds are not those that the defaults were
chosen with.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from solo_infoaug.errors import VideoError
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.synthetic import Scene, SceneConfig, Score, score

FIRST_SEED = 10
NO_GATE = {"min_motion": 0.0, "motion_over_noise": 0.0, "min_agreement": 0.0}
ROWS: list[tuple[str, dict, dict]] = [
    ("still camera, defaults", {"camera": "still"}, {}),
    ("moving camera, defaults", {"camera": "all"}, {}),
    ("moving, poles in front", {"camera": "all", "poles": 2}, {}),
    ("moving, strong compression and noise", {"camera": "all", "crf": 34, "noise": 8.0}, {}),
    ("moving, motion left in", {"camera": "all"}, {"camera": "none"}),
    ("moving, homography", {"camera": "all"}, {"camera": "homography"}),
    ("moving, no gate", {"camera": "all"}, NO_GATE),
    ("moving, no significance", {"camera": "all"}, {"fdr": 1.0}),
    ("moving, neither", {"camera": "all"}, {**NO_GATE, "fdr": 1.0}),
    ("moving, positions", {"camera": "all"}, {"representation": "position"}),
    ("moving, both", {"camera": "all"}, {"representation": "both"}),
]


def run(scene: dict, settings: dict, scenes: int) -> Score:
    """The score of `scenes` scenes together."""
    total: Score | None = None
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        made = Scene.make(SceneConfig(seed=seed, **scene))
        with tempfile.TemporaryDirectory() as folder:
            video = made.write(Path(folder) / "scene.mp4")
            try:
                twins = mine(video, Path(folder) / "d", MineConfig(**settings), progress=False)
            except VideoError as error:
                raise SystemExit(f"{scene} {settings}: {error}") from error
            found = score(made, twins)
        total = found if total is None else total + found
    assert total is not None
    return total


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
                f"| {name} | {found.purity:.1%} of {found.with_twin} "
                f"| {found.recall:.1%} of {found.objects} "
                f"| {found.false_alarms:.1%} of {found.background} | {found.chance:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
