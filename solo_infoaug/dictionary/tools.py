"""Tools for whole dictionaries: merge, split, filter, describe. All write a new folder."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from solo_infoaug._checks import require
from solo_infoaug._files import file_digest
from solo_infoaug._renamed import renamed
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.format import COUNTS, INDEX, MANIFEST, PACKS, PARTS
from solo_infoaug.dictionary.links import relinked
from solo_infoaug.dictionary.packs import Finished, Packer
from solo_infoaug.dictionary.pixels import stored
from solo_infoaug.dictionary.reading import Part, read_record
from solo_infoaug.dictionary.writing import VideoWriter, check_target, only_writer, write_manifest
from solo_infoaug.errors import ConfigError, DictionaryError

PathLike = str | os.PathLike[str]


def merge(paths: Sequence[PathLike], out: PathLike) -> TwinDictionary:
    """Merge dictionaries. A video that was mined twice with the same settings is taken once.

    Raises:
        DictionaryError: a dictionary is damaged, crop size, moments or top_k differ, or `out` holds
            a dictionary already.
    """
    if not paths:
        raise ConfigError("merge needs at least one dictionary")
    sources = [TwinDictionary.load(path) for path in paths]
    shapes = {(tuple(source.pixels_shape[1:]), source.twins.shape[1]) for source in sources}
    if len(shapes) > 1:
        listed = "; ".join(
            f"{source.path}: crops {list(source.pixels_shape[1:])}, top_k {source.twins.shape[1]}"
            for source in sources
        )
        raise DictionaryError(f"these dictionaries do not fit together: {listed}")
    taken: dict[str, None] = {}  # keys, in their order
    failed: dict[str, Any] = {}
    twinless: dict[str, Any] = {}
    configs = [source.info.get("config") for source in sources]
    configs = [renamed(config) if config else config for config in configs]
    config = configs[0] if all(other == configs[0] for other in configs) else None
    with _target(out) as folder:
        packer = Packer(Finished(folder))
        for source in sources:
            failed |= source.info.get("failed") or {}
            twinless |= source.info.get("twinless") or {}
            for number, key in enumerate(source.info["videos"]):
                if key not in taken:
                    packer.add(key, source.part_files(number))
                    taken[key] = None
        info = {"config": config, "merged_configs": configs, "failed": failed, "twinless": twinless}
        packer.close()
        write_manifest(folder, list(taken), info)
    return TwinDictionary.load(folder)


def split(
    path: PathLike, out: PathLike, fraction: float = 0.8, by: str = "video", seed: int = 0
) -> tuple[TwinDictionary, TwinDictionary]:
    """Two dictionaries, `out`/first and `out`/second, that share no video or no shot.

    The split depends only on the seed and the content.

    Args:
        path: what to split.
        out: the folder for both.
        fraction: the share of videos (shots) in the first; both get at least one.
        by: "video" or "shot".
        seed: of the split.

    Raises:
        ConfigError: an argument cannot be used.
        DictionaryError: the dictionary is damaged or has fewer than two videos (shots), or a
            target holds a dictionary already.
    """
    require(0.0 < fraction < 1.0, "fraction", "in (0, 1)", fraction)
    require(by in ("video", "shot"), "by", "video or shot", by)
    source = TwinDictionary.load(path)
    keys: list[str] = source.info["videos"]
    by_video = [(key, None) for key in keys]
    by_shot = [(keys[source.patches["video"][w.rows][0]], w.shot) for w in source.windows]
    units = list(dict.fromkeys(by_video if by == "video" else by_shot))
    if len(units) < 2:
        raise DictionaryError(f"{source.path} has a single {by} and cannot be split by {by}")
    shuffled = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}/{unit}".encode()).digest())
    count = min(max(1, round(fraction * len(units))), len(units) - 1)
    halves = set(shuffled[:count]), set(shuffled[count:])
    with _target(Path(out) / "first") as first, _target(Path(out) / "second") as second:
        for folder, chosen in zip((first, second), halves, strict=True):
            kept, packer = [], Packer(Finished(folder))
            of_video: dict[str, set[int | None]] = {}
            for video, shot in chosen:
                of_video.setdefault(video, set()).add(shot)
            for number, key in enumerate(keys):
                shots = of_video.get(key)
                if not shots:
                    continue
                if None in shots:
                    packer.add(key, source.part_files(number))
                else:
                    _rewrite(source, number, folder, keep=shots)
                    packer.add(key)
                kept.append(key)
            packer.close()
            write_manifest(folder, kept, {"config": source.info.get("config"), "failed": {}})
    return TwinDictionary.load(first), TwinDictionary.load(second)


def filter_twins(
    path: PathLike,
    out: PathLike,
    *,
    min_mi: float = 0.0,
    max_p: float = 1.0,
    top_k: int | None = None,
) -> TwinDictionary:
    """Drop the twins that do not pass; all patches stay.

    For `positives: random`, a patch without a twin stands for those that are not stored (see
    `TwinDictionary.sample`). A patch that loses its twin here does so too.

    Args:
        path: what to filter.
        out: the folder to write.
        min_mi: the least MI of a twin, nats.
        max_p: the largest p-value of a twin.
        top_k: how many twins a patch keeps.

    Raises:
        ConfigError: an argument cannot be used.
        DictionaryError: the dictionary is damaged, or `out` holds one already.
    """
    require(0.0 <= max_p <= 1.0, "max_p", "in [0, 1]", max_p)
    require(not math.isnan(min_mi), "min_mi", "a number", min_mi)
    source = TwinDictionary.load(path)
    kept = source.twins.shape[1]
    there = top_k is None or 1 <= top_k <= kept
    require(there, "top_k", f"1 to {kept}, the twins that a patch has there", top_k)

    info = {name: value for name, value in source.info.items() if name != "videos"}
    info["filtered"] = {"min_mi": min_mi, "max_p": max_p, "top_k": top_k}
    with _target(out) as folder:
        packer = Packer(Finished(folder))
        for number, key in enumerate(source.info["videos"]):
            _rewrite(source, number, folder, min_mi=min_mi, max_p=max_p, top_k=top_k)
            packer.add(key)
        packer.close()
        write_manifest(folder, source.info["videos"], info)
    return TwinDictionary.load(folder)


def describe(dictionary: TwinDictionary, verify: bool = False) -> dict[str, Any]:
    """What is in a dictionary, as JSON can hold it.

    With `verify`, all pixels are read and compared with the hashes that were noted when mining.

    Raises:
        DictionaryError: `verify` finds a damaged file; the message names it.
    """
    mi = dictionary.mi[dictionary.anchors, 0]
    records = list(_records(dictionary))
    twins = _with_twin(dictionary)
    by_video = [
        _summary(record, with_twin, dictionary.info)
        for record, with_twin in zip(records, twins, strict=True)
    ]
    reasons: Counter[str] = Counter()
    for row in by_video:
        reasons.update(row["patches_by_reason"])
    sources = [{**dict(record.get("source") or {}), **_counts(record)} for record in records]
    if verify:
        _verify(dictionary)
    quantiles = (("least", 0.0), ("median", 0.5), ("most", 1.0)) if len(mi) else ()
    return {
        "path": str(dictionary.path),
        "fingerprint": dictionary.fingerprint,
        "verified": verify,
        "videos": len(dictionary.videos),
        "windows": len(dictionary.windows),
        "patches": len(dictionary),
        "with_twin": len(dictionary.anchors),
        "pairs": int((dictionary.twins >= 0).sum()),
        "linked": _links(dictionary),
        "pixels": list(dictionary.pixels_shape),
        "top_k": dictionary.twins.shape[1],
        "mi_nats": {name: round(float(mi.quantile(q)), 4) for name, q in quantiles} or None,
        "patches_by_reason": dict(reasons),
        "twins_apart": _distances(dictionary),
        "by_video": by_video,
        "sources": sources,
        "config": dictionary.info.get("config"),
        "failed": dictionary.info.get("failed") or {},
        "twinless": dictionary.info.get("twinless") or {},
        "left_out": dictionary.info.get("left_out") or [],
        "duplicates": dictionary.info.get("duplicates") or {},
        "damaged_packets": sum(source.get("damaged_packets", 0) for source in sources),
        "frames_left_out": sum(source.get("frames_left_out", 0) for source in sources),
    }


def _records(dictionary: TwinDictionary) -> Iterator[dict[str, Any]]:
    """What was noted of each video; a DictionaryError if one is damaged."""
    for number in range(len(dictionary.videos)):
        files = dictionary.part_files(number)
        yield read_record(files)


def _with_twin(dictionary: TwinDictionary) -> list[int]:
    """How many patches of each video have a twin."""
    of_anchor = dictionary.patches["video"][dictionary.anchors.numpy()]
    counts = np.bincount(of_anchor, minlength=len(dictionary.videos))
    return [int(count) for count in counts]


def _verify(dictionary: TwinDictionary) -> None:
    """Read all of a dictionary, and compare it with the hashes that were noted when mining."""
    noted = dictionary.info.get("index")
    if isinstance(noted, dict):  # since format 4
        path = dictionary.path / INDEX
        if file_digest(path) != noted.get("sha256"):
            raise DictionaryError(f"{path}: damaged: its content has changed")
    for number in range(len(dictionary.videos)):
        files = dictionary.part_files(number)
        part = Part.read(files)
        for shard, digest in zip(part.shards, part.digests[1:], strict=True):
            name = shard.place.label.name
            if hashlib.sha256(files.read(name)).hexdigest() != digest:
                raise DictionaryError(f"{shard.place.label}: damaged: its content has changed")


def video_table(dictionary: TwinDictionary) -> list[tuple[str, ...]]:
    """A table of the videos: a heading, and a row for each, most twins first."""
    told = zip(_records(dictionary), _with_twin(dictionary), strict=True)
    summaries = [_summary(record, twins, dictionary.info) for record, twins in told]
    rows: list[tuple[str, ...]] = [
        ("video", "minutes", "twins a minute", "patches with a twin", "why the others have none")
    ]
    for row in sorted(summaries, key=lambda row: -(row["twins_a_minute"] or 0)):
        reasons = dict(row["patches_by_reason"])
        reasons.pop("twin", None)
        others = max(sum(reasons.values()), 1)
        why = sorted(reasons.items(), key=lambda item: -item[1])
        share = row["share_with_twin"]
        rows.append(
            (
                row["video"],
                "?" if row["minutes"] is None else f"{row['minutes']:.2f}",
                "?" if row["minutes"] is None else f"{row['twins_a_minute']:.0f}",
                "?" if share is None else f"{row['with_twin']} ({share:.1%})",
                ", ".join(f"{name} {count / others:.0%}" for name, count in why if count),
            )
        )
    return rows


def _summary(record: dict[str, Any], twins: int, info: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one video: minutes, windows, patches, twins, and why patches have no twin."""
    source, config = dict(record.get("source") or {}), dict(info.get("config") or {})
    reasons = record.get("reasons")
    if not isinstance(reasons, dict):
        reasons = Counter()
        for window in record["windows"]:
            counts = dict(window.get("reasons") or {})
            reasons.update({name: int(count) for name, count in counts.items()})
    reasons = {str(name): int(count) for name, count in reasons.items()}
    patches = sum(reasons.values())
    minutes = None
    if source.get("fps") and record.get("frames"):
        step = int(config.get("frame_step", 1))
        minutes = int(record["frames"]) * step / float(source["fps"]) / 60
    return {
        "video": str(record["name"]),
        "minutes": minutes,
        "windows": int(record.get("windows_mined", len(record["windows"]))),
        "patches": patches,
        "with_twin": twins,
        "twins_a_minute": None if minutes is None else round(twins / minutes, 1),
        "share_with_twin": None if not patches else round(reasons.get("twin", 0) / patches, 5),
        "patches_by_reason": reasons,
    }


