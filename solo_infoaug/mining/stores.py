"""Videos in object stores and on web servers: what is there, and its bytes, through fsspec.

fsspec and what it needs for a store are imported when a URL is given, and credentials are what
these find in the environment. A URL may hold secrets (a signature, a password): `shown` is what of
it may be printed or stored, and no message of another library is passed on as it is. What cannot
be had is a StoreError.
"""

from __future__ import annotations

import functools
import io
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from posixpath import basename
from typing import Any, TypeVar

from solo_infoaug._files import reason_of
from solo_infoaug.errors import ConfigError, VideoError

T = TypeVar("T")

# How often an operation is tried; seconds before the second time, which double before each further
# one; and their maximum.
TRIES, FIRST_WAIT, LONGEST_WAIT = 5, 1.0, 30.0
# What a store is asked for at a time, and how much of it a file that is read in pieces keeps.
BLOCK, _KEPT = 4 << 20, 4
# Larger videos are not fetched as a whole, but read in pieces, twice: hashed, then decoded.
IN_MEMORY = 256 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
# Of what a store says of a file: the first of these says whether it is still the same.
_TAGS = (
    *("ETag", "etag", "blob_id", "md5Hash", "checksum", "LastModified", "mtime", "last_modified"),
    *("updated", "created"),
)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf"}
# What no store raises: the libraries for stores have errors of their own, of no common kind.
_NOT_OF_STORES = (
    *(AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, TypeError),
    *(NotImplementedError, RecursionError),
)
_DENIED, _MISSING = frozenset({401, 403}), frozenset({404, 410})


class StoreError(VideoError):
    """A store does not give what it was asked for, however often."""


def is_url(text: str) -> bool:
    """Whether a source is no local path."""
    return _URL.match(text) is not None


def shown(url: str) -> str:
    """A URL without what may be secret: user and password, query, fragment."""
    protocol, separator, rest = url.partition("://")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{protocol}{separator}{host.rpartition('@')[2]}{slash}{path}"


def scrubbed(text: str) -> str:
    """A text with each URL in it as `shown` has it, on one line."""
    text = re.sub(r"[A-Za-z][A-Za-z0-9+.\-]+://[^\s'\"<>]+", lambda m: shown(m[0]), text)
    return " ".join(text.split())[:300]


@dataclass(frozen=True)
class Remote:
    """A file in a store. Its text is the URL without secrets, and so are messages about it."""

    url: str = field(repr=False)
    size: int | None
    tag: str
    """ETag, or time of the last change; empty where the store says neither."""

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        """The file's name."""
        return basename(shown(self.url))


def listing(url: str) -> tuple[list[Remote], bool]:
    """The file at a URL, or all files below it, sorted; and whether it is a folder.

    Raises:
        StoreError: there is nothing, or the store does not answer.
        ConfigError: nothing here reads such URLs.
    """
    fs, path = _filesystem(url)
    info = {"type": "directory"}
    try:
        if not url.endswith("/"):
            info = _patiently(lambda: fs.info(path), url)
    except FileNotFoundError:
        raise StoreError(f"{shown(url)}: no such file or folder in the store") from None
    if info["type"] != "directory":
        return [_remote(url, info)], False
    try:
        there = _patiently(lambda: fs.find(path, detail=True), url)
    except FileNotFoundError:
        there = {}
    return [_remote(_full(fs, url, name), there[name]) for name in sorted(there)], True


def matching(url: str) -> list[Remote]:
    """The files that a URL with `*`, `?` or `[…]` in its path stands for, sorted."""
    fs, path = _filesystem(url)
    try:
        there = _patiently(lambda: fs.glob(path, detail=True), url)
    except FileNotFoundError:
        there = {}
    return [
        _remote(_full(fs, url, name), info)
        for name, info in sorted(there.items())
        if info["type"] != "directory"
    ]


def fetch(remote: Remote) -> bytes:
    """All bytes of a file, in pieces, so that a cut connection costs one piece."""
    if remote.size is None:
        fs, path = _filesystem(remote.url)
        return _found(lambda: fs.cat_file(path), remote)
    whole = io.BytesIO()
    for start in range(0, remote.size, BLOCK):
        data = read_range(remote, start, min(start + BLOCK, remote.size), or_all=True)
        if len(data) == remote.size:  # the server knows no ranges
            return data
        whole.write(data)
    return whole.getvalue()  # shares its memory with what was written


def read_range(remote: Remote, start: int, stop: int, or_all: bool = False) -> bytes:
    """The bytes from `start` to `stop`; with `or_all`, all where a server gives no less."""
    fs, path = _filesystem(remote.url)
    # Others than the asynchronous ones (S3, GCS, http) would read ahead, for nothing
    exactly = {} if getattr(fs, "async_impl", False) else {"cache_type": "none"}

    def read() -> bytes:
        data: bytes = fs.cat_file(path, start=start, end=stop, **exactly)
        if len(data) == stop - start or (or_all and len(data) == remote.size):
            return data
        if len(data) == remote.size:
            raise StoreError(
                f"{remote}: the server gives no parts of files, which is needed to read tar shards "
                f"and videos of more than {IN_MEMORY >> 20} MiB"
            )
        raise ConnectionResetError(f"{len(data)} of {stop - start} bytes came")

    return _found(read, remote)


