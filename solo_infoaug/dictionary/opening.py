"""Opening a dictionary: its manifest, index, crops and videos, in a folder or a bucket.

Nothing in the files is trusted; pixels are mapped into memory, not read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solo_infoaug._checks import is_number, is_whole, require
from solo_infoaug.dictionary.bucket import Bucket, is_url
from solo_infoaug.dictionary.files import FolderFiles, PackFiles, PartFiles
from solo_infoaug.dictionary.format import (
    INDEX,
    MANIFEST,
    PACKS,
    PARTS,
    check_path,
    is_name,
    read_json,
)
from solo_infoaug.dictionary.index import Index
from solo_infoaug.dictionary.pixels import PixelFiles
from solo_infoaug.dictionary.reading import Part
from solo_infoaug.dictionary.streaming import Stream
from solo_infoaug.errors import DictionaryError

# From this version on videos are in packs.
_PACKED = 4


@dataclass(frozen=True)
class Opened:
    """What a `TwinDictionary` is made of."""

    path: Path
    info: dict[str, Any]
    """The manifest."""

    index: Index
    pixels: PixelFiles
    files: Callable[[int], PartFiles]
    """The files of a video, by its place in `index.names`."""

    stream: Stream | None = None
    """Of a dictionary in a bucket."""


def open_place(path: str | os.PathLike[str], cache_gb: float, repeats: int) -> Opened:
    """Open a folder or a URL; see `TwinDictionary.load`."""
    return _bucket(str(path), cache_gb, repeats) if is_url(path) else _folder(Path(path))


def _folder(folder: Path) -> Opened:
    check_path(folder, "the dictionary")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        what = f"no twin dictionary at {folder}"
        if folder.is_dir():
            what = f"{folder} holds no finished twin dictionary ({MANIFEST} is missing)"
        way = f"mine one with `solo-infoaug mine VIDEO_OR_DIR... -o {folder}`"
        raise DictionaryError(f"{what}: {way}")
    info = read_json(manifest)
    _check_manifest(manifest, info)
    if info["version"] < _PACKED:
        return _folders(folder, info)
    names, packs = info["names"], [folder / PACKS / name for name in info["packs"]]
    index = Index.map(folder / INDEX, names, len(packs), info["fingerprint"])
    pixels = PixelFiles(index.table, packs.__getitem__, packs)
    pack_of = _packs_of(index)

    def files(video: int) -> PartFiles:
        return PackFiles(packs[pack_of[video]], info["videos"][video])

    return Opened(folder, info, index, pixels, files)


def _folders(folder: Path, info: dict[str, Any]) -> Opened:
    """Formats 2 and 3: one folder for each video; all are read now."""
    parts = [FolderFiles(folder / PARTS / key) for key in info["videos"]]
    index, paths = Index.of(folder, [Part.read(files) for files in parts])
    pixels = PixelFiles(index.table, paths.__getitem__, paths)
    return Opened(folder, info, index, pixels, parts.__getitem__)


def _bucket(url: str, cache_gb: float, repeats: int) -> Opened:
    """In a bucket. Windows and records, which training does not need, cannot be read there."""
    require(is_number(cache_gb, 0), "cache_gb", "a number of gigabytes", cache_gb)
    require(is_whole(repeats, 1), "repeats", "a whole number ≥ 1", repeats)
    bucket = Bucket(url, int(cache_gb * 1e9))
    info = bucket.info
    _check_manifest(Path(f"{url}/{MANIFEST}"), info)
    if info["version"] < _PACKED:
        raise DictionaryError(
            f"{url}: format {info['version']} has a folder a video, which cannot be read from "
            f"a bucket; pack a local copy (solo-infoaug merge OLD -o NEW) and upload NEW"
        )
    names, packs = info["names"], info["packs"]
    index = Index.map(bucket.index(), names, len(packs), info["fingerprint"])
    places = [f"{bucket.url}/{PACKS}/{name}" for name in packs]
    pixels = PixelFiles(index.table, bucket.pack, places)
    stream = Stream(bucket, index, pixels, cache_gb, repeats)

    def files(video: int) -> PartFiles:
        raise DictionaryError(
            f"{url}: windows and records are read only from a local folder; copy the dictionary"
        )

    return Opened(bucket.folder, info, index, pixels, files, stream)


def _packs_of(index: Index) -> list[int]:
    """The pack that each video lies in."""
    first = index["window_first"].numpy()[index["video_window"].numpy()]
    blocks = np.searchsorted(index["block_first"].numpy(), first, side="right") - 1
    return [int(number) for number in index["block_file"].numpy()[blocks]]


def _check_manifest(path: Path, info: dict[str, Any]) -> None:
    """Raise a DictionaryError that says what is wrong with a manifest."""
    keys = info.get("videos")
    if not isinstance(keys, list) or not all(map(is_name, keys)):
        raise DictionaryError(f"{path}: damaged: `videos` is not a list of names")
    if not keys:
        raise DictionaryError(f"{path.parent}: the dictionary holds no video")
    kinds = {"config": dict, "failed": dict, "twinless": dict, "left_out": list}
    for key, expected in kinds.items():
        if not isinstance(info.get(key), (expected, type(None))):
            raise DictionaryError(f"{path}: damaged: `{key}` is {info[key]!r}")
    if info["version"] < _PACKED:
        return
    names, packs = info.get("names"), info.get("packs")
    if not isinstance(packs, list) or not all(map(is_name, packs)):
        raise DictionaryError(f"{path}: damaged: `packs` is not a list of names")
    text = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not isinstance(names, list) or not text or len(names) != len(keys):
        raise DictionaryError(f"{path}: damaged: `names` are not those of {len(keys)} videos")
    if not isinstance(info.get("fingerprint"), str):
        raise DictionaryError(f"{path}: damaged: `fingerprint` is {info.get('fingerprint')!r}")
