"""`mine`: from videos to a twin dictionary."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import warnings
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from solo_infoaug._checks import require
from solo_infoaug._files import printable
from solo_infoaug._renamed import renamed
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.format import INDEX, MANIFEST, PACKS, PARTS
from solo_infoaug.dictionary.packs import Finished, Packer, pack_waiting, packs_in
from solo_infoaug.dictionary.writing import check_target, only_writer, write_manifest
from solo_infoaug.errors import DictionaryError, VideoError
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.corpus import Corpus, shown_member
from solo_infoaug.mining.inputs import Source, find_inputs, parse_share, share_of
from solo_infoaug.mining.ledger import Ledger, Outcome, Result
from solo_infoaug.mining.mine_one import mine_job
from solo_infoaug.mining.plan import is_settled, part_key, plan_of, twinless_in
from solo_infoaug.mining.registry import TRACKERS
from solo_infoaug.mining.status import Meter
from solo_infoaug.mining.stores import StoreError
from solo_infoaug.mining.video import video_digest
from solo_infoaug.mining.workers import end_if_unguarded, run_jobs, usable_cores

# After this many failures of stores in a row, the remaining videos are not tried.
_MOST_REFUSED = 20

# Names, without their ending, of unfinished packs and of videos in `parts`, finished or not.
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

    Videos are cut into shots, and these into windows. In each window, a grid of patches is tracked
    and the background's motion is removed. Of the patches that move on their own, the mutual
    information of all pairs is estimated: a patch's twin is the significant partner with the most.

    Videos that cannot be read, or have no twin, do not stop the others; `info["failed"]` and
    `info["twinless"]` list them. An interrupted run continues when it is called again. The same
    videos and settings give the same dictionary, in any order, with any number of workers.

    Args:
        videos: files, folders of videos, URLs of stores (s3://, gs://, hf://, https://), tar
            shards, braces and patterns of these, and .txt files that list them: see `find_inputs`.
        out: the folder to write the dictionary to.
        config: settings; the defaults if None.
        exclude: patterns such as "*.avi", "raw" or "raw/*" of files and folders to leave out.
        shard: "I/N" mines only the I-th of N shares, counted from 0, of the videos and tar shards.
            Each share needs a folder of its own; `merge` joins the N dictionaries.
        workers: number of processes; None for one a core, at most one a video. With more than one,
            a script needs the usual `if __name__ == "__main__":`.
        threads: threads of each worker; None for its share of the cores (on Ray, one).
        ray: address of a Ray cluster ("auto" for the running one, "local" to start one here). All
            its machines must see `out`, and videos that are not named by a URL.
        overwrite: remove the dictionary in `out` first, whatever it holds.
        progress: show progress on standard error.

    Raises:
        VideoError: no video has a twin (the message has the reasons), or a store does not answer.
        DictionaryError: `out` holds a dictionary of other videos or settings.
        OutputError: `out` cannot be written.
        ConfigError: an argument cannot be used, or Ray, a tracker or a depth model is missing.
    """
    end_if_unguarded()
    for name, value in (("workers", workers), ("threads", threads)):
        require(value is None or value >= 1, name, "at least 1", value)
    given = [videos] if isinstance(videos, (str, os.PathLike)) else list(videos)
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    sources, left_out = _share(*find_inputs(given, patterns), shard)
    for what in left_out:
        warnings.warn(printable(what), stacklevel=2)
    how = _How(workers, threads, ray, overwrite, progress)
    asked = {"exclude": patterns, "shard": shard, "left_out": left_out}
    return _mine_into(Path(out).absolute(), sources, config or MineConfig(), how, asked)


class _How(NamedTuple):
    """The arguments of `mine` that do not change its result."""

    workers: int | None
    threads: int | None = None
    ray: str | None = None
    overwrite: bool = False
    progress: bool = False


def _mine_into(
    folder: Path, sources: list[Source], config: MineConfig, how: _How, asked: dict[str, Any]
) -> TwinDictionary:
    """Mine what is not mined yet, unless the folder holds something else."""
    corpus = Corpus(sources, Ledger(folder))
    if not how.overwrite and _is_finished(folder, corpus, config):
        return TwinDictionary.load(folder)
    check_target(folder, "out")
    with only_writer(folder):
        corpus.ledger = Ledger(folder)
        if how.overwrite:
            _remove_dictionary(folder)
        finished = Finished(folder)
        _check_target(finished, corpus, config)
        failed = _mine_sources(corpus, finished, config, how)
        _check_target(finished, corpus, config, failed)
        _make_dictionary(corpus, finished, config, failed, asked)
        corpus.settle()
    return TwinDictionary.load(folder)


def _make_dictionary(
    corpus: Corpus,
    finished: Finished,
    config: MineConfig,
    failed: dict[str, str],
    asked: dict[str, Any],
) -> None:
    """Pack the videos that are mined, and write the manifest.

    Raises:
        VideoError: no video has a twin.
    """
    plan = plan_of(corpus.videos(), finished, config)
    mined = [part.key for part in plan.parts if finished.is_mined(part.key)]
    twinless = twinless_in(finished, plan.parts)
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
        **{name: asked[name] for name in ("exclude", "shard") if asked[name]},
        "left_out": [printable(what) for what in (*asked["left_out"], *passed)],
        "duplicates": _printable(plan.duplicates),
    }
    write_manifest(finished.out, mined, info)


