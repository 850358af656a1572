"""A dictionary in a bucket: its index comes whole, its packs when they are needed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from solo_infoaug._files import digest, reason_of
from solo_infoaug.cache import cache_dir
from solo_infoaug.dictionary.files import publish
from solo_infoaug.dictionary.format import INDEX, MANIFEST, PACKS, parse_json
from solo_infoaug.errors import ConfigError, DictionaryError

_PIECE = 8 << 20
# Seconds between the attempts to fetch a file.
_PATIENCE = (1.0, 10.0)


def is_url(place: object) -> bool:
    """Whether a place is named by a URL that fsspec opens, and not by a path."""
    return isinstance(place, str) and "://" in place


class Bucket:
    """The files of a dictionary at a URL, and the local folder that caches them.

    All runs of a user share the folder, and the processes of a run fetch each file once. When the
    folder, which may take `room` bytes, is full, the file that was used least recently is deleted.

    Raises:
        DictionaryError: there is no dictionary, or it cannot be reached.
    """

    def __init__(self, url: str, room: int) -> None:
        self.url, self._room = url.rstrip("/"), room
        self.sizes: Sequence[int] = ()
        self.packs: Sequence[str] = ()
        self._ahead: threading.Thread | None = None
        from fsspec.core import url_to_fs  # late: a dictionary on this disk does not need it

        try:
            self._system, self._root = url_to_fs(self.url)
            manifest = self._attempts(MANIFEST, lambda path: self._system.cat_file(path))
        except FileNotFoundError as error:
            raise DictionaryError(
                f"{self.url} holds no finished twin dictionary ({MANIFEST} is missing): copy one "
                "there with all its files"
            ) from error
        except (ImportError, ValueError, OSError) as error:  # the protocol, what it needs, access
            raise DictionaryError(f"{self.url}: cannot be read: {_line(error)}") from error
        self.info = parse_json(manifest, Path(f"{self.url}/{MANIFEST}"))
        self._cache = _folder()
        self.folder = self._cache / digest([self.url, manifest.decode("utf-8", "replace")])
        try:
            (self.folder / PACKS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DictionaryError(
                f"{self.folder}: cannot be written: {reason_of(error)}"
            ) from error

    def index(self) -> Path:
        """The index, which is never deleted."""
        path = self.folder / INDEX
        self._have(path, INDEX, None)
        return path

    def hold(self, packs: Sequence[str], sizes: Sequence[int]) -> int:
        """Note the packs and their sizes; returns how many bytes of packs fit.

        Raises:
            ConfigError: there is no room for two packs.
        """
        self.packs, self.sizes = packs, sizes
        index = (self.folder / INDEX).stat().st_size
        least = index + 2 * max(sizes)
        if self._room < least:
            raise ConfigError(
                f"infoaug.cache_gb: expected at least {least / 1e9:.3g}, for the index and two "
                f"packs of {self.url}, got {self._room / 1e9:.3g}"
            )
        self._evict(0)  # another run may have had more room
        return self._room - index

    def pack(self, number: int) -> Path:
        """A pack's crops, fetched if they are not here."""
        name, size = self.packs[number], self.sizes[number]
        path = self.folder / PACKS / name
        self._have(path, f"{PACKS}/{name}", size)
        return path

    def fetch_ahead(self, packs: Sequence[int]) -> None:
        """Begin to fetch the packs that are needed next. A failed one is tried again when it is
        needed."""

        def work() -> None:
            with suppress(DictionaryError):
                for number in packs:
                    self.pack(number)

        if self._ahead is not None:
            self._ahead.join()  # it was fetching what is needed now
        self._ahead = threading.Thread(target=work, name="infoaug-fetch", daemon=True)
        self._ahead.start()

    def _have(self, path: Path, name: str, size: int | None) -> None:
        """Fetch the first `size` bytes of a file, or all, unless they are here."""
        with suppress(OSError):
            os.utime(path)  # used just now
            return
        try:
            with FileLock(path.with_name(f".{path.name}.lock")):
                if path.is_file():
                    return
                self._evict(size or 0)
                self._attempts(name, lambda place: self._fetch(place, path, size))
        except OSError as error:
            raise DictionaryError(
                f"{self.url}/{name}: cannot be fetched: {_line(error)}"
            ) from error

    def _fetch(self, place: str, path: Path, size: int | None) -> None:
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        wanted = self._system.size(place) if size is None else size
        left = wanted
        try:
            with (
                self._system.open(place, "rb", block_size=_PIECE) as source,
                fresh.open("wb") as file,
            ):
                while left and (piece := source.read(min(left, _PIECE))):
                    file.write(piece)
                    left -= len(piece)
                if left:
                    raise DictionaryError(f"{self.url}: {path.name} is shorter than its index says")
                publish(file, fresh, path)
        finally:
            fresh.unlink(missing_ok=True)

    def _attempts(self, name: str, work: Callable[[str], Any]) -> Any:
        """`work` with a file's path, repeated if the network fails for a while."""
        place = f"{self._root}/{name}"
        waits = iter(_PATIENCE)
        while True:
            try:
                return work(place)
            except (FileNotFoundError, PermissionError, ImportError, DictionaryError):
                raise
            except Exception as error:  # each protocol has its own
                wait = next(waits, None)
                if wait is None:
                    raise DictionaryError(
                        f"{self.url}/{name}: cannot be fetched: {_line(error)}"
                    ) from error
            time.sleep(wait)

    def _evict(self, more: int) -> None:
        """Make room for `more` bytes; the index of this dictionary stays."""
        found = []
        for path in self._cache.rglob("[!.]*"):
            with suppress(OSError):
                if path.is_file() and path != self.folder / INDEX:
                    found.append((path.stat().st_mtime_ns, path, path.stat().st_size))
        index = self.folder / INDEX
        taken = more + sum(size for _, _, size in found)
        taken += index.stat().st_size if index.is_file() else 0
        for _, path, size in sorted(found):
            if taken <= self._room:
                break
            path.unlink(missing_ok=True)
            taken -= size


def _folder() -> Path:
    try:
        return cache_dir() / "buckets"
    except OSError as error:
        raise DictionaryError(
            f"the cache for a dictionary in a bucket: {reason_of(error)}"
        ) from error


def _line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(reason_of(error).split())
