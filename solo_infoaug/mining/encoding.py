"""Write frames to a video file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import av
import numpy as np

from solo_infoaug.mining.container import open_output


def write_video(
    frames: Iterable[np.ndarray],
    file: Path,
    size: tuple[int, int],
    options: Mapping[str, str] | None = None,
    comment: str = "",
) -> None:
    """Encode frames, uint8 [H, W, 3] RGB, as H.264, 25 a second, with a comment in the metadata.

    `size` is width and height, even; `options` are those of libx264.
    """
    with open_output(file) as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = dict(options or {})
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
