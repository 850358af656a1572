"""The grid: from overrides to runs, each with a solo-learn configuration of its own.

methods × arms × data × seeds × every override that lists values. This module decides what a run
trains with and writes it into the run's folder, before anything runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from solo_infoaug._checks import is_whole, require
from solo_infoaug._files import expanded, file_digest
from solo_infoaug.compare import video
from solo_infoaug.compare.arms import ARMS
from solo_infoaug.compare.folder import RunFolder, State
from solo_infoaug.compare.images import check_also, check_main, read_also
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.exporting import export_patches
from solo_infoaug.dictionary.locate import choose_dictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.evaluation import check_probes
from solo_infoaug.evaluation.images import DATASETS as IMAGES
from solo_infoaug.evaluation.images import open_images
from solo_infoaug.host import load_host
from solo_infoaug.host.small import SMALL
from solo_infoaug.host.weights import TIMM
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.resources import config_folder
from solo_infoaug.scenes.benchmark import Benchmark, prepare_scenes
from solo_infoaug.scenes.parts import ScenesConfig
from solo_infoaug.training.config import (
    check_values,
    load_config,
    parse_overrides,
    slow_precision,
)
from solo_infoaug.training.layouts import CLASSES, check_fraction, layout_of, name_for_host
from solo_infoaug.training.start import read_init
from solo_infoaug.twin.config import read_infoaug, to_former_keys

_LISTS = ("methods", "arms", "data", "seeds")
_OF_THE_GRID = {
    "seed": "use seeds=",
    "method": "use methods=",
    "datasets": "use data=",
    "infoaug": "use arms=",
    "infoaug.enabled": "use arms=",
    "infoaug.positives": "use arms=",
    "checkpoint.dir": "use out=",
    "checkpoint.enabled": "use keep_checkpoints=",
}
_KEYS = (*_LISTS, "out", "report", "jobs", "threads", "keep_checkpoints")


@dataclass(frozen=True)
class Grid:
    """The request to `solo-infoaug compare`."""

    methods: tuple[str, ...]
    arms: tuple[str, ...]
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    report: Path
    jobs: int
    threads: int | None
    keep_checkpoints: bool
    fixed: tuple[str, ...] = ()
    """Overrides that all runs share."""
    swept: tuple[tuple[str, ...], ...] = ()
    """For each override that lists values, one override for each value."""
    launcher: tuple[str, ...] = ()
    """Overrides of Hydra itself: `hydra/launcher=…` and the launcher's own."""


@dataclass(frozen=True)
class Cell:
    """One cell of the grid."""

    method: str
    arm: str
    data: str
    seed: int
    variant: tuple[str, ...] = ()
    """The values of the swept overrides that affect this arm: `infoaug.weight=0.3`."""


@dataclass(frozen=True)
class Run:
    """One run: its folder, its training and its evaluation."""

    cell: Cell
    folder: Path
    hash: str
    """Hash of everything that decides the result."""
    config: DictConfig = field(repr=False)
    """In solo-learn's form: `solo-infoaug pretrain` trains the same from it."""
    evaluate: dict[str, Any] = field(repr=False)
    fingerprint: str | None
    """Fingerprint of the twin dictionary."""
    cost: float
    """Epochs × views, to estimate the remaining time."""

    @property
    def files(self) -> RunFolder:
        """The files of its folder."""
        return RunFolder(self.folder)

    @property
    def title(self) -> str:
        """One line that names the run."""
        cell = self.cell
        return " ".join([cell.method, cell.arm, cell.data, f"seed {cell.seed}", *cell.variant])

    @property
    def state(self) -> State:
        """State of the run."""
        return self.files.state(self.hash)

    @property
    def result(self) -> dict[str, Any] | None:
        """The result, under the names of this grid; None unless the run is done.

        Another grid may have made the run under another name: a swept value may be fixed there.
        """
        result = self.files.result(self.hash)
        return None if result is None else {**result, **asdict(self.cell)}

    def write(self, keep_checkpoint: bool) -> None:
        """Make its folder ready for the program of a run."""
        plan: dict[str, Any] = {**asdict(self.cell), "keep_checkpoint": keep_checkpoint}
        plan |= {"hash": self.hash, "fingerprint": self.fingerprint, "evaluate": self.evaluate}
        plan["references"] = str(self.folder.parent.parent / "data" / "references")
        self.files.write_plan(self.config, plan)


