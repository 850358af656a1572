"""Crops as JPEG: compressed here, and read in threads.

JPEG in full colour at this quality is small enough at 96 and 224 pixels (a ninth and a fifteenth of
the raw size, 42 and 47 dB), and OpenCV reads it twice as fast as WebP. At 32 pixels it takes a
sixth, but at 38 dB, and sampling takes twenty times as long. Crops up to 48 pixels therefore stay
raw: `benchmarks/dictionary_scale.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

QUALITY = 92
# Half of the colour resolution would save a tenth, and cost saturated edges 10 dB.
_SETTINGS = (
    cv2.IMWRITE_JPEG_QUALITY,
    QUALITY,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)
# Minimum number of crops for a thread: starting one takes as long as reading a few.
_PER_THREAD = 16


def encode(image: np.ndarray) -> bytes:
    """The JPEG of uint8 [H, W, 3] RGB."""
    good, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _SETTINGS)
    assert good
    return bytes(data)


def decode_all(images: Mapping[int, bytes], out: np.ndarray) -> int | None:
    """Read JPEGs by row into `out`, uint8 [N, 3, H, W] RGB, in as many threads as there are cores.

    Returns None, or the row of a crop that is damaged or of another size.
    """

    def some(rows: Sequence[int]) -> int | None:
        return next((row for row in rows if not _decode(images[row], out[row])), None)

    rows = list(images)
    threads = max(1, min(usable_cores(), len(rows) // _PER_THREAD))
    if threads == 1:
        return some(rows)
    # The pool ends here, because waiting threads would not survive a fork
    with ThreadPoolExecutor(threads, thread_name_prefix="jpeg") as pool:
        shares = [rows[first::threads] for first in range(threads)]
        return next((row for row in pool.map(some, shares) if row is not None), None)


def _decode(data: bytes, out: np.ndarray) -> bool:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return False
    if image is None or image.shape != (*out.shape[1:], 3):
        return False
    # OpenCV's order is BGR. It writes the planes in place, while other threads may run.
    cv2.split(image, [out[2], out[1], out[0]])
    return True


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
