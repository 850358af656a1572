"""Where solo-infoaug keeps things between runs: the user's cache directory.

`SOLO_INFOAUG_CACHE` names another directory.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

_LAST = "last-dictionary"


def cache_dir() -> Path:
    """The cache directory; made by whoever writes to it first."""
    named = os.environ.get("SOLO_INFOAUG_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("solo-infoaug"))


def remember_dictionary(path: str | os.PathLike[str]) -> None:
    """Note `path` as the dictionary that was mined last; `infoaug: true` falls back on it."""
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    note = directory / _LAST
    fresh = note.with_suffix(f".{os.getpid()}")
    fresh.write_text(str(Path(path).resolve()), encoding="utf-8")
    fresh.replace(note)


def last_dictionary() -> Path | None:
    """The dictionary that was mined last, or None if there was none or it has gone."""
    note = cache_dir() / _LAST
    if not note.is_file():
        return None
    path = Path(note.read_text(encoding="utf-8").strip())
    return path if path.is_dir() else None