def parse_grid(overrides: Sequence[str] = ()) -> Grid:
    """Read `methods=simclr,byol infoaug.weight=0,0.1,1 max_epochs=10 hydra/launcher=joblib …`.

    Raises:
        ConfigError: an override that Hydra cannot read, an unknown name, or an empty list.
    """
    own: dict[str, Any] = {}
    fixed, swept, launcher = [], [], []
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if key in _KEYS and override.is_sweep_override():  # what is quoted is the text inside
            own[key] = [getattr(value, "text", value) for value in override.sweep_iterator()]
        elif key in _KEYS:
            own[key] = override.value()
        elif key == "hydra" or key.startswith(("hydra.", "hydra/")):
            launcher.append(str(override.input_line))
        elif key in _OF_THE_GRID:
            raise ConfigError(f"{key}: `compare` sets it for each run; {_OF_THE_GRID[key]}")
        elif override.is_sweep_override():
            name = override.get_key_element()
            swept.append(tuple(f"{name}={v}" for v in override.sweep_string_iterator()))
        else:
            fixed.append(str(override.input_line))
    defaults = load_config(config_folder() / "compare", "compare")
    known: Any = OmegaConf.to_container(OmegaConf.merge(defaults, own))
    for key in _LISTS:
        values = known[key] if isinstance(known[key], list) else [known[key]]
        known[key] = tuple(values)
        different = values and len(set(values)) == len(values)
        require(different, key, "a list of different values", values)
    _known("methods", [_method(name)[0] for name in known["methods"]], "methods")
    _known("data", known["data"], "datasets")
    for arm in known["arms"]:
        require(arm in ARMS, "arms", f"some of {', '.join(ARMS)}", arm)
    seeds, keep = list(known["seeds"]), known["keep_checkpoints"]
    require(all(is_whole(seed, 0) for seed in seeds), "seeds", "whole numbers ≥ 0", seeds)
    for key in ("jobs", "threads"):
        good = is_whole(known[key], 1) or (key == "threads" and known[key] is None)
        require(good, key, "a whole number ≥ 1", known[key])
    require(isinstance(keep, bool), "keep_checkpoints", "true or false", keep)
    known["out"] = expanded(str(known["out"])).resolve()
    known["report"] = known["out"] / str(known["report"])
    return Grid(**known, fixed=tuple(fixed), swept=tuple(swept), launcher=tuple(launcher))


def _known(key: str, names: Sequence[str], folder: str) -> None:
    there = sorted(path.stem for path in (config_folder() / "compare" / folder).glob("*.yaml"))
    for name in names:
        require(name in there, key, f"some of {', '.join(there)}", name)


def _method(name: str) -> tuple[str, list[str]]:
    """`simclr+fmicl=js` → simclr, and the overrides behind it."""
    base, *extras = str(name).split("+")
    for extra in extras:
        require("=" in extra, "methods", "NAME+key=value", name)
    return base, [f"++{extra}" for extra in extras]


def expand(grid: Grid) -> list[Cell]:
    """All cells, seed by seed, so that every column soon has a value.

    Overrides that change only the twin branch are not repeated for the baselines.
    """
    cells: dict[Cell, None] = {}
    for seed, data, method, variant, arm in itertools.product(
        grid.seeds, grid.data, grid.methods, itertools.product(*grid.swept), grid.arms
    ):
        # without known truth, oracle is left out of a list of arms; as the only arm it is an error
        if arm != "oracle" or data == "scenes" or len(grid.arms) == 1:
            left = reduced(variant, arm, patches=data == "patches")
            cells[Cell(method, arm, data, seed, left)] = None
    return list(cells)


def reduced(variant: Sequence[str], arm: str, patches: bool = False) -> tuple[str, ...]:
    """The overrides of `variant` that affect `arm`; `patches`: it trains on the dictionary's."""

    def matters(override: str) -> bool:
        key = override.lstrip("+").split("=")[0]
        if not key.startswith("infoaug.") or ARMS[arm].partner is not None:
            return True
        if key == "infoaug.twins":
            return patches
        return arm == "baseline_images" and key == "infoaug.batch_size"

    return tuple(override for override in variant if matters(override))


