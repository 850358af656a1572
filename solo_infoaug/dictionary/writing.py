"""Writing a dictionary: video by video, then the manifest."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from safetensors.numpy import save as to_safetensors

from solo_infoaug._files import check_output_folder, printable, reason_of, write_text
from solo_infoaug.dictionary.files import PackWriter
from solo_infoaug.dictionary.format import (
    FORMAT,
    INDEX,
    LOCK,
    MANIFEST,
    PARTS,
    RECORD,
    TWINLESS,
    VERSION,
    WINDOWS,
    check_path,
    header_of,
    safe_name,
    twins_fault,
)
from solo_infoaug.dictionary.index import write_index
from solo_infoaug.dictionary.packs import Finished, pack_waiting
from solo_infoaug.dictionary.pixels import Encoded, encode, encoded_tensors
from solo_infoaug.dictionary.reading import Part
from solo_infoaug.errors import DictionaryError

# A pixel file is closed once it holds this many patches, or bytes of them.
_SHARD_PATCHES, _SHARD_BYTES = 4096, 2**28


def check_target(folder: Path, name: str) -> None:
    """Check before mining that a dictionary can be written to `folder` and read again.

    Raises:
        OutputError: the folder cannot be written.
        DictionaryError: its path cannot be read again.
    """
    check_output_folder(folder, name)
    check_path(folder, name)


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Make the folder `out`, and lock it against other writers.

    The operating system releases the lock when its process ends. Inside the lock, files of other
    runs are therefore leftovers, not work in progress.

    Raises:
        DictionaryError: another run is writing there, or the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = FileLock(out / LOCK).acquire(timeout=0)
    except Timeout:
        raise DictionaryError(
            f"{out}: another run is writing its dictionary here; wait until it has ended, or "
            "choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise DictionaryError(f"{out}: cannot be written: {reason_of(error)}") from error
    with held:
        yield


class VideoWriter:
    """Writes one video's part of a dictionary; it appears in `parts` when `finish` is called."""

    def __init__(self, out: Path, key: str, name: str, source: Mapping[str, Any]) -> None:
        self.key = key
        self._pack = PackWriter(out / PARTS / f"{key}.zip")
        self._record: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "name": printable(name),
            "source": dict(source),
            "windows": [],
            "pixels": [],
        }
        self._columns: dict[str, list[np.ndarray]] = {}
        self._pixels: list[np.ndarray | Encoded] = []
        self._count = 0

    def add_window(
        self,
        record: Mapping[str, Any],
        *,
        image: np.ndarray,
        patches: Mapping[str, np.ndarray],
        pixels: np.ndarray | Encoded,
        twins: np.ndarray,
        mi: np.ndarray,
        p_value: np.ndarray,
        moment_frames: np.ndarray,
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Add a window's P patches, and write full shards.

        `pixels` are uint8 [P, S, 3, H, H] or JPEGs, of one kind in a video; `twins` [P, K] count
        within the window.
        """
        index, count = len(self._record["windows"]), len(pixels)
        self._record["windows"].append({**record, "patches": count})
        columns = {
            **patches,
            "window": np.full(count, index, np.int32),
            "twins": np.where(twins >= 0, twins + self._count, -1),
            "mi": mi,
            "p_value": p_value,
            "moment_frames": moment_frames,
        }
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)
        self._count += count
        self._pixels.append(pixels)
        if self._buffered() >= 1:
            self._flush()
        still = io.BytesIO()
        Image.fromarray(image).save(still, "JPEG", quality=85)
        self._pack.write(f"{self.key}/{WINDOWS}/{index:04d}.jpg", still.getvalue())
        self._write(f"{WINDOWS}/{index:04d}.safetensors", arrays)

    def finish(
        self,
        source: Mapping[str, Any] | None = None,
        counts: Mapping[str, Any] | None = None,
        following: np.ndarray | None = None,
    ) -> None:
        """Write the rest, and give the file its final name.

        `source` is known only now; `counts` are the known ones of `COUNTS`, and `reasons`.
        `following` int64 [N] is the patch that continues each in a later window, −1 for none; None
        if no patch is continued.
        """
        self._note(source, counts)
        if not self._record["windows"]:
            raise ValueError("a video without a window is not written")
        self._flush()
        joined = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        joined["next"] = np.full(self._count, -1) if following is None else following
        digest = self._write(INDEX, joined)
        self._record["index"] = {"patches": self._count, "sha256": digest}
        self._pack.write(f"{self.key}/{RECORD}", _json(self._record))
        self._pack.publish()

    def finish_without_twins(
        self,
        why: str,
        source: Mapping[str, Any] | None = None,
        counts: Mapping[str, Any] | None = None,
    ) -> None:
        """Note why no patch of the video has a twin, so that it is not mined again.

        The rest as in `finish`. The file is not part of a dictionary.
        """
        self._note(source, counts)
        self._pack.write(f"{self.key}/{TWINLESS}", _json({**self._record, "why": printable(why)}))
        self._pack.publish()

    def _note(self, source: Mapping[str, Any] | None, counts: Mapping[str, Any] | None) -> None:
        self._record["source"].update(source or {})
        self._record.update(counts or {})

    def discard(self) -> None:
        """Leave nothing behind."""
        self._pack.discard()

    def _buffered(self) -> float:
        """How full a file of the waiting patches would be, 1 for full."""
        patches, size = 0, 0
        for pixels in self._pixels:
            patches += len(pixels)
            if isinstance(pixels, np.ndarray):
                size += pixels.nbytes
            else:
                size += sum(len(jpeg) for row in pixels for jpeg in row)
        return max(patches / _SHARD_PATCHES, size / _SHARD_BYTES)

    def _flush(self) -> None:
        if not self._pixels:
            return
        name = f"pixels-{len(self._record['pixels']):04d}.safetensors"
        parts, self._pixels = self._pixels, []
        raw = [part for part in parts if isinstance(part, np.ndarray)]
        jpegs = [crops for part in parts if not isinstance(part, np.ndarray) for crops in part]
        if raw and jpegs:
            raise ValueError("the crops of one video are raw or JPEG")
        digest = self._write_raw(name, raw) if raw else self._write(name, encoded_tensors(jpegs))
        count = sum(map(len, parts))
        self._record["pixels"].append({"file": name, "patches": count, "sha256": digest})

    def _write_raw(self, name: str, parts: Sequence[np.ndarray]) -> str:
        shape = [sum(map(len, parts)), *parts[0].shape[1:]]
        described = {"dtype": "U8", "shape": shape, "data_offsets": [0, math.prod(shape)]}
        header = header_of({"pixels": described})
        pieces: list[Any] = [header, *map(np.ascontiguousarray, parts)]
        digest = hashlib.sha256()
        size = sum(memoryview(piece).nbytes for piece in pieces)
        with self._pack.member(f"{self.key}/{name}", size) as file:
            # Piece by piece: joined and serialised, the pixels would be in memory three times
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
        return digest.hexdigest()

    def _write(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        data = to_safetensors({key: np.ascontiguousarray(a) for key, a in arrays.items()})
        self._pack.write(f"{self.key}/{name}", data)
        return hashlib.sha256(data).hexdigest()


def write_manifest(out: Path, keys: Sequence[str], info: Mapping[str, Any]) -> None:
    """Make a dictionary of the videos `keys`, in this order. Those in `parts` are packed.

    Raises:
        DictionaryError: a video is missing or damaged, or they do not fit together.
    """
    finished = Finished(out)
    pack_waiting(finished, keys)

    def parts() -> Iterator[Part]:
        for key in keys:
            files = finished.packed(key)
            if files is None:
                raise DictionaryError(f"{out}: {key} is missing")
            yield Part.read(files)

    said, packs = write_index(out, parts())
    content = {
        **info,  # of another dictionary, maybe, and of an earlier format
        **said,
        "format": FORMAT,
        "version": VERSION,
        "packs": [path.name for path in packs],
        "videos": list(keys),
    }
    write_text(out / MANIFEST, _json(content).decode())


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def write_arrays(
    folder: Path,
    pixels: torch.Tensor,
    twins: torch.Tensor,
    mi: torch.Tensor,
    windows: Sequence[int] | None,
    name: str,
    jpeg: bool = False,
) -> None:
    """Write what `TwinDictionary.create` is given; its arguments."""
    window_of = np.zeros(len(pixels), np.int64) if windows is None else np.asarray(windows)
    _check_arrays(pixels, twins, mi, window_of)
    check_target(folder, "path")
    with only_writer(folder):
        if (folder / MANIFEST).exists():
            raise DictionaryError(f"{folder} holds a dictionary already")
        _, moments, _, side, _ = pixels.shape
        source = {"sha256": hashlib.sha256(pixels.numpy().tobytes()).hexdigest()}
        writer = VideoWriter(folder, safe_name(name), name, source)
        for window in np.unique(window_of):
            rows = np.flatnonzero(window_of == window)
            local = twins[rows].clone()
            local[local >= 0] -= int(rows[0])
            writer.add_window(
                {"frame": 0, "frames": 1},
                image=np.zeros((side, side, 3), np.uint8),
                patches={
                    "frame": np.zeros(len(rows), np.int32),
                    "x": np.full(len(rows), side / 2, np.float32),
                    "y": np.full(len(rows), side / 2, np.float32),
                    "size": np.full(len(rows), side, np.float32),
                    "entropy": np.zeros(len(rows), np.float32),
                },
                pixels=encode(pixels[rows].numpy()) if jpeg else pixels[rows].numpy(),
                twins=local.numpy(),
                mi=mi[rows].numpy(),
                p_value=np.where(local.numpy() >= 0, 0, 1).astype(np.float32),
                moment_frames=np.zeros((len(rows), moments), np.int32),
                arrays={
                    "tracks": np.full((1, len(rows), 2), side / 2, np.float32),
                    "mi": np.full((len(rows), len(rows)), np.nan, np.float32),
                },
            )
        writer.finish()
        write_manifest(folder, [writer.key], {})


def _check_arrays(
    pixels: torch.Tensor, twins: torch.Tensor, mi: torch.Tensor, windows: np.ndarray
) -> None:
    """Check the arguments of `TwinDictionary.create`."""

    def require(good: bool, name: str, expected: str, value: torch.Tensor | np.ndarray) -> None:
        if not good:
            came = f"{value.dtype} {list(value.shape)}"
            raise DictionaryError(f"{name}: expected {expected}, got {came}")

    shape, count = pixels.shape, len(pixels)
    square = len(shape) == 5 and shape[2] == 3 and shape[3] == shape[4] and min(shape) > 0
    require(pixels.dtype == torch.uint8 and square, "pixels", "uint8 [N, S, 3, H, H]", pixels)
    matrix = twins.ndim == 2 and len(twins) == count and twins.numel() > 0
    require(twins.dtype == torch.int64 and matrix, "twins", f"int64 [{count}, K]", twins)
    alike = mi.dtype == torch.float32 and mi.shape == twins.shape
    require(alike, "mi", f"float32 {list(twins.shape)}", mi)
    whole = windows.shape == (count,) and np.issubdtype(windows.dtype, np.integer)
    ascending = whole and bool((np.diff(windows, prepend=0) >= 0).all())
    require(ascending, "windows", f"{count} whole numbers ≥ 0 in ascending order", windows)
    if fault := twins_fault(twins, windows):
        raise DictionaryError(
            f"twins: expected indices into the {count} patches of the same window, best first, -1 "
            f"behind them; {fault}"
        )
