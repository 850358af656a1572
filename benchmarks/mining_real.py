"""Twins on real sequences with object masks, and what each part of the miner is worth there.

    uv run python benchmarks/mining_real.py FOLDER [--only NAME] [--sequences N ...]

FOLDER holds NAME.mp4 and NAME.npz for each sequence: `mask`, packed bits of which pixels belong to
the object, and `shape` (frames, height, width); DAVIS is the usual source. Each row is the defaults
but for one setting. A patch is on the object if three quarters of its square are, and a twin is
right if half of it is; purity is the share of right twins among patches on the object, share that
of right ones among all anchors. Masks are read here alone. Things that move and have no mask count
as background.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from solo_infoaug.errors import VideoError
from solo_infoaug.mining import MineConfig, mine

ROWS: list[tuple[str, dict]] = [
    ("defaults", {}),
    ("no gate on motion", {"min_motion": 0.0, "motion_over_noise": 0.0}),
    ("no likelihood ratio", {"max_error_ratio": 1.0}),
    ("no parallax", {"parallax": 0}),
    ("one pattern of parallax", {"parallax": 1}),
    ("no camera, no parallax", {"camera": "none", "parallax": 0}),
    ("affine camera", {"camera": "affine"}),
    ("five times the noise", {"motion_over_noise": 5.0}),
    ("twins as certain as others", {"max_twin_error_ratio": 1.0}),
    ("any drift", {"max_drift": 2.0}),
    ("least information at any distance", {"mi_of_distance": 0.0}),
    ("the highest MI alone", {"mi_tolerance": 0.0}),
    (
        "none of the last four",
        {
            "max_twin_error_ratio": 1.0,
            "max_drift": 2.0,
            "mi_of_distance": 0.0,
            "mi_tolerance": 0.0,
        },
    ),
    ("motion along the background's", {"max_along_background": 1.0}),
    ("no support", {"min_support": 0}),
    ("no bound on differences", {"max_difference": 4.0}),
    ("no least information", {"min_mi": 0.0}),
    ("no significance", {"fdr": 1.0}),
    ("neither of these two", {"max_difference": 4.0, "fdr": 1.0}),
    ("windows every 12 frames", {"stride": 12}),
    ("windows of 16", {"window": 16, "stride": 8, "min_frames": 12}),
    ("windows of 48", {"window": 48, "stride": 24, "min_frames": 32}),
    ("patches without overlap", {"grid_step": 1.0}),
    *((f"patches of {size}", {"patch_fraction": size}) for size in (0.03, 0.035, 0.05, 0.1)),
    *((f"flow at {size} pixels", {"track_size": size}) for size in (480, 336, 304, 288, 272, 256)),
    ("flow: medium", {"flow": "medium"}),
    ("flow: ultrafast", {"flow": "ultrafast"}),
    ("ksg1", {"estimator": "ksg1"}),
    ("colour", {"signal": "colour"}),
    ("both", {"signal": "both"}),
]


def masks_of(video: Path) -> np.ndarray:
    """bool [T, H, W]: the object in each frame of a sequence."""
    with np.load(video.with_suffix(".npz")) as stored:
        shape = tuple(stored["shape"])
        bits = np.unpackbits(stored["mask"])[: int(np.prod(shape))]
    return bits.reshape(shape).astype(bool)


def count(video: Path, settings: dict) -> Counter[str]:
    """Frames, anchors by what they lie on, and right twins of one sequence."""
    masks = masks_of(video)
    found = Counter(frames=len(masks))
    with tempfile.TemporaryDirectory() as folder:
        try:
            twins = mine(video, Path(folder) / "d", MineConfig(**settings), progress=False)
        except VideoError:
            return found
        rows, twin = twins.patches, twins.twins[:, 0].numpy()
        share = np.array([covered(masks[row["frame"]], row) for row in rows])
    for anchor in np.flatnonzero(twin >= 0):
        right = share[twin[anchor]] >= 0.5
        where = "on" if share[anchor] >= 0.75 else "off" if share[anchor] == 0 else "mixed"
        found.update(anchors=1, **{where: 1, f"{where}_right": int(right)})
    return found


def covered(mask: np.ndarray, row: np.void) -> float:
    x, y = round(float(row["x"] - row["size"] / 2)), round(float(row["y"] - row["size"] / 2))
    side = round(float(row["size"]))
    return float(mask[max(y, 0) : y + side, max(x, 0) : x + side].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    videos = sorted(arguments.folder.glob("*.mp4"))
    print("| settings | right a 100 frames | purity | object share | sequences ≥ 10 | ms a frame |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, settings in ROWS:
        if arguments.only not in name:
            continue
        start = time.process_time()
        rows = [count(video, settings) for video in videos]
        total = sum(rows, Counter())
        seconds = time.process_time() - start
        right = total["on_right"] + total["mixed_right"]
        print(
            f"| {name} | {100 * total['on_right'] / total['frames']:.0f} "
            f"| {total['on_right'] / max(total['on'], 1):.3f} "
            f"| {right / max(total['anchors'], 1):.3f} "
            f"| {sum(row['on_right'] >= 10 for row in rows)} of {len(rows)} "
            f"| {1000 * seconds / total['frames']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
