"""Find the installed solo-learn, and give both versions one set of names.

Users run the current solo-learn from a clone; a fresh environment gets the PyPI release (1.0.2,
2021). All code outside this package is written for the current version, whose names `load_host()`
returns on either.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement

from solo_infoaug._files import expanded
from solo_infoaug.errors import HostError

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["current", "release"]

BACKBONE_NAMES: dict[Kind, str] = {"current": "backbone", "release": "encoder"}
"""Each version's name of the backbone: as an attribute, as a parameter group, and in
checkpoints."""

_HOW_TO_GET_ONE = (
    "clone the current one (git clone https://github.com/vturrisi/solo-learn) and set "
    "SOLO_LEARN_HOME to the clone, or use the embedded release: uv sync --group host"
)


@dataclass(frozen=True)
class HostInfo:
    """A solo-learn that was found but not imported."""

    kind: Kind
    path: Path
    """The folder that holds the package `solo`."""
    version: str
    source: str
    """How it was found: imported, SOLO_LEARN_HOME, working directory or sys.path."""


@dataclass(frozen=True)
class Host:
    """The names of solo-learn that solo-infoaug calls, with the current solo-learn's meaning."""

    info: HostInfo
    methods: dict[str, type]
    """`solo.methods.METHODS` itself; every class takes `cfg`."""
    backbones: dict[str, Callable[..., Any]]
    """Name → constructor `(method, **kwargs) -> nn.Module`."""
    optimizers: tuple[str, ...]
    """Values of `optimizer.name`."""
    schedulers: tuple[str, ...]
    """Values of `scheduler.name`."""
    should_match: list[str]
    """The configuration keys that auto-resume compares; extended in place."""
    parse_cfg: Callable[[Any], Any]
    build_transform_pipeline: Callable[[str, Any], Callable[[Any], Any]]
    n_crop_augmentation: type
    full_transform_pipeline: type
    prepare_datasets: Callable[..., Any]
    prepare_dataloader: Callable[..., Any]
    prepare_data: Callable[..., tuple[Any, Any]]
    """Labelled train and validation loaders: `(dataset, train_path, val_path, format, ...)`."""
    validation_transform: Callable[[str], Callable[[Any], Any]]
    """Data set → the transform of its validation images."""
    checkpointer: Callable[..., Any]
    find_checkpoint: Callable[[Any], tuple[Path | None, str | None]]
    project: Callable[[Any, dict[str, Any]], dict[str, Any]]
    """`(method, outputs)`: adds projected features to the outputs of the base class's training
    step."""
    adapted: bool
    """Whether the methods are adapters of this package, which only solo-infoaug can unpickle."""
    knn: Callable[[], Any] | None = None
    """Makes the classifier for `knn_eval.enabled`, if this solo-learn has one."""
    plugins: dict[str, Any] | None = None
    """`solo.utils.plugins.PLUGINS`, if this solo-learn has our hook for plugins."""

    @property
    def shared_modules(self) -> tuple[str, str]:
        """A method's names for its backbone and momentum backbone."""
        name = BACKBONE_NAMES[self.info.kind]
        return name, f"momentum_{name}"

    def normalization(self, dataset: str, augmentation: Any) -> tuple[list[float], list[float]]:
        """Mean and standard deviation by which views of a data set are normalised.

        `augmentation` is an entry of `augmentations`.
        """
        from torchvision.transforms import Normalize

        transform: Any = self.build_transform_pipeline(dataset, augmentation)
        while not isinstance(transform, Normalize):
            steps = getattr(transform, "transforms", None)
            transform = steps[-1] if steps else transform.transform
        return list(transform.mean), list(transform.std)

    def build_backbone(self, cfg: Any) -> nn.Module:
        """An untrained backbone as solo-learn's methods build it for this configuration."""
        from torch import nn

        module = self.backbones[cfg.backbone.name](cfg.method, **(cfg.backbone.get("kwargs") or {}))
        if cfg.backbone.name.startswith("resnet"):
            module.fc = nn.Identity()
            if cfg.data.dataset in ("cifar10", "cifar100"):
                module.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
                module.maxpool = nn.Identity()
        return module


