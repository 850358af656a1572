"""Tar shards of videos, as WebDataset has them: read from front to back, nothing is unpacked.

What cannot be read, or ends in the middle, is a VideoError.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from solo_infoaug.errors import VideoError
from solo_infoaug.mining.content import Content, Slice, digest_of, in_memory
from solo_infoaug.mining.search import EXTENSIONS, Patterns, passed_over
from solo_infoaug.mining.stores import IN_MEMORY, Remote, RemoteFile

SUFFIX = ".tar"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Shard:
    """A tar file of videos, on this disk or in a store; `exclude` are patterns."""

    place: Path | Remote
    exclude: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.place)

    @property
    def name(self) -> str:
        """The tar's name."""
        return self.place.name


@dataclass
class Passed:
    """What in a shard is not mined: how many of each ending, and by each pattern."""

    endings: Counter[str] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, dict[str, int]]:
        """For the ledger."""
        return {"endings": dict(self.endings), "excluded": dict(self.excluded)}


@dataclass(frozen=True)
class Member:
    """A video in a shard: its path there, and where its bytes are."""

    name: str
    start: int
    size: int


def is_shard(name: str) -> bool:
    """Whether a file is a tar of videos, by its name.

    Raises:
        VideoError: it is a compressed one, of which no part can be read alone.
    """
    if name.lower().endswith(_PACKED):
        raise VideoError(f"{name}: a compressed tar cannot be read in parts; expected .tar")
    return name.lower().endswith(SUFFIX)


@contextmanager
def opened(shard: Shard) -> Iterator[Any]:
    """The shard's file."""
    if isinstance(shard.place, Remote):
        yield RemoteFile(shard.place)
        return
    try:
        with shard.place.open("rb") as file:
            yield file
    except OSError as error:
        raise VideoError(f"{shard}: cannot be read: {error.strerror or error}") from error


def members(shard: Shard, file: Any, passed: Passed) -> Iterator[Member]:
    """The videos in a shard, in its order; what else is there is counted in `passed`."""
    size = file.seek(0, 2)
    file.seek(0)
    patterns = Patterns(shard.exclude)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # they would stay in memory
                if not entry.isreg() or entry.issparse():
                    continue
                if entry.offset_data + entry.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                if _is_video(entry.name, patterns, passed):
                    yield Member(entry.name, entry.offset_data, entry.size)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0") or file.tell() == tar.offset:
                raise tarfile.ReadError("no end mark")
    except tarfile.TarError as error:
        raise VideoError(f"{shard}: {_damage(error)}") from None
    passed.excluded.update(patterns.counted())


def content(shard: Shard, file: Any, member: Member) -> Content:
    """A video of a shard, fetched where it is small; of a local shard nothing is kept."""
    where = f"{shard}/{member.name}"
    if isinstance(shard.place, Remote):
        remote = shard.place
        if member.size <= IN_MEMORY:
            return in_memory(where, Slice(file, member.start, member.size).read())
        return Content(
            where,
            digest_of(Slice(file, member.start, member.size)),
            lambda: Slice(RemoteFile(remote), member.start, member.size),
        )
    local = _Local(shard.place)
    digest = digest_of(Slice(file, member.start, member.size))
    return Content(where, digest, lambda: Slice(local, member.start, member.size))


class _Local:
    """A file on this disk that is opened when it is read, so that nobody need close it."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._at)
            return file.read(size)


def _is_video(name: str, patterns: Patterns, passed: Passed) -> bool:
    path = PurePosixPath(name)
    if (kind := passed_over(path.parts)) is not None:
        passed.endings[kind] += 1
        return False
    if path.suffix.lower() not in EXTENSIONS:
        passed.endings[path.suffix.lower() or "without ending"] += 1
        return False
    folders = path.parts[:-1]
    for depth in range(1, len(folders) + 1):
        if patterns.leave_out(folders[depth - 1], "/".join(folders[:depth]), folder=True):
            return False
    return not patterns.leave_out(path.name, str(path))


def _damage(error: tarfile.TarError) -> str:
    if re.search("end|truncated|empty header", str(error)):
        return "the tar ends in the middle; what lies before that is mined"
    return f"is no tar file: {error}"


def notes(passed: Sequence[Passed], shards: int) -> list[str]:
    """A line on what was passed over in all shards together, and one a pattern."""
    endings: Counter[str] = Counter()
    excluded: Counter[str] = Counter()
    for one in passed:
        endings.update(one.endings)
        excluded.update(one.excluded)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(endings.items()))
    found = [f"{shards} tar shards: left out what is not known as video: {kinds}"] if kinds else []
    found += [
        f"excluded by {pattern!r} in tar shards: {count} files"
        for pattern, count in sorted(excluded.items())
    ]
    return found
