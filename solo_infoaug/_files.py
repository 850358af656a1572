"""Files that are written whole or not at all, and the errors if they cannot be written."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solo_infoaug.errors import OutputError

MADE = ".solo-infoaug"
"""A file in each folder of images that solo-infoaug makes, so that mining skips the folder."""

DRAWN = "drawn by solo-infoaug show"
"""The comment in films and pictures of twins, so that mining skips them."""


def check_output_folder(
    folder: str | os.PathLike[str], name: str, shown: Path | None = None
) -> Path:
    """Check before the work that its results can be written; leaves nothing behind.

    The folder may be missing. The message names the argument `name`, and `shown` if that is given.

    Raises:
        OutputError: it is a file, or it or its nearest existing parent cannot be written to.
    """
    path = Path(folder)
    try:
        there = path.absolute()
        while not os.path.lexists(there):
            there = there.parent
        # write a file: permissions say little about read-only and virtual file systems
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise output_error(name, shown or path, error, there) from error
    return path


@contextmanager
def new_file(file: str | os.PathLike[str], name: str) -> Iterator[Path]:
    """A path to write to, which is renamed to `file` at the end; a failure leaves nothing.

    Missing folders are made. The message names the argument `name`.

    Raises:
        OutputError: `file` is a folder, or cannot be written.
    """
    path = Path(file)
    check_output_folder(path.parent, name, path)
    if path.is_dir():
        raise OutputError(f"{name}: expected a file to write, got {path}, which is a folder")
    # writers choose the format by the ending
    fresh = path.with_name(f".{path.stem[:100]}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        fresh.replace(path)
    except OSError as error:
        raise output_error(name, path, error) from error
    finally:
        fresh.unlink(missing_ok=True)


def make_output_folder(folder: str | os.PathLike[str], name: str) -> Path:
    """`check_output_folder`, and make the folder."""
    path = check_output_folder(folder, name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(name, path, error) from error
    return path


def mark_as_made(folder: Path) -> None:
    """Make a folder whose images mining does not take for frames of a video."""
    folder.mkdir(parents=True, exist_ok=True)
    note = "solo-infoaug made this folder; solo-infoaug mine skips it.\n"
    (folder / MADE).write_text(note, encoding="utf-8")


def output_error(name: str, path: Path, error: OSError, there: Path | None = None) -> OutputError:
    """The error for the argument `name` = `path`; `there` is the part of the path that exists."""
    why = reason_of(error)
    if there is not None and os.path.lexists(there) and not there.is_dir():
        why = f"{there} is not a folder" if there != path.absolute() else "it is not a folder"
    return OutputError(f"{name}: {path} cannot be written ({why}); choose another place")


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with ~ as the home directory; if that is unknown, ~ is an ordinary name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def reason_of(error: BaseException) -> str:
    """The system's text of an error; if there is none, the error itself."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def printable(text: str) -> str:
    """`text` with bytes escaped that are not Unicode, from file names in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write the whole file or nothing: a reader never sees half a file."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def write_json(path: Path, content: Any) -> None:
    """`write_text` of JSON, indented for readers."""
    write_text(path, json.dumps(content, indent=2))


def digest(content: Any) -> str:
    """Twelve hexadecimal digits of a hash of JSON content; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object; None if the file is missing, is being written, or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