def _links(dictionary: TwinDictionary) -> dict[str, Any]:
    """How many patches are linked to another window, and for how long."""
    chains, seconds = dictionary.chains, dictionary.seconds
    linked = chains.stop - chains.first > 1
    spans = seconds[chains.order[chains.stop - 1]] - seconds[chains.order[chains.first]]
    with_twin = int(linked[chains.place[dictionary.anchors.numpy()]].sum())
    return {
        "patches": int(linked.sum()),
        "with_twin": with_twin,
        "links": int((dictionary.next >= 0).sum()),
        "longest_seconds": round(float(spans.max()), 2),
    }


def _distances(dictionary: TwinDictionary) -> dict[str, float] | None:
    """How far apart twins are, in sides of a patch, and the share that are adjacent."""
    rows = dictionary.patches[dictionary.anchors.numpy()]
    partners = dictionary.patches[dictionary.twins[dictionary.anchors, 0].numpy()]
    if not len(rows):
        return None
    gap = np.maximum(np.abs(rows["x"] - partners["x"]), np.abs(rows["y"] - partners["y"]))
    gap = gap / np.maximum(rows["size"], 1e-6)
    return {
        "median": round(float(np.median(gap)), 2),
        "p90": round(float(np.quantile(gap, 0.9)), 2),
        "share_next_to_each_other": round(float((gap < 1.25).mean()), 3),
    }


