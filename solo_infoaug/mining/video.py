"""Videos: files, bytes from elsewhere and folders of frames are opened and named alike.

What cannot be read is a VideoError.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from solo_infoaug._files import file_digest
from solo_infoaug.errors import VideoError
from solo_infoaug.mining.content import Content
from solo_infoaug.mining.decoding import Video as Video
from solo_infoaug.mining.frame_folder import FrameFolder, folder_name
from solo_infoaug.mining.search import EXTENSIONS as EXTENSIONS
from solo_infoaug.mining.search import find_videos as find_videos
from solo_infoaug.mining.search import search as search


def open_video(path: Path | Content, fps: float = 25.0) -> Video | FrameFolder:
    """Open a video file or a folder of numbered frames; a folder has no `fps` of its own."""
    return FrameFolder(path, fps) if isinstance(path, Path) and path.is_dir() else Video(path)


def video_name(path: Path) -> str:
    """The name of a video: of its file, or of its folder, without a last part such as `img1`."""
    return folder_name(path) if path.is_dir() else path.name


def video_stem(path: Path) -> str:
    """The same name without the ending of files."""
    return folder_name(path) if path.is_dir() else path.stem


def video_digest(path: Path) -> str:
    """SHA-256 of a file's content, or of the contents of a folder's frames in order."""
    try:
        if not path.is_dir():
            return file_digest(path)
        numbered = FrameFolder(path).numbered
        together = hashlib.sha256()
        for file, place in zip(numbered.files, numbered.places, strict=True):
            together.update(f"{place} {file_digest(file)}\n".encode())
        return together.hexdigest()
    except OSError as error:
        raise VideoError(f"{path}: cannot be read: {error.strerror or error}") from error
