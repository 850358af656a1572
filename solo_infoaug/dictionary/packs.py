"""Which videos of a dictionary are finished, and how finished ones come together into packs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from solo_infoaug.dictionary.files import FolderFiles, PackFiles, PackWriter, PartFiles, keys_in
from solo_infoaug.dictionary.format import PACKS, PARTS, RECORD, TWINLESS, parse_json

# A pack is closed once it holds this many bytes, or videos.
PACK_BYTES, _PACK_VIDEOS = 2**28, 1024

_PACK = re.compile(r"\d{5,}\.zip")


class Finished:
    """The finished videos in a folder: in packs, or in `parts` until there are enough for a pack.

    If a video is in both, or in two packs, the one that was finished last counts.
    """

    def __init__(self, out: Path, packs: bool = True) -> None:
        self.out = out
        self._packed: dict[str, PartFiles] = {}
        for pack in self.packs() if packs else ():
            self.note(pack)

    def packs(self) -> list[Path]:
        """The packs, in the order in which they were closed."""
        return packs_in(self.out)

    def note(self, pack: Path) -> None:
        """That there is a new pack."""
        self._packed |= {key: PackFiles(pack, key) for key in keys_in(pack)}

    def packed(self, key: str) -> PartFiles | None:
        """A video's files in a pack, if it is in one."""
        return self._packed.get(key)

    def waiting(self, key: str) -> PartFiles | None:
        """A video's files in `parts`, if they are there."""
        path = self.out / PARTS / f"{key}.zip"
        if path.is_file():
            return PackFiles(path, key)
        folder = self.out / PARTS / key  # of format 3
        there = any((folder / name).is_file() for name in (RECORD, TWINLESS))
        return FolderFiles(folder) if there else None

    def files(self, key: str) -> PartFiles | None:
        """A video's files, if it is finished; one without a twin has TWINLESS among them."""
        return self.waiting(key) or self.packed(key)

    def is_mined(self, key: str) -> bool:
        """Whether it is finished and part of the dictionary."""
        files = self.files(key)
        return files is not None and RECORD in files.names()

    def twinless(self, key: str) -> dict[str, Any] | None:
        """The record of a video in which no patch has a twin; None for other videos."""
        files = self.files(key)
        if files is None or TWINLESS not in files.names():
            return None
        return parse_json(files.read(TWINLESS), files.label / TWINLESS)

    def forget(self, wanted: Callable[[str], bool]) -> None:
        """Remove packs that hold none of the wanted videos."""
        for pack in self.packs():
            if not any(map(wanted, keys_in(pack))):
                pack.unlink()
        self._packed = {}
        for pack in self.packs():
            self.note(pack)


class Packer:
    """Puts finished videos into packs, in the order in which they are added.

    A pack appears when it is complete. Only then are its videos removed from `parts`, so a kill at
    any moment loses nothing. Videos in a pack are not packed again.
    """

    def __init__(self, finished: Finished) -> None:
        self._finished = finished
        self._videos: dict[str, PartFiles] = {}
        self._bytes = 0

    def add(self, key: str, files: PartFiles | None = None) -> None:
        """The next video: one that waits in `parts`, or the given files of another dictionary."""
        ours = self._finished.waiting(key)
        packed = self._finished.packed(key)
        if ours is not None and packed is not None and _same(ours, packed):
            _remove(ours)  # left there by a kill
            ours = None
        chosen = files or ours
        if chosen is None or key in self._videos:
            return
        self._videos[key] = chosen
        self._bytes += sum(chosen.where(name).size for name in chosen.names())
        if self._bytes >= PACK_BYTES or len(self._videos) >= _PACK_VIDEOS:
            self.close()

    def close(self) -> None:
        """Close the pack, if there is anything for one."""
        if not self._videos:
            return
        last = self._finished.packs()[-1:]
        number = int(last[0].stem) + 1 if last else 0
        path = self._finished.out / PACKS / f"{number:05d}.zip"
        write_pack(path, self._videos)
        self._finished.note(path)
        for files in self._videos.values():
            if files.label.is_relative_to(self._finished.out / PARTS):
                _remove(files)
        self._videos, self._bytes = {}, 0


def packs_in(out: Path) -> list[Path]:
    """The packs of a dictionary, in the order in which they were closed."""
    folder = out / PACKS
    found = folder.iterdir() if folder.is_dir() else ()
    ours = (path for path in found if _PACK.fullmatch(path.name))
    return sorted(ours, key=lambda path: int(path.stem))


def write_pack(path: Path, videos: Mapping[str, PartFiles]) -> None:
    """Write a pack of some videos' files. Crops come first, so that they can be had alone."""
    writer = PackWriter(path)
    try:
        for crops in (True, False):
            for key, files in videos.items():
                for name in files.names():
                    if name.startswith("pixels-") == crops:
                        writer.copy(files, key, name)
        writer.publish()
    finally:
        writer.discard()


def _same(one: PartFiles, other: PartFiles) -> bool:
    """Whether two videos are the same, by their records, which hold the hashes of their files."""
    if one.names() != other.names():
        return False
    records = [name for name in one.names() if name in (RECORD, TWINLESS)]
    return all(one.read(name) == other.read(name) for name in records)


def _remove(files: PartFiles) -> None:
    """Remove a video from `parts`, including the folder of an earlier format."""
    folder = files.label
    if isinstance(files, PackFiles):
        files.pack.unlink(missing_ok=True)
        folder = files.pack.with_name(files.key)
    shutil.rmtree(folder, ignore_errors=True)


def pack_waiting(finished: Finished, keys: Iterable[str]) -> None:
    """Pack those of `keys` that wait in `parts`, in this order."""
    packer = Packer(finished)
    for key in keys:
        packer.add(key)
    packer.close()
    folder = finished.out / PARTS
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
