"""`mine`: from videos to a twin dictionary."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from solo_infoaug import __version__
from solo_infoaug._checks import require
from solo_infoaug._files import printable
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.format import INDEX, MANIFEST, PACKS, PARTS
from solo_infoaug.dictionary.packs import Finished, Packer, pack_waiting, packs_in
from solo_infoaug.dictionary.writing import VideoWriter, check_target, only_writer, write_manifest
from solo_infoaug.errors import DictionaryError, VideoError
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.frame import Frame
from solo_infoaug.mining.frame_folder import FrameFolder
from solo_infoaug.mining.linking import Links
from solo_infoaug.mining.registry import TRACKERS
from solo_infoaug.mining.repeats import without_repeats
from solo_infoaug.mining.trackers import make_tracker
from solo_infoaug.mining.video import (
    Video,
    open_video,
    search,
    video_digest,
    video_name,
    video_stem,
)
from solo_infoaug.mining.window import follow, mine_window
from solo_infoaug.mining.windows import KEYFRAMES, Window, windows
from solo_infoaug.mining.workers import Job, end_if_unguarded, run_jobs, thread_limit, usable_cores

T = TypeVar("T")

# Windows that may wait between two stages of mining: so many, in so many bytes.
_MOST_AHEAD, _MEMORY_AHEAD = 4, 2**27

# Names of videos in `parts`, finished or not, less their ending; and of unfinished packs.
_FRESH_PACK = re.compile(r"\.[0-9]+\.[0-9]+")
_KEY = re.compile(r"\.?[A-Za-z0-9_\-]+-[0-9a-f]{8}-[0-9a-f]{8}(\.[0-9]+)?")


def mine(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    config: MineConfig | None = None,
    *,
    exclude: str | Iterable[str] = (),
    workers: int | None = 1,
    threads: int | None = None,
    ray: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> TwinDictionary:
    """Mine twin patches from videos.

    Each video is cut into shots, and these into windows. A grid of patches in the middle frame of
    each window is tracked to both ends, the background's motion is removed, patches that do nothing
    of their own are left out, the mutual information of all pairs of the others is estimated, and
    the significant partner with the highest is the twin. A video that cannot be read does not stop
    the others, and neither does one in which nothing has a twin: which these are, and why, is in
    the dictionary's `info["failed"]` and `info["twinless"]`.

    Interrupted, it goes on where it was when called again: finished videos are not mined twice.
    The same videos and settings give the same dictionary, in any order, with any number of workers.

    Args:
        videos: a video file, a folder of videos, or several of either.
        out: the folder to write the dictionary to.
        config: settings; the defaults if None.
        exclude: patterns such as "*.avi", "raw" or "raw/*" of files and folders to leave out,
            compared with their names and with their paths inside the folder that is searched.
        workers: processes that mine videos side by side; None for as many as there are cores, or
            videos. With more than one, a script needs the usual `if __name__ == "__main__":`.
        threads: how many threads each worker uses; None for its share of the cores (on Ray, one).
        ray: address of a Ray cluster to mine on instead ("auto" for the running one, "local" to
            start one here); videos and `out` must be on storage that all its machines share.
        overwrite: remove the dictionary in `out` first, whatever it is.
        progress: show progress on standard error.

    Raises:
        VideoError: no video has a twin; the message has the reason of each.
        DictionaryError: `out` holds a dictionary of other videos or settings.
        OutputError: `out` cannot be written.
        ConfigError: `workers` or `threads` is no positive number, or Ray, a tracker or a depth
            model is missing.
    """
    end_if_unguarded()
    config = config or MineConfig()
    for name, value in (("workers", workers), ("threads", threads)):
        require(value is None or value >= 1, name, "at least 1", value)
    sources = [videos] if isinstance(videos, (str, os.PathLike)) else list(videos)
    folder = Path(out).absolute()

    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    paths, left_out = search(sources, patterns)
    for what in left_out:
        warnings.warn(printable(what), stacklevel=2)
    plan = _plan(paths, config)
    if not overwrite and _is_finished(folder, plan, config):
        return TwinDictionary.load(folder)
    check_target(folder, "out")
    with only_writer(folder):
        _check_target(folder, plan.jobs, config, overwrite)
        finished = Finished(folder)
        failed = plan.failed | _mine_jobs(
            plan.jobs, finished, config, workers, threads, ray, progress
        )
        mined = [job.key for job in plan.jobs if finished.is_mined(job.key)]
        twinless = _twinless(finished, plan.jobs)
        if not mined:
            raise VideoError("\n".join([*failed.values(), *twinless.values()]))
        kept = [job.key for job in plan.jobs if str(job.path) not in failed]
        _remove_leftovers(finished, kept)
        pack_waiting(finished, kept)
        info = {
            "config": config.to_json(),
            "failed": _printable(failed),
            "twinless": _printable(twinless),
            **({"exclude": patterns} if patterns else {}),
            "left_out": [printable(what) for what in left_out],
            "duplicates": _printable(plan.duplicates),
        }
        write_manifest(folder, mined, info)
    return TwinDictionary.load(folder)


def _mine_jobs(
    jobs: list[Job],
    finished: Finished,
    config: MineConfig,
    workers: int | None,
    threads: int | None,
    ray: str | None,
    progress: bool,
) -> dict[str, str]:
    """Mine what is not mined yet; returns why some failed, by path.

    Videos are packed in their order, whichever is finished first: the packs of an interrupted run
    that goes on are those of one that was never interrupted.
    """
    todo = [
        job
        for job in jobs
        if not finished.is_mined(job.key) and _why_twinless(finished, job) is None
    ]
    workers, threads = _shares(workers, threads, len(todo), ray is not None)
    work = functools.partial(_mine_job, finished.out, config, threads)
    packer, unfinished = Packer(finished), {job.key for job in todo}
    waiting = deque(job.key for job in jobs)
    gpu = TRACKERS[config.tracker].neural and config.device != "cpu"
    failed: dict[str, str] = {}
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("mining", total=len(jobs), completed=len(jobs) - len(todo))
        for job, why in run_jobs(todo, work, workers, ray, gpu, threads or 1):
            if why is not None:
                failed[str(job.path)] = why
            unfinished.discard(job.key)
            while waiting and waiting[0] not in unfinished:
                packer.add(waiting.popleft())
            name = escape(printable(video_name(job.path)))  # file names are no markup
            bar.update(task, advance=1, description=f"mined {name}")
    return failed


def mine_video(
    path: Path, out: Path, key: str, digest: str, config: MineConfig, ahead: bool = False
) -> None:
    """Mine one video and write its part of the dictionary.

    With `ahead`, one thread decodes and one tracks the windows to come while this one is mined.

    Raises:
        VideoError: it cannot be decoded.
        ConfigError: the tracker or the depth model is missing.
    """
    with open_video(path, config.fps) as video:
        tracker = make_tracker(path, config)
        source = {
            "file": printable(path.name),
            "sha256": digest,
            "tracker": tracker.name,
            "tracker_licence": tracker.licence,
            "depth": config.depth,
            "mined_with": __version__,
        }
        writer = VideoWriter(out, key, video.name, source)
        counts: dict[str, Any] = {"frames": 0, "repeated_frames": 0, "windows_mined": 0}
        reasons: Counter[str] = Counter()
        pictures: Counter[str] = Counter()
        overlays = 0
        links = Links(config.frame_step)
        colour = tracker.colour or bool(config.depth) or config.signal != "motion"
        count = _windows_ahead(video.record) if ahead else 0
        try:
            with (
                _ahead(_windows(video, config, colour, counts), count) as found,
                _ahead(((one, follow(one, tracker, config)) for one in found), count) as tracked,
            ):
                for window, tracks in tracked:
                    counts["windows_mined"] += 1
                    if window.within is not None:
                        pictures[str(window.within)] += 1
                    overlays += tracks is not None and tracks.overlay is not None
                    mined = mine_window(window, tracks, config)
                    reasons.update(mined.reasons)
                    if mined.stored is not None:
                        writer.add_window(**vars(mined.stored))
                        links.add(mined.stored)
            noted = {
                **counts,
                "reasons": dict(reasons),
                "damaged_packets": video.damaged,
                "frames_left_out": video.left_out,
            }
            record = {**video.record, **_left_out(pictures, overlays)}
            if why := _why_nothing(path, video, counts, reasons, config):
                writer.finish_without_twins(why, record, noted)
            else:
                writer.finish(record, noted, links.following)
        finally:
            writer.discard()


def _left_out(pictures: Counter[str], overlays: int) -> dict[str, Any]:
    """For the record: in how many windows what was shown around or over the scene."""
    found: dict[str, Any] = {"active_pictures": dict(sorted(pictures.items()))} if pictures else {}
    return {**found, "windows_with_overlay": overlays} if overlays else found


def _shares(
    workers: int | None, threads: int | None, videos: int, ray: bool
) -> tuple[int, int | None]:
    """How many workers, and how many threads each has; None for what the process is set to."""
    if workers is None:
        workers = max(1, min(usable_cores(), videos))
    if threads is None and ray:
        threads = 1
    elif threads is None and workers > 1:
        threads = max(1, usable_cores() // workers)
    return workers, threads


def threads_inside(threads: int | None) -> int:
    """How many threads OpenCV and NumPy have beside the two that decode and track ahead.

    With more of them than cores are left, they only wait.
    """
    return max(1, (threads or usable_cores()) - 2)


def _windows_ahead(record: dict[str, Any]) -> int:
    """How many windows may wait between two stages, by the memory that their full frames take.

    Some have ten times as many moving patches as others: with one, a core waits for the other.
    """
    window = KEYFRAMES * 3 * record["height"] * record["width"]
    return max(1, min(_MOST_AHEAD, _MEMORY_AHEAD // max(window, 1)))


def _mine_job(out: Path, config: MineConfig, threads: int | None, job: Job) -> str | None:
    """What a worker does: mine one video; returns why it failed, or None."""
    ahead = threads != 1
    try:
        with thread_limit(threads_inside(threads) if ahead else threads):
            mine_video(job.path, out, job.key, job.digest, config, ahead=ahead)
    except VideoError as error:
        return str(error)
    except (cv2.error, MemoryError) as error:
        return f"{job.path}: {type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def _ahead(items: Generator[T], count: int) -> Iterator[Iterator[T]]:
    """The same items; a thread makes up to `count` while the caller is busy with another."""
    if not count:
        with contextlib.closing(items):
            yield items
        return
    end = object()

    def ahead(thread: ThreadPoolExecutor) -> Iterator[T]:
        coming = deque(thread.submit(next, items, end) for _ in range(count))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]  # `end` is none of them

    # Closed after the thread has ended: a generator that runs cannot be
    with contextlib.closing(items), ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        yield ahead(thread)


def _windows(
    video: Video | FrameFolder, config: MineConfig, colour: bool, counts: dict[str, int]
) -> Generator[Window]:
    def counted() -> Iterator[Frame]:
        stretch = config.start_fraction, config.stop_fraction
        for frame in video.frames(*stretch, config.frame_step):
            counts["frames"] += 1
            yield frame

    yield from windows(without_repeats(counted(), counts), config, colour)


def _why_nothing(
    path: Path,
    video: Video | FrameFolder,
    counts: dict[str, int],
    reasons: Counter[str],
    config: MineConfig,
) -> str:
    """Why no patch of a video has a twin; empty if one has.

    Raises:
        VideoError: because it could not be read.
    """
    damage = ""
    if video.damaged:
        damage = (
            f"; {video.left_out} frames were left out: {video.damaged} damaged packets or files"
        )
    unreadable = counts["windows_mined"] == 0 and video.left_out > 0
    if counts["frames"] == 0:
        unreadable = True
        why = "no frame is whole" if video.left_out else "no frame could be decoded"
    elif counts["windows_mined"] == 0:
        shortest, total = config.min_frames, counts["frames"]
        why = f"no shot has at least min_frames={shortest} frames ({total} frames in all)"
    elif reasons.total() == reasons["lost"]:
        why = "no two patches could be tracked through a window"
    elif not reasons["twin"]:
        most = ", ".join(f"{name}: {count}" for name, count in reasons.most_common(3) if count)
        why = f"no patch found a twin: nothing moves, or nothing moves together ({most})"
    else:
        return ""
    if unreadable:
        raise VideoError(f"{path}: {why}{damage}")
    return f"{why}{damage}"


@dataclass(frozen=True)
class _Plan:
    """What to mine, in an order that depends on the videos alone.

    `failed` is why a path cannot be read; `duplicates` are paths with the content of another.
    """

    jobs: list[Job]
    failed: dict[str, str]
    duplicates: dict[str, str]


def _plan(paths: list[Path], config: MineConfig) -> _Plan:
    jobs: dict[str, Job] = {}
    failed: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (video_name(path), str(path))):
        try:
            digest = video_digest(path)
        except VideoError as error:
            failed[str(path)] = str(error)
            continue
        if digest in jobs:
            duplicates[str(path)] = str(jobs[digest].path)
            continue
        key = f"{_plain(video_stem(path))}-{digest[:8]}-{config.digest[:8]}"
        jobs[digest] = Job(path, key, digest)
    ordered = sorted(jobs.values(), key=lambda job: (video_name(job.path), job.digest))
    return _Plan(ordered, failed, duplicates)


def _printable(texts: dict[str, str]) -> dict[str, str]:
    return {printable(key): printable(text) for key, text in sorted(texts.items())}


def _plain(name: str) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
    return plain.strip("-_")[:60] or "video"


def _why_twinless(finished: Finished, job: Job) -> str | None:
    """Why a video that this version has mined has no twin; None if it has, or is to be mined."""
    record = finished.twinless(job.key)
    source = None if record is None else record.get("source")
    # another version may find some
    if record is None or not isinstance(source, dict) or source.get("mined_with") != __version__:
        return None
    return str(record.get("why"))


def _twinless(finished: Finished, jobs: list[Job]) -> dict[str, str]:
    """Why the videos that have no twin have none, by path."""
    found = ((job, _why_twinless(finished, job)) for job in jobs)
    return {str(job.path): f"{job.path}: {why}" for job, why in found if why is not None}


def _is_finished(folder: Path, plan: _Plan, config: MineConfig) -> bool:
    """Whether nothing is left to do, so that a folder is enough that can only be read."""
    if plan.failed or not (folder / MANIFEST).is_file():
        return False
    there, finished = TwinDictionary.load(folder).info, Finished(folder)
    mined = [job for job in plan.jobs if finished.is_mined(job.key)]
    twinless = _twinless(finished, plan.jobs)
    return bool(
        there.get("config") == config.to_json()
        and there["videos"] == [job.key for job in mined]
        and (there.get("twinless") or {}) == _printable(twinless)
        and len(mined) + len(twinless) == len(plan.jobs)
    )


def _check_target(folder: Path, jobs: list[Job], config: MineConfig, overwrite: bool) -> None:
    if overwrite:
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        for pack in packs_in(folder):  # they may be damaged
            pack.unlink()
        _remove_leftovers(Finished(folder), [])
    if not (folder / MANIFEST).is_file():
        return
    there = TwinDictionary.load(folder)
    keys = {job.key for job in jobs}
    if there.info.get("config") != config.to_json():
        what = "other settings"
    elif not set(there.info["videos"]) <= keys:
        what = "other videos, or of some that are excluded now"
    else:
        return
    raise DictionaryError(
        f"{folder} holds a dictionary of {what}; choose another folder, or give --overwrite"
    )


def _remove_leftovers(finished: Finished, keys: list[str]) -> None:
    """Remove what interrupted runs and runs with other settings left; nothing that is not ours."""
    wanted = set(keys)
    for folder, ours in ((PARTS, _KEY), (PACKS, _FRESH_PACK)):
        place = finished.out / folder
        for entry in place.iterdir() if place.is_dir() else ():
            name = entry.name.removesuffix(".zip")
            if name in wanted or not ours.fullmatch(name):
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    finished.forget(wanted.__contains__)
