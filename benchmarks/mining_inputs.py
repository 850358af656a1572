"""What it costs to mine from a store and from tar shards instead of from the disk.

    uv run python benchmarks/mining_inputs.py [--videos 200] [--per-shard 50]

Three generated clips are repeated under other names and with other bytes. They are mined by one
worker each way: from files, from tar shards on the disk, from an S3 server (moto, a process of its
own at the loopback address: it has no latency, and shares the cores), and from shards there. Prints
wall times, processor times (the start of the process included), the most memory of the process
while the first and the last tenth are mined, and the number of files written. Needs an otherwise
idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CLIP = {"width": 320, "height": 180, "frames": 32}
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}


def measure(out: str, count: int, sources: list[str]) -> None:
    """In a process of its own: mine, and print what it took as JSON."""
    from solo_infoaug.mining import MineConfig, mine, mine_one

    mined, most, over = 0, [0] * 10, threading.Event()
    real = mine_one.mine_video
    page = os.sysconf("SC_PAGE_SIZE")

    def counted(*args: object, **options: object) -> float:
        nonlocal mined
        seconds = real(*args, **options)  # type: ignore[arg-type]
        mined += 1
        return seconds

    def sample() -> None:
        while not over.wait(0.01):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            tenth = min(mined * 10 // count, 9)
            most[tenth] = max(most[tenth], resident)

    mine_one.mine_video = counted
    thread = threading.Thread(target=sample)
    thread.start()
    start = time.perf_counter()
    made = mine(sources, out, MineConfig(min_frames=24), progress=False)
    took, spent = time.perf_counter() - start, time.process_time()
    over.set()
    thread.join()
    files = sum(path.is_file() for path in Path(out).rglob("*"))
    found = {"seconds": took, "processor": spent, "memory": [most[0], most[9]], "files": files}
    print(json.dumps({**found, "videos": len(made.videos), "fingerprint": made.fingerprint}))


def make_clips(folder: Path, count: int) -> list[Path]:
    """Files of `count` names and contents, made of three clips."""
    from solo_infoaug.scenes.generated import Scene, SceneConfig

    bases = [
        Scene.make(SceneConfig(seed=seed, **CLIP)).write(folder / f"base{seed}.mp4")
        for seed in range(3)
    ]
    data = [base.read_bytes() for base in bases]
    clips = []
    for number in range(count):
        clip = folder / "clips" / f"{number:05d}.mp4"
        clip.parent.mkdir(exist_ok=True)
        clip.write_bytes(
            data[number % 3] + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
        )
        clips.append(clip)
    return clips


def make_shards(folder: Path, clips: list[Path], per_shard: int) -> list[Path]:
    """The same clips as WebDataset writes them."""
    from webdataset import TarWriter

    folder.mkdir()
    shards = []
    for start in range(0, len(clips), per_shard):
        shards.append(folder / f"{start // per_shard:05d}.tar")
        with TarWriter(str(shards[-1])) as tar:
            for clip in clips[start : start + per_shard]:
                tar.write({"__key__": clip.stem, "mp4": clip.read_bytes()})
    return shards


def serve(files: list[Path]) -> tuple[subprocess.Popen[bytes], str]:
    """An S3 server with the files in the bucket `bench`, under the names of their folders."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", program], **quiet)
    url = f"http://127.0.0.1:{port}"
    os.environ.update({**KEYS, "AWS_ENDPOINT_URL": url})
    for _ in range(600):
        with socket.socket() as there:
            if there.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bench")
    for file in files:
        client.upload_file(str(file), "bench", f"{file.parent.name}/{file.name}")
    return process, url


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--per-shard", type=int, default=50)
    parser.add_argument("--only", nargs="+", help="some of the ways, by their names in the table")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        out, *sources = arguments.measure
        measure(out, arguments.videos, sources)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = make_clips(folder, arguments.videos)
        shards = make_shards(folder / "shards", clips, arguments.per_shard)
        process, _ = serve([*clips, *shards])
        ways = {
            "files": [str(folder / "clips")],
            "tar shards": [str(folder / "shards")],
            "files in S3": ["s3://bench/clips/"],
            "tar shards in S3": ["s3://bench/shards/"],
        }
        size = sum(clip.stat().st_size for clip in clips)
        clip = "{width}×{height}, {frames} frames".format(**CLIP)
        print(
            f"{len(clips)} clips of {clip}, {size / 1e6:.0f} MB, {len(shards)} shards, one worker;"
        )
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
        print(
            "| from | seconds | processor seconds | MB in the first tenth | in the last | files "
            "| fingerprint |"
        )
        print("|---|---:|---:|---:|---:|---:|---|", flush=True)
        prints = set()
        try:
            for way in arguments.only or ways:
                command = [sys.executable, __file__, "--videos", str(arguments.videos), "--measure"]
                run = [*command, str(folder / f"out {way}"), *ways[way]]
                done = subprocess.run(run, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                prints.add(found["fingerprint"])
                start, end = (value / 1e6 for value in found["memory"])
                print(
                    f"| {way} | {found['seconds']:.1f} | {found['processor']:.1f} | "
                    f"{start:.0f} | {end:.0f} | {found['files']} | {found['fingerprint'][:8]} |",
                    flush=True,
                )
        finally:
            process.terminate()
            process.wait()
        print(f"\nThe dictionaries are {'the same' if len(prints) == 1 else 'NOT the same'}.")


if __name__ == "__main__":
    main()
