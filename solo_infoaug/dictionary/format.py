"""The files of a dictionary: their names, and how each is read. Nothing in them is trusted.

Layout (format 4), everything safetensors, JSON or JPEG:

    dictionary.json                which videos, in which order, settings, what failed, the packs
    index.safetensors              all patches of all videos: where they are, their twins, their MI
    packs/00000.zip                ZIP files without compression, of the videos' files:
        KEY/pixels-0000.safetensors    crops, some thousand patches a file; they come first
        KEY/video.json                 provenance, records of the windows, names, hashes
        KEY/index.safetensors          one row a patch
        KEY/windows/0000.jpg           the frame of each window whose patches these are
        KEY/windows/0000.safetensors   tracks and MI matrix of each window
        KEY/twinless.json              of a video without a twin, alone: video.json, and why
    parts/KEY.zip                  a finished video that is not in a pack yet

Formats 2 and 3 had a folder parts/KEY for each video, and no common index.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors

from solo_infoaug.dictionary.files import Stretch
from solo_infoaug.errors import DictionaryError

FORMAT = "solo-infoaug twin dictionary"
VERSION = 4
_OLDEST = 2
MANIFEST = "dictionary.json"
PARTS = "parts"
PACKS = "packs"
INDEX = "index.safetensors"
RECORD = "video.json"
WINDOWS = "windows"
TWINLESS = "twinless.json"
LOCK = ".lock"
# What was read of a video, and what was not: see docs/dictionary-format.md.
COUNTS = ("frames", "repeated_frames", "windows_mined", "damaged_packets", "frames_left_out")

# JSON files larger than this are not ours.
_JSON_LIMIT = 256 << 20
# Neither are headers of more than safetensors itself takes.
_HEADER_LIMIT = 100_000_000
# Of an element; the files whose headers are read have no others.
_BYTES = {"U8": 1, "I32": 4}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
PATCH_COLUMNS = np.dtype(
    [(name, np.int32) for name in ("video", "shot", "window", "frame")]
    + [(name, np.float32) for name in ("x", "y", "size", "entropy")]
)
STORED_COLUMNS = [name for name in PATCH_COLUMNS.names or () if name not in ("video", "shot")]


def check_path(folder: Path, name: str) -> None:
    """Raise a DictionaryError that names the argument unless safetensors can open the path."""
    try:
        str(folder.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DictionaryError(
            f"{name}: {folder} is not UTF-8, and safetensors opens no other path; choose another"
        ) from error


def safe_name(name: str) -> str:
    """`name` with only those characters that every file system accepts."""
    return re.sub(r"[^A-Za-z0-9_\-]+", "-", name).strip("-") or "video"


def is_name(name: object) -> bool:
    """A plain file name: no path, nothing hidden."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; anything else raises a DictionaryError."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise DictionaryError(f"{path}: damaged: too large for a dictionary")
        data = path.read_bytes()
    except OSError as error:
        raise DictionaryError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_json(data, path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `path`; a DictionaryError if this package did not write it."""
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DictionaryError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DictionaryError(f"{path}: not a {FORMAT}")
    version = content.get("version")
    if not isinstance(version, int) or version < 1:
        raise DictionaryError(f"{path}: damaged: format version {version!r}")
    if version > VERSION:
        raise DictionaryError(
            f"{path}: format version {version} is newer than this solo-infoaug reads ({VERSION}); "
            "update it with: pip install -U solo-infoaug"
        )
    if version < _OLDEST:
        raise DictionaryError(
            f"{path}: format version {version} is older than this solo-infoaug reads ({_OLDEST} to "
            f"{VERSION}); mine the videos anew: solo-infoaug mine VIDEO_OR_DIR... -o DIR"
        )
    return content


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise DictionaryError(f"{path}: damaged: {error}") from error


def map_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, mapped; a DictionaryError if it is missing or damaged."""
    if not path.is_file():
        raise DictionaryError(f"{path}: missing")
    with _damaged(path), safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    raise AssertionError(path)


def parse_tensors(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file's content; a DictionaryError if it is damaged."""
    with _damaged(path):
        return load_tensors(data)
    raise AssertionError(path)


@dataclass(frozen=True)
class Lying:
    """Where a tensor lies: its type in safetensors' words, its shape, its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def look_at_tensors(stretch: Stretch) -> dict[str, Lying]:
    """Where the tensors of a safetensors file lie, by its header; a DictionaryError if damaged."""
    try:
        with stretch.path.open("rb") as file:
            file.seek(stretch.start)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(stretch.size - 8, _HEADER_LIMIT):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length).decode("utf-8"))
        first = stretch.start + 8 + length
        room = stretch.size - 8 - length
        header.pop("__metadata__", None)
        found = {name: _lying(entry, first, room) for name, entry in header.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DictionaryError(f"{stretch.label}: damaged: {error}") from error
    return found


def header_of(tensors: Mapping[str, Any]) -> bytes:
    """What a safetensors file of these begins with: the length of the header, JSON, padding."""
    text = json.dumps(tensors, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _lying(entry: Mapping[str, Any], first: int, room: int) -> Lying:
    """An entry of a header; raises where it is malformed."""
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    whole = (*shape, start, stop)
    if not all(isinstance(n, int) and n >= 0 for n in whole) or not start <= stop <= room:
        raise ValueError("a tensor lies outside of the file")
    if math.prod(shape) * _BYTES.get(entry["dtype"], -1) != stop - start:
        raise ValueError("a tensor is not of the size that its shape says")
    return Lying(entry["dtype"], shape, first + start, first + stop)


def twins_fault(twins: torch.Tensor, windows: np.ndarray) -> str:
    """What is wrong with twins int64 [N, K] of patches that lie in `windows` [N]; else nothing."""
    there, own = twins >= 0, torch.from_numpy(windows.astype(np.int64))
    if int(twins.max()) >= len(twins) or int(twins.min()) < -1:
        return "a twin's index is out of range"
    if bool(((own[twins.clamp(min=0)] != own[:, None]) & there).any()):
        return "a twin lies in another window"
    if bool((there[:, 1:] & ~there[:, :-1]).any()):
        return "a twin follows on a missing one"
    return ""


def links_fault(following: torch.Tensor, windows: np.ndarray, shots: np.ndarray) -> str:
    """What is wrong with links int64 [N] of patches in `windows` and `shots` [N]; else nothing."""
    there = (following >= 0).nonzero()[:, 0]
    if int(following.max()) >= len(following) or int(following.min()) < -1:
        return "a link's index is out of range"
    here, later = there.numpy(), following[there].numpy()
    if len(np.unique(later)) < len(later):
        return "two patches are linked to the same one"
    if (windows[later] <= windows[here]).any() or (shots[later] != shots[here]).any():
        return "a link leads to no later window of the shot"
    return ""


def expect(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """The tensor `name` of the file `path`; a DictionaryError unless it is of this kind.

    In `shape`, −1 is any length.
    """
    tensor = tensors.get(name)
    good = (
        tensor is not None
        and tensor.dtype == dtype
        and tensor.ndim == len(shape)
        and all(want in (-1, have) for want, have in zip(shape, tensor.shape, strict=True))
    )
    if tensor is None or not good:
        came = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise DictionaryError(
            f"{path}: damaged: `{name}` should be {dtype} {list(shape)}, but is {came}"
        )
    return tensor