def backbone_entries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of a state dict of either solo-learn, under the backbone's own names."""
    for name in BACKBONE_NAMES.values():
        weights = {
            key.removeprefix(f"{name}."): value
            for key, value in state.items()
            if key.startswith(f"{name}.")
        }
        if weights:
            return weights
    return {}


def _kind_of(folder: Path) -> Kind | None:
    kinds: dict[str, Kind] = {"data": "current", "utils": "release"}
    there = (folder / "solo" / room / "pretrain_dataloader.py" for room in kinds)
    return next((kinds[file.parent.name] for file in there if file.is_file()), None)


def _version(folder: Path, kind: Kind) -> str:
    if kind == "release":
        try:
            return metadata.version("solo-learn")
        except metadata.PackageNotFoundError:
            return "1.0.2 or older"
    setup = folder / "setup.py"
    text = setup.read_text(encoding="utf-8") if setup.is_file() else ""
    found = re.search(r"^\s*version=[\"']?([^\"',\n]+)", text, re.M)
    return found[1] if found else "unknown"


def wanted_by_host(info: HostInfo) -> dict[str, str]:
    """Version limits in the current solo-learn's requirements.txt, by package: `<0.12`.

    Empty for the release, whose limits are from 2021 and cannot be installed today.
    """
    file = info.path / "requirements.txt"
    if info.kind == "release" or not file.is_file():
        return {}
    wanted = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            requirement = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:  # an option of pip, or nothing
            continue
        if requirement.specifier:
            wanted[requirement.name] = str(requirement.specifier)
    return wanted


def _folders() -> list[tuple[str, Path]]:
    """Places to look for solo-learn, the most explicit first."""
    if imported := getattr(sys.modules.get("solo"), "__path__", None):
        return [("imported", Path(next(iter(imported))).resolve().parent)]
    if named := os.environ.get("SOLO_LEARN_HOME"):
        return [("SOLO_LEARN_HOME", expanded(named).resolve())]
    try:
        spec = importlib.util.find_spec("solo")
    except (ImportError, ValueError):
        spec = None
    there = (spec.submodule_search_locations or []) if spec else []
    return [
        ("working directory", Path.cwd()),
        *(("sys.path", Path(folder).resolve().parent) for folder in there),
    ]


def find_host() -> HostInfo:
    """Find solo-learn without importing it.

    Looks at: an imported `solo`, `SOLO_LEARN_HOME`, the working directory, `sys.path`.

    Raises:
        HostError: there is no solo-learn, or none in the folder that `SOLO_LEARN_HOME` names.
    """
    for source, folder in _folders():
        kind = _kind_of(folder)
        if kind is not None:
            return HostInfo(kind, folder, _version(folder, kind), source)
        if source == "SOLO_LEARN_HOME":
            raise HostError(
                f"SOLO_LEARN_HOME: expected a clone of solo-learn (a folder with solo/methods), "
                f"got {folder}; {_HOW_TO_GET_ONE}"
            )
    raise HostError(f"solo-learn was not found; {_HOW_TO_GET_ONE}")


@cache
def load_host() -> Host:
    """Import solo-learn (see `find_host`) and return its names.

    Raises:
        HostError: there is no solo-learn, or it cannot be imported.
    """
    info = find_host()
    if str(info.path) not in sys.path:
        sys.path.insert(0, str(info.path))
    try:
        _prepare_umap()
        if info.kind == "current":
            from solo_infoaug.host.current import load
        else:
            from solo_infoaug.host.release import load
        with warnings.catch_warnings():  # of what solo-learn imports, about old names
            warnings.simplefilter("ignore")
            return load(info)
    except Exception as error:  # importing runs their code, which may raise anything
        raise HostError(
            f"solo-learn at {info.path} cannot be imported ({type(error).__name__}: {error}); "
            "`solo-infoaug doctor` lists what is missing"
        ) from error


def _prepare_umap() -> None:
    """Prepare the import of umap, which solo-learn imports if it is installed."""
    if importlib.util.find_spec("umap") is None:
        return
    try:
        from solo_infoaug._compile import let_others_compile
    except ImportError:  # then umap cannot be imported either, and solo-learn leaves it out
        return
    let_others_compile("umap")