def _share(
    sources: list[Source], left_out: list[str], shard: str | None
) -> tuple[list[Source], list[str]]:
    """The sources that a job of an array mines: its share, or all.

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
    corpus: Corpus, finished: Finished, config: MineConfig, how: _How
) -> dict[str, str]:
    """Mine what is not mined yet; returns the reasons of those that failed, by their names.

    Videos are packed in the order of their sources, whichever is finished first. So an interrupted
    run makes the same packs as one that was never interrupted.
    """

    def done() -> set[str]:
        parts = plan_of([*corpus.videos(), *corpus.earlier()], finished, config).parts
        return {part.digest for part in parts if is_settled(finished, part)}

    todo = corpus.unsettled(done())
    packer, unfinished, waiting = Packer(finished), set(todo), deque(corpus.sources)
    workers, threads = _shares(how.workers, how.threads, len(todo), how.ray is not None)
    work = functools.partial(mine_job, finished.out, config, threads)
    gpu = TRACKERS[config.tracker].neural and config.device != "cpu"
    failed: dict[str, str] = {}
    in_a_row = 0
    with Meter(finished.out, len(corpus.sources), len(todo), how.progress) as meter:
        # A video that may have the same content as another is looked at when that one is mined
        for jobs in corpus.rounds(todo, done):
            for job, result in run_jobs(jobs, work, workers, how.ray, gpu, threads or 1):
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
                        packer.add(part_key(video.stem, video.digest, config))
                refused = any(one.kind == "store" for one in result.outcomes)
                in_a_row = in_a_row + 1 if refused else 0
                if in_a_row == _MOST_REFUSED:
                    raise StoreError(
                        f"{list(failed.values())[-1]}\nthe stores failed {in_a_row} times in a "
                        "row: the remaining videos were not tried; run this again when they answer"
                    )
    return failed


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


def _printable(texts: dict[str, str]) -> dict[str, str]:
    return {printable(key): printable(text) for key, text in sorted(texts.items())}


def _is_finished(folder: Path, corpus: Corpus, config: MineConfig) -> bool:
    """Whether nothing is left to do. The folder may then be one that cannot be written."""
    if not (folder / MANIFEST).is_file():
        return False
    there, finished = TwinDictionary.load(folder).info, Finished(folder)
    _recognise(corpus, finished, config, there["videos"])
    plan = plan_of(corpus.videos(), finished, config)
    mined = [part for part in plan.parts if finished.is_mined(part.key)]
    twinless = twinless_in(finished, plan.parts)
    return bool(
        renamed(there.get("config") or {}) == config.to_json()
        and there["videos"] == [part.key for part in mined]
        and (there.get("twinless") or {}) == _printable(twinless)
        and len(mined) + len(twinless) == len(plan.parts)
        and not corpus.unread
    )


def _recognise(corpus: Corpus, finished: Finished, config: MineConfig, there: list[str]) -> None:
    """Hash the sources on this disk if the ledger does not explain all videos of the dictionary.

    An earlier version left no ledger, and a copy of the folder may lack hidden files.
    """
    keys = {part.key for part in plan_of(corpus.videos(), finished, config).parts}
    if set(there) <= keys:
        return
    for source in corpus.unread:
        if isinstance(source, Path):
            with contextlib.suppress(VideoError):  # mining says why
                corpus.learn(source, video_digest(source))


def _check_target(
    finished: Finished, corpus: Corpus, config: MineConfig, failed: dict[str, str] | None = None
) -> None:
    """Raise a DictionaryError if the folder holds a dictionary that this run would not extend.

    Called before the run, when some sources are not read yet, and after it, with what `failed`.
    """
    folder = finished.out
    if not (folder / MANIFEST).is_file():
        return
    there = TwinDictionary.load(folder)
    _recognise(corpus, finished, config, there.info["videos"])
    keys = {part.key for part in plan_of(corpus.videos(), finished, config).parts}
    if renamed(there.info.get("config") or {}) != config.to_json():
        what = "other settings"
    elif set(there.info["videos"]) <= keys or (failed is None and corpus.unread):
        return
    else:
        what = "other videos, or of videos that are excluded now"
    raise DictionaryError(
        "\n".join(
            [
                f"{folder} holds a dictionary of {what}; choose another folder, or pass "
                "--overwrite",
                *(failed or {}).values(),
            ]
        )
    )


def _remove_dictionary(folder: Path) -> None:
    """Remove the dictionary, for `overwrite`, and nothing that is not ours."""
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    for pack in packs_in(folder):  # they may be damaged
        pack.unlink()
    _remove_leftovers(Finished(folder), [])


def _remove_leftovers(finished: Finished, keys: list[str]) -> None:
    """Remove leftovers of interrupted runs and of other settings; nothing that is not ours."""
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
