"""Which twin dictionary a run with InfoAug trains on: one that the user chose, or none."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from solo_infoaug import __version__
from solo_infoaug._files import expanded
from solo_infoaug.cache import Remembered, last_dictionary
from solo_infoaug.dictionary.bucket import is_url
from solo_infoaug.errors import DictionaryError

_HELP = (
    "mine one from your own videos (solo-infoaug mine VIDEOS -o TWINS) and name it "
    "(infoaug.twins=TWINS)"
)


@dataclass(frozen=True)
class Choice:
    """A dictionary's folder or URL, and why it is this one."""

    path: Path | str
    """A URL as it was written."""
    rule: str
    """`infoaug.twins`, `SOLO_INFOAUG_TWINS`, or a text that says it was mined last."""
    remembered: Remembered | None = None
    """The note of the command `mine`, if nothing else names the dictionary."""

    @property
    def place(self) -> str:
        """As a configuration names it: the absolute path, or the URL."""
        return self.path if isinstance(self.path, str) else str(self.path.resolve())

    def check(self, fingerprint: str) -> None:
        """Raise a DictionaryError if a remembered dictionary is not the one that was mined."""
        if self.remembered is None:
            return
        if fingerprint != self.remembered.fingerprint:
            raise DictionaryError(
                f"infoaug: the dictionary in {self.path} is not the one that solo-infoaug mine "
                f"made there at {self.remembered.at}; to use it, name it: "
                f"infoaug.twins={self.path}"
            )
        if self.remembered.version != __version__:
            warnings.warn(
                f"infoaug: the dictionary in {self.path} was mined by solo-infoaug "
                f"{self.remembered.version}, and this is {__version__}; mine it again, or name it: "
                f"infoaug.twins={self.path}",
                stacklevel=2,
            )


def choose_dictionary(configured: str | None = None) -> Choice:
    """The dictionary to train with.

    In this order: `configured` (the key `infoaug.twins`), the environment variable
    `SOLO_INFOAUG_TWINS`, the dictionary that the command `solo-infoaug mine` made last. A
    dictionary that a program, the demo, a comparison or a benchmark mined is never chosen.

    Raises:
        DictionaryError: the dictionary that was named or remembered is missing, or none was named.
    """
    variable = "SOLO_INFOAUG_TWINS"
    for source, value in (("infoaug.twins", configured), (variable, os.environ.get(variable))):
        if value and is_url(value):
            return Choice(value, source)
        if value:
            path = expanded(value)
            if not path.is_dir():
                # Hydra may have changed the working directory
                tried = "" if path.is_absolute() else f" (looked for {path.absolute()})"
                raise DictionaryError(
                    f"{source}: expected the folder of a twin dictionary, got {value}, which is "
                    f"{'a file' if path.exists() else 'not there'}{tried}; {_HELP}"
                )
            return Choice(path, source)
    last = last_dictionary()
    if last is None:
        raise DictionaryError(
            f"infoaug: no twin dictionary was chosen; {_HELP}. Without videos of your own: "
            'pip install "solo-infoaug[samples]", and solo-infoaug demo mines sample clips into '
            "infoaug-demo/twins"
        )
    if not Path(last.path).is_dir():
        raise DictionaryError(
            f"infoaug: the dictionary that solo-infoaug mine made last, {last.path} "
            f"({last.at}), is gone; {_HELP}"
        )
    return Choice(Path(last.path), f"solo-infoaug mine made it last, {last.at}", last)
