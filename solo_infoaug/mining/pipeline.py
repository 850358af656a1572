"""`mine`: from videos to a twin dictionary."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2

from solo_infoaug import __version__
from solo_infoaug._checks import require
from solo_infoaug._files import printable
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.format import INDEX, MANIFEST, PACKS, PARTS
from solo_infoaug.dictionary.packs import Finished, Packer, pack_waiting, packs_in
from solo_infoaug.dictionary.writing import VideoWriter, check_target, only_writer, write_manifest
from solo_infoaug.errors import DictionaryError, VideoError
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.content import Content, remote_content
from solo_infoaug.mining.corpus import Corpus, Listed, shown_member
from solo_infoaug.mining.frame import Frame
from solo_infoaug.mining.frame_folder import FrameFolder
from solo_infoaug.mining.inputs import Source, find_inputs, parse_share, share_of
from solo_infoaug.mining.ledger import Ledger, Outcome, Result, identity, note
from solo_infoaug.mining.linking import Links
from solo_infoaug.mining.registry import TRACKERS
from solo_infoaug.mining.repeats import without_repeats
from solo_infoaug.mining.shards import Member, Passed, Shard, content, members, opened
from solo_infoaug.mining.status import Meter
from solo_infoaug.mining.stores import StoreError
from solo_infoaug.mining.trackers import make_tracker
from solo_infoaug.mining.video import Video, open_video, video_digest, video_stem
from solo_infoaug.mining.window import follow, mine_window
from solo_infoaug.mining.windows import KEYFRAMES, Window, windows
from solo_infoaug.mining.workers import Job, end_if_unguarded, run_jobs, thread_limit, usable_cores

T = TypeVar("T")

# Windows that may wait between two stages of mining: so many, in so many bytes.
_MOST_AHEAD, _MEMORY_AHEAD = 4, 2**27

# After so many failures of stores, with no success between them, the rest is not tried.
_MOST_REFUSED = 20

# Names of videos in `parts`, finished or not, less their ending; and of unfinished packs.
_FRESH_PACK = re.compile(r"\.[0-9]+\.[0-9]+")
_KEY = re.compile(r"\.?[A-Za-z0-9_\-]+-[0-9a-f]{8}-[0-9a-f]{8}(\.[0-9]+)?")


def mine(
    videos: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    config: MineConfig | None = None,
    *,
    exclude: str | Iterable[str] = (),
    shard: str | None = None,
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
        videos: a video file, a folder of videos, or several of either; also URLs of stores
            (s3://, gs://, hf://, https://), tar shards, braces and patterns of these, and .txt
            files with one of them a line: see `find_inputs`.
        out: the folder to write the dictionary to.
        config: settings; the defaults if None.
        exclude: patterns such as "*.avi", "raw" or "raw/*" of files and folders to leave out,
            compared with their names and with their paths inside the folder that is searched.
        shard: "I/N": only the I-th of N shares, counted from 0, of the videos and tar shards; all
            N, each in a folder of its own, and `merge` make the dictionary of all.
        workers: processes that mine videos side by side; None for as many as there are cores, or
            videos. With more than one, a script needs the usual `if __name__ == "__main__":`.
        threads: how many threads each worker uses; None for its share of the cores (on Ray, one).
        ray: address of a Ray cluster to mine on instead ("auto" for the running one, "local" to
            start one here); videos and `out` must be on storage that all its machines share.
            A store that is named by its URL is.
        overwrite: remove the dictionary in `out` first, whatever it is.
        progress: show progress on standard error.

    Raises:
        VideoError: no video has a twin; the message has the reason of each. Or a store does not
            answer.
        DictionaryError: `out` holds a dictionary of other videos or settings.
        OutputError: `out` cannot be written.
        ConfigError: `workers` or `threads` is no positive number, or Ray, a tracker or a depth
            model is missing.
    """
    end_if_unguarded()
    config = config or MineConfig()
    for name, value in (("workers", workers), ("threads", threads)):
        require(value is None or value >= 1, name, "at least 1", value)
    given = [videos] if isinstance(videos, (str, os.PathLike)) else list(videos)
    folder = Path(out).absolute()

    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    sources, left_out = _share(*find_inputs(given, patterns), shard)
    for what in left_out:
        warnings.warn(printable(what), stacklevel=2)
    corpus = Corpus(sources, Ledger(folder))
    if not overwrite and _is_finished(folder, corpus, config):
        return TwinDictionary.load(folder)
    check_target(folder, "out")
    with only_writer(folder):
        corpus.ledger = Ledger(folder)
        if overwrite:
            (folder / MANIFEST).unlink(missing_ok=True)
            (folder / INDEX).unlink(missing_ok=True)
            for pack in packs_in(folder):  # they may be damaged
                pack.unlink()
            _remove_leftovers(Finished(folder), [])
        finished = Finished(folder)
        _check_target(finished, corpus, config)
        failed = _mine_sources(corpus, finished, config, workers, threads, ray, progress)
        _check_target(finished, corpus, config, failed)
        plan = _plan(corpus.videos(), finished, config)
        mined = [part.key for part in plan.parts if finished.is_mined(part.key)]
        twinless = _twinless(finished, plan.parts)
        passed = corpus.notes()
        if not mined:
            raise VideoError("\n".join([*failed.values(), *twinless.values(), *passed]))
        kept = [part.key for part in plan.parts if part.shown not in failed]
        _remove_leftovers(finished, kept)
        pack_waiting(finished, kept)
        info = {
            "config": config.to_json(),
            "failed": _printable(failed),
            "twinless": _printable(twinless),
            **({"exclude": patterns} if patterns else {}),
            **({"shard": shard} if shard else {}),
            "left_out": [printable(what) for what in (*left_out, *passed)],
            "duplicates": _printable(plan.duplicates),
        }
        write_manifest(folder, mined, info)
        corpus.settle()
    return TwinDictionary.load(folder)


