"""The files that come with the package: configurations, and patches for solo-learn."""

from __future__ import annotations

from pathlib import Path

import solo_infoaug


def config_folder() -> Path:
    """The folder `configs/`: next to the package in a checkout, inside it once installed."""
    return _folder("configs")


def upstream_folder() -> Path:
    """The folder `upstream/` with the patches for solo-learn, in the same place as `configs/`."""
    return _folder("upstream")


def _folder(name: str) -> Path:
    return next(f for parent in solo_infoaug.__path__ if (f := Path(parent) / name).is_dir())
