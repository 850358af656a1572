"""The user's cache directory, which keeps between runs which dictionary was mined.

Only the command `solo-infoaug mine` writes here; the library never does. `SOLO_INFOAUG_CACHE` names
another directory.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import platformdirs

from solo_infoaug import __version__
from solo_infoaug._files import write_text
from solo_infoaug.errors import DictionaryError

_NOTE = "mined-dictionary.json"


def cache_dir() -> Path:
    """The cache directory; the first writer makes it.

    Raises:
        OSError: the user has no home, as in some containers.
    """
    if named := os.environ.get("SOLO_INFOAUG_CACHE"):
        return Path(named)
    try:
        folder = Path(platformdirs.user_cache_dir("solo-infoaug"))
    except RuntimeError:  # platformdirs' error for no home
        folder = Path("~")
    if not folder.is_absolute():  # older ones return ~/.cache, which would be made here
        raise OSError(errno.ENOENT, "there is no home directory; set SOLO_INFOAUG_CACHE")
    return folder


@dataclass(frozen=True)
class Remembered:
    """The dictionary that the command `solo-infoaug mine` made last, as it was at that time."""

    path: str
    fingerprint: str
    version: str
    """Version of the solo-infoaug that mined it."""
    at: str
    """Time when it was mined, to the second."""


def remember_dictionary(path: Path, fingerprint: str) -> None:
    """Note the dictionary in `path`, which the user has just mined, for `infoaug: true`.

    Raises:
        OSError: there is no cache directory, or it cannot be written.
    """
    remembered = Remembered(
        path=str(path.resolve()),
        fingerprint=fingerprint,
        version=__version__,
        at=datetime.now().isoformat(" ", "seconds"),
    )
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / _NOTE, json.dumps(asdict(remembered)))


def last_dictionary() -> Remembered | None:
    """The dictionary noted last, whether it still exists or not; None if none ever was.

    Raises:
        DictionaryError: the note cannot be read.
    """
    try:
        note = cache_dir() / _NOTE
    except OSError:  # without a cache, nothing was ever noted
        return None
    try:
        return Remembered(**json.loads(note.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DictionaryError(
            f"{note}: cannot be read ({error}); remove it, and name the dictionary: "
            "infoaug.twins=TWINS"
        ) from error