def _found(do: Callable[[], T], remote: Remote) -> T:
    try:
        return _patiently(do, remote.url)
    except FileNotFoundError:
        raise StoreError(f"{remote}: is no longer in the store") from None


class RemoteFile(io.RawIOBase):
    """A file in a store, to be read anywhere: in pieces, the last few of which are kept."""

    def __init__(self, remote: Remote) -> None:
        if remote.size is None:
            raise StoreError(f"{remote}: the server does not say how large it is")
        self.remote, self.size = remote, remote.size
        self._at = 0
        self._block = functools.lru_cache(_KEPT)(self._read_block)

    @property
    def name(self) -> str:
        """What FFmpeg takes the ending from."""
        return self.remote.name

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See io.IOBase."""
        self._at = max(0, offset + (0, self._at, self.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or as much of it as there are bytes left."""
        start, stop = self._at, min(self._at + len(buffer), self.size)
        while self._at < stop:
            number, skipped = divmod(self._at, BLOCK)
            part = self._block(number)[skipped : skipped + stop - self._at]
            buffer[self._at - start : self._at - start + len(part)] = part
            self._at += len(part)
        return self._at - start

    def _read_block(self, number: int) -> bytes:
        start = number * BLOCK
        return read_range(self.remote, start, min(start + BLOCK, self.size))


def _filesystem(url: str) -> tuple[Any, str]:
    """The store of a URL, and what it calls the file."""
    from fsspec.core import url_to_fs
    from fsspec.registry import get_filesystem_class

    protocol = url.partition("://")[0]
    try:
        get_filesystem_class(protocol)
    except ImportError:
        extra = _EXTRAS.get(protocol)
        what = f'"solo-infoaug[{extra}]"' if extra else f"fsspec's package for {protocol}://"
        raise ConfigError(
            f"{shown(url)}: needs a package that is not installed: pip install {what}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{shown(url)}: cannot be read: {scrubbed(str(error))}") from None
    # Some ask the store for this already. The files of a large one are not to stay in memory.
    return _patiently(lambda: url_to_fs(url, use_listings_cache=False), url)


def _full(fs: Any, url: str, name: str) -> str:
    """The URL of what a store that `url` names calls `name`."""
    return name if is_url(name) else f"{url.partition('://')[0]}://{fs._strip_protocol(name)}"


def _remote(url: str, info: dict[str, Any]) -> Remote:
    size = info.get("size")
    tag = next((f"{name} {info[name]}" for name in _TAGS if info.get(name)), "")
    return Remote(url, None if size is None else int(size), tag)


def _patiently(do: Callable[[], T], url: str) -> T:
    """What `do` returns, which is tried again while a store or the way to it fails.

    Raises:
        FileNotFoundError: the store says that it is not there.
        StoreError: it fails each time, or takes the URL for a wrong one.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return do()
        except StoreError:
            raise
        except Exception as error:
            if isinstance(error, ValueError) and not isinstance(error, OSError):
                raise StoreError(f"{shown(url)}: {scrubbed(str(error))}") from None
            if _is_missing(error) or isinstance(error, _NOT_OF_STORES):
                raise
            why, denied = _reason(error)
            if attempt == TRIES or (denied and attempt > 1):
                raise StoreError(f"{shown(url)}: {why} (tried {attempt} times)") from None
        # up to half as long again, so that workers do not meet
        time.sleep(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * random.uniform(1, 1.5))
    raise AssertionError  # the last attempt returns or raises


def _is_missing(error: Exception) -> bool:
    """Whether a store says that there is no such file; fsspec says so too if nobody answers."""
    cause = error.__cause__
    return isinstance(error, FileNotFoundError) and (cause is None or _status(cause) in _MISSING)


def _reason(error: BaseException) -> tuple[str, bool]:
    """Why an operation failed, in words without secrets; and whether access is denied."""
    status = _status(error)
    if status in _DENIED or isinstance(error, PermissionError):
        said = f" ({status})" if status else ""
        return f"the store denies access{said}: check the credentials in the environment", True
    if status is not None:
        return f"the store answers {status}", False
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "the store does not answer in time", False
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _reason(error.__cause__)
    if re.search("Payload|IncompleteRead|Disconnected|Reset|Aborted", type(error).__name__):
        return "the connection ends too early", False
    return scrubbed(f"{type(error).__name__}: {reason_of(error)}"), False


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error, or what caused it, is about."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):  # botocore
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(error, "status", None) or getattr(answer, "status_code", None)
        if isinstance(status, int) and status > 400:  # aiohttp takes 400 for what was cut off
            return status
        error = error.__cause__
    return None
