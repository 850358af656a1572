"""Where the time goes: seconds a stage for one video, and the speed-up of two workers.

    uv run python benchmarks/mining_time.py [VIDEO]

Without a video, a generated 720p scene of 20 seconds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.pipeline import mine_video
from solo_infoaug.mining.shot import Stopwatch
from solo_infoaug.mining.synthetic import Scene, SceneConfig
from solo_infoaug.mining.video import Video


def stages(video: Path, folder: Path) -> None:
    """Print seconds and shares of the stages of mining `video`."""
    with Video(video) as opened:
        length = opened.info.duration or 0.0
    mine_video(video, folder, "warm-00000000-00000000", "0", MineConfig())  # compiles
    watch, start = Stopwatch(), time.perf_counter()
    mine_video(video, folder, "timed-00000000-00000000", "0", MineConfig(), watch)
    total = time.perf_counter() - start
    print(f"{video.name}: {total:.2f} s for {length:.2f} s of video\n")
    print("| stage | seconds | share |\n|---|---:|---:|")
    for stage, seconds in watch.seconds.items():
        print(f"| {stage} | {seconds:.2f} | {seconds / total:.1%} |")
    rest = total - sum(watch.seconds.values())
    print(f"| rest | {rest:.2f} | {rest / total:.1%} |\n")


def speed_up(video: Path, folder: Path, copies: int = 4) -> None:
    """Print the time of `copies` videos with one worker, which may use all cores, and with two."""
    videos = []
    for number in range(copies):
        target = folder / f"{number}.mp4"
        target.write_bytes(video.read_bytes() + bytes(number + 1))  # another hash
        videos.append(target)
    seconds = {}
    for workers in (1, 2):
        out = folder / f"workers-{workers}"
        start = time.perf_counter()
        mine(videos, out, workers=workers, progress=False)
        seconds[workers] = time.perf_counter() - start
        shutil.rmtree(out)
    print(f"one worker {seconds[1]:.1f} s, two {seconds[2]:.1f} s: {seconds[1] / seconds[2]:.2f}×")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--no-workers", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = arguments.video
        if video is None:
            config = SceneConfig(frames=500, height=720, width=1280, objects=6, camera="all")
            video = Scene.make(config).write(folder / "720p.mp4")
        stages(video, folder)
        if not arguments.no_workers:
            speed_up(video, folder)


if __name__ == "__main__":
    main()
