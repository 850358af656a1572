"""Where the files of a video lie: in a folder of its own, or one after the other in a pack."""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from solo_infoaug._files import reason_of
from solo_infoaug.errors import DictionaryError

# The lists of members of this many packs stay in memory.
_PACKS_IN_MIND = 8
# Before the data of a member comes its header: this, its name, and fields that may be empty.
_HEADER = 30


@dataclass(frozen=True)
class Stretch:
    """`size` bytes of a file, from `start` on; `label` is how messages call them."""

    path: Path
    start: int
    size: int
    label: Path


class PartFiles(Protocol):
    """The files of one video, by their names in format 3 (`windows/0000.jpg`)."""

    @property
    def label(self) -> Path:
        """What messages call the place."""

    def names(self) -> list[str]:
        """What is there, sorted."""

    def read(self, name: str) -> bytes:
        """A file's content; a DictionaryError if it is missing or damaged."""

    def where(self, name: str) -> Stretch:
        """Where a file's content lies; a DictionaryError if it is missing or damaged."""


@dataclass(frozen=True)
class FolderFiles:
    """A folder: formats 2 and 3."""

    label: Path

    def names(self) -> list[str]:
        """As `PartFiles` says, as do the following."""
        found = (path for path in self.label.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.label).as_posix() for path in found)

    def read(self, name: str) -> bytes:  # noqa: D102
        path = self.label / name
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise DictionaryError(f"{path}: missing") from error
        except OSError as error:
            raise DictionaryError(f"{path}: cannot be read: {error.strerror}") from error

    def where(self, name: str) -> Stretch:  # noqa: D102
        path = self.label / name
        try:
            return Stretch(path, 0, path.stat().st_size, path)
        except OSError as error:
            raise DictionaryError(f"{path}: missing") from error


@dataclass(frozen=True)
class PackFiles:
    """The members KEY/… of a ZIP file in which nothing is compressed: format 4."""

    pack: Path
    key: str

    @property
    def label(self) -> Path:
        """`PACK.zip/KEY`."""
        return self.pack / self.key

    def names(self) -> list[str]:
        """As `PartFiles` says, as do the following."""
        return sorted(_opened(self.pack).videos.get(self.key, {}))

    def read(self, name: str) -> bytes:  # noqa: D102
        stretch = self.where(name)
        with _damaged(self.pack):
            return _opened(self.pack).file.read(f"{self.key}/{name}")  # which looks at its CRC
        raise AssertionError(stretch)

    def where(self, name: str) -> Stretch:  # noqa: D102
        opened = _opened(self.pack)
        member = opened.videos.get(self.key, {}).get(name)
        label = self.label / name
        if member is None:
            raise DictionaryError(f"{label}: missing")
        with _damaged(self.pack):
            return Stretch(self.pack, opened.start(member), member.file_size, label)
        raise AssertionError(label)


class _Opened:
    """An open pack, and its members by video."""

    def __init__(self, path: Path) -> None:
        self.file = zipfile.ZipFile(path)
        self.size = path.stat().st_size
        self.videos: dict[str, dict[str, zipfile.ZipInfo]] = {}
        for member in self.file.infolist():
            key, _, name = member.filename.partition("/")
            self.videos.setdefault(key, {})[name] = member

    def start(self, member: zipfile.ZipInfo) -> int:
        """Where a member's data begins."""
        stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        if not stored or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} is compressed")
        # A position of its own: `ZipFile` moves its one
        with open(self.file.filename or "", "rb") as file:
            file.seek(member.header_offset)
            header = file.read(_HEADER)
        if len(header) < _HEADER or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{member.filename} has no header")
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = member.header_offset + _HEADER + name + extra
        if start + member.file_size > self.size:
            raise ValueError(f"{member.filename} is cut off")
        return start


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Inside, errors of reading a pack become a DictionaryError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DictionaryError(f"{path}: missing") from error
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, LookupError) as error:
        # NotImplementedError, of what ZIP files may be and packs are not, is a RuntimeError
        raise DictionaryError(f"{path}: damaged: {reason_of(error)}") from error


def _opened(path: Path) -> _Opened:
    with _damaged(path):
        state = path.stat()
        return _open(path, state.st_mtime_ns, state.st_size)
    raise AssertionError(path)


@functools.lru_cache(maxsize=_PACKS_IN_MIND)
def _open(path: Path, *state: int) -> _Opened:
    return _Opened(path)


def keys_in(pack: Path) -> list[str]:
    """The videos in a pack, in their order; a DictionaryError if it is missing or damaged."""
    return list(_opened(pack).videos)


class PackWriter:
    """Writes members into the pack `path`, which appears when it is complete.

    Equal members give equal bytes. If the `with` block raises, nothing remains.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fresh = path.with_name(f".{path.name.removesuffix('.zip')}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._fresh.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w")
        self.size = 0

    @contextmanager
    def member(self, name: str, size: int) -> Iterator[BinaryIO]:
        """A file to write the `size` bytes of a member to."""
        info = zipfile.ZipInfo(name)  # of 1980: no times
        info.create_system = 3
        info.file_size = size
        with self._zip.open(info, "w") as file:
            yield file  # type: ignore[misc]
        self.size += size

    def write(self, name: str, data: bytes) -> None:
        """A member."""
        with self.member(name, len(data)) as file:
            file.write(data)

    def copy(self, files: PartFiles, key: str, name: str) -> None:
        """A video's file as the member KEY/NAME; a DictionaryError if it is damaged."""
        stretch = files.where(name)
        with self.member(f"{key}/{name}", stretch.size) as out, stretch.path.open("rb") as file:
            file.seek(stretch.start)
            left = stretch.size
            while left:
                # Small enough for the second-level cache and for memory that is used again
                data = file.read(min(left, 1 << 18))
                if not data:
                    raise DictionaryError(f"{stretch.label}: damaged: it is cut off")
                out.write(data)
                left -= len(data)

    def publish(self) -> None:
        """Rename the pack once all of it is on the disk."""
        self._zip.close()
        publish(self._file, self._fresh, self._path)

    def discard(self) -> None:
        """Leave nothing behind, if it has not been published."""
        if not self._file.closed:
            self._file.close()  # `ZipFile` would write its list of members
        self._fresh.unlink(missing_ok=True)


def publish(file: BinaryIO, fresh: Path, path: Path) -> None:
    """Close a file that was written as `fresh`, and rename it to `path`.

    A kill or a loss of power never leaves half a file.
    """
    file.flush()
    os.fsync(file.fileno())
    file.close()
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:  # some file systems sync no folders
        pass
    finally:
        os.close(folder)
