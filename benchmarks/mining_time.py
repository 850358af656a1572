"""Where the time of mining goes, and what a second worker brings.

    uv run python benchmarks/mining_time.py [VIDEO] [--copies 16] [--plans 1:1 2:1 1:all]

Without a video, a generated 720p scene of 20 seconds. Prints seconds a stage with one thread, where
nothing overlaps and they add up; the wall time of one process with all cores; and that of several
videos, one after the other and side by side. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import pstats
import shutil
import tempfile
import time
from pathlib import Path

import av
import cv2
import torch

import solo_infoaug
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.mine_one import mine_video, threads_inside
from solo_infoaug.mining.video import Video
from solo_infoaug.mining.workers import thread_limit, usable_cores
from solo_infoaug.scenes.generated import Scene, SceneConfig

# By the profiler's time of a function, what it calls included; `windows` calls `every_nth`.
STAGES = {
    "decode": "every_nth",
    "shots": "windows",
    "track": "follow",
    "background": "without_background",
    "gate": "find_candidates",
    "partners": "find_partners",
    "crop": "store",
    "write": "add_window",
}


def stages(video: Path, folder: Path) -> None:
    """Print seconds and shares of the stages of mining `video`, and the wall time on all cores."""
    with Video(video) as opened:
        length = opened.duration
        size = "{width}×{height}".format(**opened.record)
    mine_video(video, folder, "warm-00000000-00000000", "0", MineConfig())  # compiles
    profile = cProfile.Profile()
    with thread_limit(1):
        total = profile.runcall(_timed, video, folder)
    ours = Path(solo_infoaug.__file__).parent
    spent = {
        name: times[3]
        for (file, _, name), times in sorted(
            pstats.Stats(profile).stats.items(), key=lambda entry: entry[1][3]
        )
        if Path(file).is_relative_to(ours)
    }
    seconds = {stage: spent.get(name, 0.0) for stage, name in STAGES.items()}
    seconds["shots"] -= seconds["decode"]
    print(f"{length:.1f} s of {size} video, one thread: {total:.2f} s\n")
    print("| stage | seconds | share |\n|---|---:|---:|")
    for stage, spent_in in seconds.items():
        print(f"| {stage} | {spent_in:.2f} | {spent_in / total:.1%} |")
    rest = total - sum(seconds.values())
    print(f"| rest | {rest:.2f} | {rest / total:.1%} |")
    print(f"\nMutual information and the choice of twins: {seconds['partners'] / total:.1%}.")
    with thread_limit(threads_inside(None)):
        wall = min(_timed(video, folder, ahead=True) for _ in range(3))
    print(
        f"One process on {usable_cores()} cores, best of 3: {wall:.2f} s, {length / wall:.1f} "
        "times faster than the video plays.\n"
    )


def _timed(video: Path, folder: Path, ahead: bool = False) -> float:
    start = time.perf_counter()
    mine_video(video, folder, "timed-00000000-00000000", "0", MineConfig(), ahead)
    return time.perf_counter() - start


def speed_up(video: Path, folder: Path, copies: int, plans: list[str]) -> None:
    """Print the time of `copies` videos of equal length by each of `plans`, workers:threads."""
    videos = []
    for number in range(copies):
        target = folder / f"{number}.mp4"
        target.write_bytes(video.read_bytes() + bytes(number + 1))  # another hash
        videos.append(target)
    print(f"{copies} such videos, the start of the workers included:\n")
    print("| workers | threads of each | seconds | times the first |\n|---|---|---:|---:|")
    first = None
    for number, plan in enumerate(plans):
        workers, threads = plan.split(":")
        limit = None if threads == "all" else int(threads)
        out = folder / f"plan-{number}"
        start = time.perf_counter()
        mine(videos, out, workers=int(workers), threads=limit, progress=False)
        seconds = time.perf_counter() - start
        first = first or seconds
        print(f"| {workers} | {threads} | {seconds:.1f} | {first / seconds:.2f} |", flush=True)
        shutil.rmtree(out)


def machine() -> str:
    """The processor, the cores and the libraries, in one line."""
    info = Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line]
    return (
        f"{names[0]}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}; Python "
        f"{platform.python_version()}, av {av.__version__}, cv2 {cv2.__version__}, "
        f"torch {torch.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--copies", type=int, default=16, help="0 leaves the workers out")
    parser.add_argument("--plans", nargs="+", default=["1:1", "2:1", "1:all"])
    parser.add_argument("--no-stages", action="store_true")
    arguments = parser.parse_args()
    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = arguments.video
        if video is None:
            config = SceneConfig(frames=500, height=720, width=1280, objects=6, camera="all")
            video = Scene.make(config).write(folder / "720p.mp4")
        if not arguments.no_stages:
            stages(video, folder)
        if arguments.copies:
            speed_up(video, folder, arguments.copies, arguments.plans)


if __name__ == "__main__":
    main()
