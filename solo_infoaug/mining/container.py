"""Video files as FFmpeg opens them: by their name, whatever characters it has; or their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

    from solo_infoaug.mining.content import Content

# What FFmpeg asks for at a time where Python gives it the bytes.
_BUFFER = 1 << 20


def open_input(path: Path | Content) -> InputContainer:
    """Open `path` to read; av.open takes names such as 12:30.mp4, pipe: and - for protocols."""
    if not isinstance(path, Path):
        # what comes from elsewhere must not make FFmpeg open other files or addresses
        alone = {"pattern_type": "none", "protocol_whitelist": "none"}
        return av.open(path.open(), "r", options=alone, buffer_size=_BUFFER)
    # a name with a %d is one image, not a sequence
    return av.open(_address(path), options={"pattern_type": "none"})


def open_output(path: Path) -> OutputContainer:
    """Open `path` to write, in the format of its ending."""
    return av.open(_address(path), "w")


def _address(path: Path) -> str:
    """Only the first colon ends a protocol, so everything after `file:` is the name."""
    return f"file:{path}"