@contextmanager
def _target(out: PathLike) -> Iterator[Path]:
    """The folder to write, locked against other writers."""
    folder = Path(out)
    check_target(folder, "out")
    with only_writer(folder):
        if any((folder / name).exists() for name in (MANIFEST, PARTS, PACKS)):
            raise DictionaryError(f"{folder} holds a dictionary already; choose another folder")
        try:
            yield folder
        except BaseException:
            for name in (PARTS, PACKS):
                shutil.rmtree(folder / name, ignore_errors=True)
            raise


def _counts(record: Mapping[str, Any]) -> dict[str, Any]:
    """How much was read, left out and mined, if the manifest notes it."""
    counts: dict[str, Any] = {name: int(record[name]) for name in COUNTS if name in record}
    if isinstance(record.get("reasons"), dict):
        counts["reasons"] = dict(record["reasons"])
    return counts


def _rewrite(
    source: TwinDictionary,
    number: int,
    out: Path,
    keep: Container[object] | None = None,
    min_mi: float = -math.inf,
    max_p: float = 1.0,
    top_k: int | None = None,
) -> None:
    """Write a video again, with the shots in `keep` and the twins that pass."""
    part, key = Part.read(source.part_files(number)), source.info["videos"][number]
    writer = VideoWriter(out, key, part.name, part.record["source"])
    kept: list[np.ndarray] = []
    try:
        for window in part.windows:
            if keep is None or window.shot in keep:
                rows = window.rows
                kept.append(np.arange(rows.start, rows.stop))
                twins = part.twins[rows].numpy()
                twins = np.where(twins >= 0, twins - rows.start, -1)
                mi, p = part.mi[rows].numpy(), part.p_value[rows].numpy()
                passed = (twins >= 0) & (mi >= min_mi) & (p <= max_p)
                twins, mi, p = _only(passed, twins, mi, p)
                writer.add_window(
                    {name: value for name, value in window.record.items() if name != "patches"},
                    image=window.image,
                    patches={
                        name: part.patches[name][rows]
                        for name in ("frame", "x", "y", "size", "entropy")
                    },
                    pixels=stored(part.shards, rows),
                    twins=twins[:, :top_k],
                    mi=mi[:, :top_k],
                    p_value=p[:, :top_k],
                    moment_frames=part.moment_frames[rows].numpy(),
                    arrays=window.arrays,
                )
        following = relinked(part.next.numpy(), np.concatenate(kept))
        writer.finish(counts=_counts(part.record), following=following)
    finally:
        writer.discard()


def _only(
    good: np.ndarray, twins: np.ndarray, mi: np.ndarray, p: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Only the good pairs, moved to the front."""
    order = np.argsort(~good, axis=1, kind="stable")
    good = np.take_along_axis(good, order, axis=1)
    arrays = [np.take_along_axis(array, order, axis=1) for array in (twins, mi, p)]
    empty = (-1, 0.0, 1.0)
    twins, mi, p = (
        np.where(good, array, np.asarray(value, array.dtype))
        for array, value in zip(arrays, empty, strict=True)
    )
    return twins, mi, p
