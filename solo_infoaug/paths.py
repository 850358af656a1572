"""Where the files that come with the package are, in a checkout and once installed."""

from __future__ import annotations

from pathlib import Path

import solo_infoaug


def upstream_folder() -> Path:
    """The folder `upstream/` with the patches for solo-learn, found as `configs/` is."""
    places = (Path(place) / "upstream" for place in solo_infoaug.__path__)
    return next(folder for folder in places if folder.is_dir())


def config_folder() -> Path:
    """The folder `configs/`: beside the package in a checkout, inside it once installed."""
    return next(
        folder for place in solo_infoaug.__path__ if (folder := Path(place) / "configs").is_dir()
    )