class Planner:
    """Composes the runs of a grid; prepares each data set once."""

    def __init__(self, grid: Grid, workers: int = 1) -> None:
        self.grid = grid
        self.workers = workers
        self._prepared = cache(self._prepare)
        self._fingerprint = cache(lambda path: TwinDictionary.load(path).fingerprint)
        self._patches = cache(self._write_patches)
        self._opened = cache(open_images)
        self._digest = cache(lambda path: file_digest(Path(path)))
        self._tell = cache(lambda text: print(text, file=sys.stderr))

    def plan(self) -> list[Run]:
        """All runs of the grid.

        Raises:
            ConfigError: a configuration that cannot be composed, or this solo-learn has no method
                of the grid.
            DictionaryError: there is no twin dictionary.
        """
        # all runs are composed and checked before the data of any is made
        here = self._methods_here()
        cells = [cell for cell in expand(self.grid) if cell.method in here]
        composed = [(cell, self._compose(cell)) for cell in cells]
        return [self._run(cell, cfg) for cell, cfg in composed]

    def _methods_here(self) -> list[str]:
        """The methods of the grid that this solo-learn has; others are skipped with a message."""
        host = load_host()
        names = {name: _method(name)[0] for name in self.grid.methods}
        here = [name for name, base in names.items() if base in host.methods]
        if not here:
            expected = ", ".join(sorted(set(host.methods) - {"base", "linear"}))
            raise ConfigError(
                f"methods: expected methods of this solo-learn ({host.info.version}), which has "
                f"{expected}; got {', '.join(names)}"
            )
        for name in names.keys() - set(here):
            self._tell(
                f"methods: {name} is skipped, because this solo-learn ({host.info.version}) has "
                "no such method; set SOLO_LEARN_HOME to a clone of the current one"
            )
        return here

    def _compose(self, cell: Cell) -> DictConfig:
        base, extras = _method(cell.method)
        own = [f"methods={base}", f"datasets={cell.data}", f"seed={cell.seed}", "checkpoint.dir=."]
        overrides = [*own, *extras, *self.grid.fixed, *cell.variant]
        cfg = load_config(config_folder() / "compare", "run", overrides)
        self._fit_backbone(cfg)
        cfg.init = read_init(cfg)
        if cfg.init is None:
            del cfg.init  # and a run is what it was before there was this key
        read_infoaug(cfg)
        FMICLConfig.parse(OmegaConf.select(cfg, "fmicl"))
        check_values(cfg)
        if (slow := slow_precision(cfg)) is not None:
            self._tell(slow)
        if "k" in (how := cfg.evaluate):  # `scenes` has no other
            rest = how.get("size"), how.get("limit"), how.get("temperature", 1.0)
            check_probes(how.k, *rest, "evaluate.")
        also = read_also(cfg.evaluate, cell.seed)
        check_also(also, self._tell, self._opened)
        cfg.evaluate.pop("also", None)  # the same: no key without further data sets
        if also:
            cfg.evaluate.also = also
        return cfg

    def _fit_backbone(self, cfg: DictConfig) -> None:
        """Drop settings that only the data set's own backbone has, if another one is chosen."""
        kwargs = cfg.backbone.get("kwargs") or {}
        if cfg.backbone.name != SMALL and kwargs.pop("standardize", None):
            self._tell(
                f"backbone.kwargs.standardize: only {SMALL} has it; {cfg.backbone.name} sees "
                "images that are not standardised"
            )

    def _run(self, cell: Cell, cfg: DictConfig) -> Run:
        twins, views, fingerprint = self._data(cell, cfg), same_images_epochs(cfg), None
        partner = ARMS[cell.arm].partner
        if partner is None:
            if cell.arm == "baseline_images":
                cfg.max_epochs = views
            views = cfg.max_epochs
            cfg.pop("infoaug")
        else:
            cfg.infoaug.positives, cfg.infoaug.twins = partner, str(twins)
            fingerprint = self._fingerprint(str(twins))
        evaluate: Any = OmegaConf.to_container(cfg.evaluate, resolve=True)
        cfg.pop("evaluate")
        settings: Any = OmegaConf.to_container(cfg, resolve=True)
        if "infoaug" in settings:  # a run that was finished under the former keys is still done
            settings["infoaug"] = to_former_keys(settings["infoaug"])
        known = [settings, evaluate, fingerprint]
        if "init" in cfg and not cfg.init.startswith(TIMM):
            known.append(self._digest(cfg.init))
        decides = json.dumps(known, sort_keys=True)
        # a grid that is moved, or reached by another path, is still the same
        decides = decides.replace(str(self.grid.out), "OUT")
        digest = hashlib.sha256(decides.encode()).hexdigest()[:12]
        name = f"{cell.method}-{cell.arm}-{cell.data}-seed{cell.seed}-{digest}"
        folder = self.grid.out / "runs" / re.sub(r"[^\w-]", "-", name)
        cfg.name = f"{cell.method}-{cell.arm}"
        cfg.checkpoint.dir = str(RunFolder(folder).training)
        return Run(cell, folder, digest, cfg, evaluate, fingerprint, float(views))

    def _data(self, cell: Cell, cfg: DictConfig) -> Path | str | None:
        """Fill in where data and twins are; returns the dictionary of the cell's arm."""
        evaluate = cfg.evaluate
        if OmegaConf.is_missing(evaluate, "dataset"):
            known = f"the images to evaluate on ({', '.join(IMAGES)}), with evaluate.train_path"
            raise ConfigError(f"evaluate.dataset: expected {known}; got none")
        if evaluate.dataset == "scenes":
            evaluate.scenes = cfg.pop("scenes")
            scenes = _settings("scenes", ScenesConfig, evaluate.scenes)
            benchmark: Benchmark = self._prepared("scenes", scenes, prepare_scenes)
            cfg.data.train_path = str(benchmark.stills)
            return benchmark.oracle if cell.arm == "oracle" else benchmark.twins
        if cell.arm == "oracle":
            raise ConfigError(
                f"arms: oracle needs data whose true twins are known, not {cell.data}"
            )
        if evaluate.dataset == "video":
            if OmegaConf.is_missing(cfg.data, "videos"):
                raise ConfigError("data.videos: expected a folder of videos with masks, got none")
            videos = str(expanded(cfg.data.pop("videos")).resolve())
            settings = _settings("video", video.VideoConfig, cfg.pop("video"), videos=videos)
            evaluate.video = settings.as_dict()
            stills, twins = self._prepared("video", settings, video.prepare_video)
            cfg.data.train_path = str(stills)
            return twins
        partner = ARMS[cell.arm].partner
        self._paths(cell, cfg)
        of_patches = cfg.data.dataset == "custom" and cfg.data.train_path is None
        twins = self._twins(cfg) if partner or of_patches else None
        if twins is not None and of_patches:
            cfg.data.train_path = str(self._patches(twins))
        return twins if partner else None

    def _paths(self, cell: Cell, cfg: DictConfig) -> None:
        """Make the paths of images absolute, and print the layout of named data sets."""
        if cfg.evaluate.dataset != "folder" and OmegaConf.is_missing(cfg.evaluate, "val_path"):
            cfg.evaluate.val_path = None  # train_path has both halves
        for name, section in (("data", cfg.data), ("evaluate", cfg.evaluate)):
            for key in ("train_path", "val_path"):
                if OmegaConf.is_missing(section, key):
                    raise ConfigError(f"{name}.{key}: expected the path of {cell.data}, got none")
                if section[key] is not None:
                    section[key] = str(expanded(section[key]).resolve())
            check_fraction(section.get("fraction"), section.get("fraction_seed"), name)
            if section.dataset in CLASSES and section.train_path is not None:
                self._tell(layout_of(section.dataset, section.train_path, f"{name}.train_path"))
        check_main(cfg, self._opened)
        name_for_host(cfg)

    def _twins(self, cfg: DictConfig) -> str:
        """The dictionary that the command names, or that was mined last."""
        choice = choose_dictionary(cfg.infoaug.twins)
        choice.check(self._fingerprint(choice.place))
        self._tell(f"Twins: {choice.place} ({choice.rule})")
        return choice.place

    def _write_patches(self, twins: str) -> Path:
        """The patches of a dictionary as a folder of images; written once."""
        name = f"patches-{self._fingerprint(twins)[:12]}"
        folder = self.grid.out / "data" / name
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                fresh = folder.with_name(f".{name}")
                shutil.rmtree(fresh, ignore_errors=True)
                export_patches(TwinDictionary.load(twins), fresh)
                fresh.rename(folder)
        return folder

    def _prepare(self, name: str, config: Any, prepare: Callable[..., Any]) -> Any:
        """Prepare the benchmark `name` with these settings."""
        folder = self.grid.out / "data" / f"{name}-{config.digest}"
        return prepare(folder, config, self.workers)


def _settings(key: str, config: Callable[..., Any], given: DictConfig, **more: Any) -> Any:
    try:
        return config(**more, **OmegaConf.to_container(given))  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(f"{key}: {error}") from error


def same_images_epochs(cfg: DictConfig) -> int:
    """Epochs in which a baseline sees at least as many images as with a twin branch."""
    pairs = OmegaConf.select(cfg, "infoaug.batch_size") or cfg.optimizer.batch_size
    return math.ceil(cfg.max_epochs * (1 + pairs / cfg.optimizer.batch_size))
