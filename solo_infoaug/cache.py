"""What solo-infoaug keeps between runs, in the user's cache directory: which dictionary was mined.

Only the command `solo-infoaug mine` writes here; the library never does. `SOLO_INFOAUG_CACHE` names
another directory.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import platformdirs

from solo_infoaug import __version__
from solo_infoaug.errors import DictionaryError

_NOTE = "mined-dictionary.json"


def cache_dir() -> Path:
    """The cache directory; made by whoever writes to it first."""
    named = os.environ.get("SOLO_INFOAUG_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("solo-infoaug"))


@dataclass(frozen=True)
class Remembered:
    """The dictionary that the command `solo-infoaug mine` made last, as it was then."""

    path: str
    fingerprint: str
    version: str
    """Of the solo-infoaug that mined it."""
    at: str
    """When, to the second."""


def remember_dictionary(path: str | os.PathLike[str]) -> None:
    """Note the dictionary in `path`, which the user has just mined, for `infoaug: true`.

    Raises:
        DictionaryError: there is none.
        OSError: the cache directory cannot be written.
    """
    from solo_infoaug.dictionary import TwinDictionary

    remembered = Remembered(
        path=str(Path(path).resolve()),
        fingerprint=TwinDictionary.load(path).fingerprint,
        version=__version__,
        at=datetime.now().isoformat(" ", "seconds"),
    )
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    note = directory / _NOTE
    fresh = note.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(asdict(remembered)), encoding="utf-8")
    fresh.replace(note)


def last_dictionary() -> Remembered | None:
    """What was remembered last, whether it is still there or not; None if nothing ever was.

    Raises:
        DictionaryError: the note cannot be read.
    """
    note = cache_dir() / _NOTE
    try:
        return Remembered(**json.loads(note.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DictionaryError(
            f"{note}: cannot be read ({error}); remove it, and name the dictionary: "
            "infoaug.twins=TWINS"
        ) from error