def _share(
    sources: list[Source], left_out: list[str], shard: str | None
) -> tuple[list[Source], list[str]]:
    """Those of the sources that a job of an array is to mine.

    Raises:
        ConfigError: there are none, or `shard` is not I/N.
    """
    if shard is None:
        return sources, left_out
    index, count = parse_share(shard)
    own = share_of(sources, index, count)
    require(own, "shard", f"at most as many jobs as the {len(sources)} videos need", shard)
    return own, left_out


def _mine_sources(
    corpus: Corpus,
    finished: Finished,
    config: MineConfig,
    workers: int | None,
    threads: int | None,
    ray: str | None,
    progress: bool,
) -> dict[str, str]:
    """Mine what is not mined yet; returns why some failed, by what they are called.

    Videos are packed in the order of their sources, whichever is finished first: the packs of an
    interrupted run that goes on are those of one that was never interrupted.
    """

    def done() -> set[str]:
        parts = _plan([*corpus.videos(), *corpus.earlier()], finished, config).parts
        return {part.digest for part in parts if _is_settled(finished, part)}

    todo = corpus.unsettled(done())
    packer, unfinished, waiting = Packer(finished), set(todo), deque(corpus.sources)
    workers, threads = _shares(workers, threads, len(todo), ray is not None)
    work = functools.partial(_mine_job, finished.out, config, threads)
    gpu = TRACKERS[config.tracker].neural and config.device != "cpu"
    failed: dict[str, str] = {}
    in_a_row = 0
    with Meter(finished.out, len(corpus.sources), len(todo), progress) as meter:
        # What may have the same content as another is looked at when that one is mined
        for jobs in corpus.rounds(todo, done):
            for job, result in run_jobs(jobs, work, workers, ray, gpu, threads or 1):
                if isinstance(result, str):
                    result = Result([Outcome(why=result, kind="died")])
                corpus.note(job.path, result)
                failed |= {
                    shown_member(job.path, one.member): one.why
                    for one in result.outcomes
                    if one.why
                }
                meter.count(job.path, result.outcomes)
                unfinished.discard(job.path)
                while waiting and waiting[0] not in unfinished:
                    for video in corpus.videos_of(waiting.popleft()):
                        packer.add(_key(video.stem, video.digest, config))
                refused = any(one.kind == "store" for one in result.outcomes)
                in_a_row = in_a_row + 1 if refused else 0
                if in_a_row == _MOST_REFUSED:
                    raise StoreError(
                        f"{list(failed.values())[-1]}\nthe stores failed {in_a_row} times in a "
                        "row: the others were not tried; run it again when they answer"
                    )
    return failed


