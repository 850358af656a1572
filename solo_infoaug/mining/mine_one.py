"""A worker's job: mine one video, or the videos of one shard."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import cv2

from solo_infoaug import __version__
from solo_infoaug._files import printable
from solo_infoaug.dictionary.packs import Finished
from solo_infoaug.dictionary.writing import VideoWriter
from solo_infoaug.errors import VideoError
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.content import Content, remote_content
from solo_infoaug.mining.frame import Frame
from solo_infoaug.mining.frame_folder import FrameFolder
from solo_infoaug.mining.ledger import Outcome, Result, identity, note
from solo_infoaug.mining.linking import Links
from solo_infoaug.mining.mine_window import follow, mine_window
from solo_infoaug.mining.plan import Part, is_settled, part_key
from solo_infoaug.mining.repeats import without_repeats
from solo_infoaug.mining.shards import Member, Passed, Shard, content, members, opened
from solo_infoaug.mining.stores import StoreError
from solo_infoaug.mining.trackers import Tracker, make_tracker
from solo_infoaug.mining.video import Video, open_video, video_digest, video_stem
from solo_infoaug.mining.windows import KEYFRAMES, Window, windows
from solo_infoaug.mining.workers import Job, thread_limit, usable_cores

T = TypeVar("T")

# How many windows may wait between two stages of mining, and the bytes that they may take.
_MOST_AHEAD, _MEMORY_AHEAD = 4, 2**27


def mine_job(out: Path, config: MineConfig, threads: int | None, job: Job) -> Result:
    """What a worker does: mine one video, or one shard; returns what became of it."""
    ahead = threads != 1
    source, known = job.path, set(job.known)
    with thread_limit(threads_inside(threads) if ahead else threads):
        if isinstance(source, Shard):
            return _mine_shard(source, out, config, ahead, job)
        if isinstance(source, Path):
            return Result([_mine_one(lambda: source, out, config, ahead, known)])
        return Result([_mine_one(lambda: remote_content(source), out, config, ahead, known)])


def _mine_one(
    read: Callable[[], Path | Content], out: Path, config: MineConfig, ahead: bool, known: set[str]
) -> Outcome:
    """Read and mine a video unless its content is `known`, or mined under the same name."""
    digest, video = "", None
    try:
        video = read()
        digest = video_digest(video) if isinstance(video, Path) else video.digest
        stem = video_stem(video) if isinstance(video, Path) else video.stem
        part = Part("", part_key(stem, digest, config), digest, "")
        # what is packed is known from the ledger
        if digest in known or is_settled(Finished(out, packs=False), part):
            return Outcome(digest=digest)
        seconds = mine_video(video, out, part.key, digest, config, ahead=ahead)
        return Outcome(digest=digest, seconds=seconds)
    except StoreError as error:
        return Outcome(digest=digest, why=str(error), kind="store")
    except VideoError as error:
        return Outcome(digest=digest, why=str(error), kind="video")
    except (cv2.error, MemoryError) as error:
        why = f"{video}: {type(error).__name__}: {error}"
        return Outcome(digest=digest, why=why, kind="video")


def _mine_shard(shard: Shard, out: Path, config: MineConfig, ahead: bool, job: Job) -> Result:
    """Mine the videos of a shard as they come; what is finished is noted at once."""
    name, passed = identity(shard), Passed()
    outcomes: list[Outcome] = []
    known = set(job.known)

    def mined(member: Member, file: Any) -> Outcome:
        digest = job.members.get(printable(member.name), "")
        if digest in known:
            return Outcome(digest=digest)
        return _mine_one(lambda: content(shard, file, member), out, config, ahead, known)

    try:
        with opened(shard) as file:
            for member in members(shard, file, passed):
                outcome = replace(mined(member, file), member=printable(member.name))
                known |= {outcome.digest} if not outcome.why else set()
                outcomes.append(outcome)
                if name:
                    note(out, name, shard, outcome)
    except VideoError as error:
        kind = "store" if isinstance(error, StoreError) else "video"
        return Result([*outcomes, Outcome(why=str(error), kind=kind)])
    return Result(outcomes, passed)


def mine_video(
    path: Path | Content, out: Path, key: str, digest: str, config: MineConfig, ahead: bool = False
) -> float:
    """Mine one video and write its part of the dictionary; returns how long it is, in seconds.

    With `ahead`, one thread decodes and one tracks the windows to come while this one is mined.

    Raises:
        VideoError: it cannot be decoded.
        ConfigError: the tracker or the depth model is missing.
    """
    with open_video(path, config.fps) as video:
        tracker = make_tracker(path, config)
        writer = VideoWriter(out, key, video.name, _source(path, digest, tracker, config))
        counts: dict[str, Any] = {"frames": 0, "repeated_frames": 0, "windows_mined": 0}
        reasons: Counter[str] = Counter()
        pictures: Counter[str] = Counter()
        overlays = 0
        links = Links(config.frame_step)
        colour = tracker.colour or bool(config.depth) or config.signal != "motion"
        count = _windows_ahead(*video.size) if ahead else 0
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
            record = dict(video.record)
            if pictures:
                record["active_pictures"] = dict(sorted(pictures.items()))
            if overlays:
                record["windows_with_overlay"] = overlays
            if not isinstance(path, Path) and path.failure is not None:
                raise path.failure  # FFmpeg took it for the end of the video
            if why := _why_nothing(path, video, counts, reasons, config):
                writer.finish_without_twins(why, record, noted)
            else:
                writer.finish(record, noted, links.following)
        finally:
            writer.discard()
        return float(record["duration"])


def _source(
    path: Path | Content, digest: str, tracker: Tracker, config: MineConfig
) -> dict[str, Any]:
    """For the record: what was mined, and with what."""
    return {
        "file": printable(path.name),
        "sha256": digest,
        "tracker": tracker.name,
        "tracker_licence": tracker.licence,
        "depth": config.depth,
        "mined_with": __version__,
    }


def threads_inside(threads: int | None) -> int:
    """How many threads OpenCV and NumPy have, next to the two that decode and track ahead.

    With more threads than remaining cores, they would only wait.
    """
    return max(1, (threads or usable_cores()) - 2)


def _windows_ahead(height: int, width: int) -> int:
    """How many windows may wait between two stages, by the memory that their full frames take.

    Some have ten times as many moving patches as others: with one, a core waits for the other.
    """
    window = KEYFRAMES * 3 * height * width
    return max(1, min(_MOST_AHEAD, _MEMORY_AHEAD // max(window, 1)))


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
    path: Path | Content,
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
