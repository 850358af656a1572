"""The bytes of a video that is not a local file: fetched or read in pieces, hashed on the way."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol

from solo_infoaug.errors import VideoError
from solo_infoaug.mining.stores import BLOCK, IN_MEMORY, Remote, RemoteFile, fetch


class Readable(Protocol):
    """A binary file that can be read anywhere."""

    def read(self, size: int = -1, /) -> bytes:
        """See io.RawIOBase."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """See io.RawIOBase."""


class Content:
    """A video's bytes: `open` gives a file with them, as often as needed.

    It stands where a path does: it has a name and a stem, and its text says where it is from.
    `failure` is why reading failed, if it did: FFmpeg takes that for the end of a video.
    """

    def __init__(self, where: str, digest: str, make: Callable[[], Any]) -> None:
        self._where, self.digest, self._make = where, digest, make
        self._path = PurePosixPath(where.rpartition("/")[2] or "video")
        self.failure: VideoError | None = None

    def __str__(self) -> str:
        return self._where

    @property
    def name(self) -> str:
        """The file's name."""
        return self._path.name

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return self._path.stem

    def open(self) -> BinaryIO:
        """A file to decode, named as FFmpeg needs it to judge by the ending."""
        return _Watched(self._make(), self)  # type: ignore[return-value]


class _Watched:
    """A file that FFmpeg reads: what reading raises is also kept."""

    def __init__(self, file: Readable, content: Content) -> None:
        self._file, self._content, self.name = file, content, content.name
        self.seek = file.seek

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except VideoError as error:
            self._content.failure = error
            raise
        except OSError as error:
            self._content.failure = VideoError(f"{self._content}: cannot be read: {error.strerror}")
            raise self._content.failure from error


class Slice:
    """The part of a file from `start` on, `size` bytes, as a file of its own."""

    def __init__(self, file: Readable, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See io.RawIOBase."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes."""
        left = max(0, self._size - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def digest_of(file: Readable) -> str:
    """SHA-256 of all that is in a file, read in pieces."""
    together = hashlib.sha256()
    while data := file.read(BLOCK):
        together.update(data)
    return together.hexdigest()


def in_memory(where: str, data: bytes) -> Content:
    """A video of which everything is here."""
    return Content(where, hashlib.sha256(data).hexdigest(), lambda: io.BytesIO(data))


def remote_content(remote: Remote) -> Content:
    """A video in a store: fetched, or if it is large only hashed, and read again in pieces."""
    if remote.size is None or remote.size <= IN_MEMORY:
        return in_memory(str(remote), fetch(remote))
    return Content(str(remote), digest_of(RemoteFile(remote)), lambda: RemoteFile(remote))