def mine_video(
    path: Path | Content,
    out: Path,
    key: str,
    digest: str,
    config: MineConfig,
    ahead: bool = False,
) -> float:
    """Mine one video and write its part of the dictionary; returns how long it is, in seconds.

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
            record = {**video.record, **_left_out(pictures, overlays)}
            if not isinstance(path, Path) and path.failure is not None:
                raise path.failure  # FFmpeg took it for the end of the video
            if why := _why_nothing(path, video, counts, reasons, config):
                writer.finish_without_twins(why, record, noted)
            else:
                writer.finish(record, noted, links.following)
        finally:
            writer.discard()
        return float(record["duration"])


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


def _windows_ahead(height: int, width: int) -> int:
    """How many windows may wait between two stages, by the memory that their full frames take.

    Some have ten times as many moving patches as others: with one, a core waits for the other.
    """
    window = KEYFRAMES * 3 * height * width
    return max(1, min(_MOST_AHEAD, _MEMORY_AHEAD // max(window, 1)))


def _mine_job(out: Path, config: MineConfig, threads: int | None, job: Job) -> Result:
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
    read: Callable[[], Path | Content],
    out: Path,
    config: MineConfig,
    ahead: bool,
    known: set[str],
) -> Outcome:
    """Read and mine a video unless its content is `known`, or mined under the same name."""
    digest, video = "", None
    try:
        video = read()
        digest = video_digest(video) if isinstance(video, Path) else video.digest
        stem = video_stem(video) if isinstance(video, Path) else video.stem
        part = _Part("", _key(stem, digest, config), digest, "")
        # what is packed is known from the ledger
        if digest in known or _is_settled(Finished(out, packs=False), part):
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


@dataclass(frozen=True)
class _Part:
    """A part of the dictionary: the video that it is of, the part's name, the content's hash."""

    shown: str
    key: str
    digest: str
    name: str


@dataclass(frozen=True)
class _Plan:
    """Parts, in an order that depends on the videos alone.

    `duplicates` are videos with the content of another.
    """

    parts: list[_Part]
    duplicates: dict[str, str]


def _plan(videos: list[Listed], finished: Finished, config: MineConfig) -> _Plan:
    """Of several with the same content the first is mined, or the one that is mined already."""
    alike: dict[str, list[_Part]] = {}
    for video in sorted(videos, key=lambda video: (video.name, video.shown)):
        key = _key(video.stem, video.digest, config)
        part = _Part(video.shown, key, video.digest, video.name)
        alike.setdefault(video.digest, []).append(part)
    parts: list[_Part] = []
    duplicates: dict[str, str] = {}
    for same in alike.values():
        mined = (part for part in same if len(same) > 1 and _is_settled(finished, part))
        chosen = next(mined, same[0])
        parts.append(chosen)
        duplicates |= {part.shown: chosen.shown for part in same if part is not chosen}
    ordered = sorted(parts, key=lambda part: (part.name, part.digest))
    return _Plan(ordered, duplicates)


def _key(stem: str, digest: str, config: MineConfig) -> str:
    return f"{_plain(stem)}-{digest[:8]}-{config.digest[:8]}"


def _printable(texts: dict[str, str]) -> dict[str, str]:
    return {printable(key): printable(text) for key, text in sorted(texts.items())}


def _plain(name: str) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
    return plain.strip("-_")[:60] or "video"


def _is_settled(finished: Finished, part: _Part) -> bool:
    """Whether a video is mined, or known to have no twin."""
    return finished.is_mined(part.key) or _why_twinless(finished, part) is not None


def _why_twinless(finished: Finished, part: _Part) -> str | None:
    """Why a video that this version has mined has no twin; None if it has, or is to be mined."""
    record = finished.twinless(part.key)
    source = None if record is None else record.get("source")
    # another version may find some
    if record is None or not isinstance(source, dict) or source.get("mined_with") != __version__:
        return None
    return str(record.get("why"))


def _twinless(finished: Finished, parts: list[_Part]) -> dict[str, str]:
    """Why the videos that have no twin have none, by what they are called."""
    found = ((part, _why_twinless(finished, part)) for part in parts)
    return {part.shown: f"{part.shown}: {why}" for part, why in found if why is not None}


def _is_finished(folder: Path, corpus: Corpus, config: MineConfig) -> bool:
    """Whether nothing is left to do, so that a folder is enough that can only be read."""
    if not (folder / MANIFEST).is_file():
        return False
    there, finished = TwinDictionary.load(folder).info, Finished(folder)
    _recognise(corpus, finished, config, there["videos"])
    plan = _plan(corpus.videos(), finished, config)
    mined = [part for part in plan.parts if finished.is_mined(part.key)]
    twinless = _twinless(finished, plan.parts)
    return bool(
        there.get("config") == config.to_json()
        and there["videos"] == [part.key for part in mined]
        and (there.get("twinless") or {}) == _printable(twinless)
        and len(mined) + len(twinless) == len(plan.parts)
        and not corpus.unread
    )


def _recognise(corpus: Corpus, finished: Finished, config: MineConfig, there: list[str]) -> None:
    """Hash what is on this disk, where the ledger does not explain all videos that are there.

    So it is where an earlier version, or a copy of the folder without hidden files, left none.
    """
    keys = {part.key for part in _plan(corpus.videos(), finished, config).parts}
    if set(there) <= keys:
        return
    for source in corpus.unread:
        if isinstance(source, Path):
            with contextlib.suppress(VideoError):  # mining says why
                corpus.learn(source, video_digest(source))


def _check_target(
    finished: Finished, corpus: Corpus, config: MineConfig, failed: dict[str, str] | None = None
) -> None:
    """Raise a DictionaryError if there is a dictionary that this run would not make larger.

    Before the run it waits for what is not read yet; `failed` is known after it.
    """
    folder = finished.out
    if not (folder / MANIFEST).is_file():
        return
    there = TwinDictionary.load(folder)
    _recognise(corpus, finished, config, there.info["videos"])
    keys = {part.key for part in _plan(corpus.videos(), finished, config).parts}
    if there.info.get("config") != config.to_json():
        what = "other settings"
    elif set(there.info["videos"]) <= keys or (failed is None and corpus.unread):
        return
    else:
        what = "other videos, or of some that are excluded now"
    raise DictionaryError(
        "\n".join(
            [
                f"{folder} holds a dictionary of {what}; choose another folder, or give "
                "--overwrite",
                *(failed or {}).values(),
            ]
        )
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
