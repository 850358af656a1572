"""A dictionary of a million patches, each with a twin: writing, loading, sampling.

    uv run python benchmarks/dictionary_scale.py [--patches 1000000] [--folder TEMPORARY]

Random 8×8 crops at four moments in 100 videos of shots with 200 patches. It takes some gigabytes of
disk and gives them back. Reading happens in a process of its own; memory is what its resident pages
grew by since before the dictionary was opened, with and without those of mapped files.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.writing import VideoWriter, write_manifest

VIDEOS, IN_SHOT, MOMENTS, SIDE, TOP_K = 100, 200, 4, 8, 5
BATCH, BATCHES = 256, 200


def write(folder: Path, patches: int) -> None:
    """Write `patches` patches in all, each with a twin of its own shot."""
    rng = np.random.default_rng(0)
    keys = [f"video-{number:04d}" for number in range(VIDEOS)]
    frame = np.zeros((90, 160, 3), np.uint8)
    for key in keys:
        writer = VideoWriter(folder, key, f"{key}.mp4", {})
        for _ in range(patches // VIDEOS // IN_SHOT):
            twins = np.full((IN_SHOT, TOP_K), -1)
            twins[:, 0] = (np.arange(IN_SHOT) + rng.integers(1, IN_SHOT, IN_SHOT)) % IN_SHOT
            there = (twins >= 0).astype(np.float32)
            column = rng.random(IN_SHOT, np.float32)
            writer.add_window(
                {"frame": 0, "frames": 96},
                image=frame,
                patches={
                    "frame": np.zeros(IN_SHOT, np.int32),
                    **dict.fromkeys(("x", "y", "size", "entropy"), column),
                },
                pixels=rng.integers(0, 256, (IN_SHOT, MOMENTS, 3, SIDE, SIDE), np.uint8),
                twins=twins,
                mi=there * column[:, None],
                p_value=1 - there,
                moment_frames=np.zeros((IN_SHOT, MOMENTS), np.int32),
                arrays={
                    "tracks": np.zeros((96, IN_SHOT, 2), np.float32),
                    "mi": np.zeros((IN_SHOT, IN_SHOT), np.float32),
                },
            )
        writer.finish()
    write_manifest(folder, keys, {})


def read(folder: Path) -> None:
    """Load and sample; print rows of the table."""
    torch.set_num_threads(1)
    before = _resident(), _peak()
    start = time.perf_counter()
    dictionary = TwinDictionary.load(folder)
    _row("load", time.perf_counter() - start, before, f"{len(dictionary.anchors):,} pairs")
    for name, options in (
        ("mi", {}),
        ("mi, again", {}),
        ("mi, top 5, temporal", {"top_k": 5, "temporal": True}),
        ("random", {"arm": "random"}),
        ("self", {"arm": "self"}),
    ):
        generator = torch.Generator().manual_seed(0)
        start = time.perf_counter()
        for _ in range(BATCHES):
            dictionary.sample(BATCH, generator, **options)
        seconds = time.perf_counter() - start
        _row(
            f"{BATCHES} batches, {name}", seconds, before, f"{seconds / BATCHES * 1e3:.1f} ms each"
        )
    start = time.perf_counter()
    TwinDictionary.load(folder)
    _row("load again", time.perf_counter() - start, before, "")


def _row(what: str, seconds: float, before: tuple[float, float], note: str) -> None:
    own, peak = _resident() - before[0], _peak() - before[1]
    print(f"| {what} | {seconds:.2f} | {own:.0f} | {peak:.0f} | {note} |", flush=True)


def _peak() -> float:
    """The largest resident memory so far, mapped files included; MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident() -> float:
    """Resident memory now, without mapped files; MiB."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to write; the system's temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        if (free := shutil.disk_usage(name).free) < arguments.patches * 4000:
            sys.exit(
                f"{name} has {free / 1e9:.1f} GB left: too few for {arguments.patches} patches"
            )
        folder = Path(name) / "twins"
        start = time.perf_counter()
        write(folder, arguments.patches)
        seconds = time.perf_counter() - start
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e9
        print(f"Written in {seconds:.1f} s: {size:.2f} GB in {len(files):,} files.\n")
        print("| step | seconds | own memory, MiB | peak with mapped files, MiB | |")
        print("|---|---:|---:|---:|---|")
        process = multiprocessing.get_context("spawn").Process(target=read, args=(folder,))
        process.start()
        process.join()
        sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
