"""Video files as FFmpeg opens them: by their name, whatever characters it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import av

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer


def open_input(path: Path) -> InputContainer:
    """Open `path` to read; av.open takes names such as 12:30.mp4, pipe: and - for protocols."""
    # a name with a %d is one image, not a sequence
    return av.open(_address(path), options={"pattern_type": "none"})


def open_output(path: Path) -> OutputContainer:
    """Open `path` to write, in the format of its ending."""
    return av.open(_address(path), "w")


def _address(path: Path) -> str:
    """Only the first colon ends a protocol, so everything after `file:` is the name."""
    return f"file:{path}"
