"""Links from window to window on real sequences with object masks: do they stay on the object?

    uv run python benchmarks/links_real.py FOLDER

FOLDER is that of `mining_real.py`. Of each patch whose square lies on the object by three quarters,
and which is linked, the patch that continues it is right if half of it lies there. Chance is
another patch of the window that the link leads to. A patch with a twin is linked if it continues
one, or is continued by one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from mining_real import covered, masks_of

from solo_infoaug.errors import VideoError
from solo_infoaug.mining import mine


def count(video: Path) -> Counter[str]:
    """Patches with a twin, links, and where these lead; of one sequence."""
    masks, found = masks_of(video), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            twins = mine(video, Path(folder) / "d", progress=False)
        except VideoError:
            return found
        share = np.array([covered(masks[row["frame"]], row) for row in twins.patches])
    later = twins.next.numpy()
    linked = (later >= 0) | np.isin(np.arange(len(later)), later[later >= 0])
    anchors = twins.anchors.numpy()
    found.update(anchors=len(anchors), linked=int(linked[anchors].sum()))
    window = twins.patches["window"]
    for patch in np.flatnonzero(later >= 0):
        on = share[patch] >= 0.75
        others = share[(window == window[later[patch]])] >= 0.5
        found.update(links=1, on=int(on), right=int(on and share[later[patch]] >= 0.5))
        found["chance"] += float(others.mean()) if on else 0.0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    total = Counter[str]()
    print("| sequence | patches with a twin | linked | links | from the object | stay | chance |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for video in sorted(parser.parse_args().folder.glob("*.mp4")):
        found = count(video)
        total.update(found)
        _row(video.stem, found)
    _row("all", total)


def _row(name: str, found: Counter[str]) -> None:
    on = max(found["on"], 1)
    print(
        f"| {name} | {found['anchors']} | {found['linked']} | {found['links']} | {found['on']} "
        f"| {found['right'] / on:.3f} | {found['chance'] / on:.3f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
