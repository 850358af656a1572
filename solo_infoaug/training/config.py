"""solo-learn's configurations: compose them, check them, and fit them to the machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_infoaug._checks import is_number, is_whole, require
from solo_infoaug._files import expanded
from solo_infoaug.errors import ConfigError

say = rank_zero_only(print)
"""Print on the first process only. Lightning hides messages that are logged as information."""


def load_config(
    config_path: str | Path, config_name: str, overrides: Sequence[str] = ()
) -> DictConfig:
    """Compose a solo-learn configuration with Hydra, as `main_pretrain.py` would.

    Args:
        config_path: the folder with the YAML files, relative to the working directory.
        config_name: the file, with or without its ending.
        overrides: in Hydra's grammar: `max_epochs=10`, `++infoaug=true`.

    Raises:
        ConfigError: no such folder or file, or an override that Hydra refuses.

    Examples:
        >>> cfg = load_config("configs/demo", "simclr", ["max_epochs=10", "++infoaug.twins=twins/"])
        >>> cfg.max_epochs, cfg.infoaug
        (10, {'twins': 'twins/'})
    """
    folder = expanded(config_path).resolve()
    if not folder.is_dir():
        raise ConfigError(
            f"--config-path: expected a folder of YAML configurations, got {config_path}"
        )
    file = folder / f"{config_name.removesuffix('.yaml')}.yaml"
    if not file.is_file() or file.parent != folder:  # the only file that Hydra takes
        names = ", ".join(sorted(p.name for p in folder.glob("*.yaml"))) or "no .yaml file"
        raise ConfigError(f"--config-name: no {config_name!r} in {folder}; there is {names}")
    parse_overrides(overrides)
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(folder), version_base="1.2"):
            cfg = compose(file.name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    finally:
        GlobalHydra.instance().clear()
    OmegaConf.set_struct(cfg, False)
    return cfg


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Read overrides one by one.

    Raises:
        ConfigError: Hydra cannot read one; the message names it and says how to quote it.
    """
    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException as error:
            key, equals, value = override.partition("=")
            quoted, hint = f'{key}="{value}"', "expected key=value, +key=value or ~key"
            with suppress(HydraException):
                parser.parse_override(quoted if equals else "")
                hint = f"quote the value, and all of it for the shell: '{quoted}'"
            why = str(error).splitlines()[0]
            raise ConfigError(f"override {override!r}: {hint} (Hydra says: {why})") from error
    return parsed


def quoted(path: str | Path) -> str:
    """A path as the value of an override in Hydra's grammar.

    Raises:
        ConfigError: it has a `${`, which configurations read as the name of another key.
    """
    text = str(path)
    if "${" in text:
        raise ConfigError(
            f"{text}: expected a path without ${{, which configurations take for the name of a "
            "key; choose another"
        )
    return QuotedString(text, Quote.double).with_quotes()


def slow_precision(cfg: DictConfig) -> str | None:
    """A message if `cfg` trains in bfloat16 on a CPU that only imitates it, else None."""
    precision = str(cfg.get("precision", 32))
    # oneDNN computes torch's convolutions on a CPU; a torch without it cannot be asked
    if not (precision.startswith("bf16") and _on_cpu(cfg) and torch.backends.mkldnn.is_available()):
        return None
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return (
        f"precision: this CPU has no instructions for {precision}, so steps take several times as "
        "long as with precision=32"
    )


def _on_cpu(cfg: DictConfig) -> bool:
    """Whether training runs on the CPU, by choice or for want of a GPU."""
    accelerator = str(OmegaConf.select(cfg, "accelerator", default="auto"))
    wants_gpu = accelerator in ("gpu", "cuda", "auto")
    return accelerator == "cpu" or (wants_gpu and not torch.cuda.is_available())


def choose_device(cfg: DictConfig) -> None:
    """Fit the Trainer's keys in `cfg` to the machine: without a GPU, train on the CPU."""
    if not _on_cpu(cfg):
        return
    accelerator = str(OmegaConf.select(cfg, "accelerator", default="auto"))
    if (slow := slow_precision(cfg)) is not None:
        say(slow)
    devices = OmegaConf.select(cfg, "devices", default=1)
    processes = int(devices) if accelerator == "cpu" and str(devices).isdigit() else 1
    precision = cfg.get("precision", 32)
    changes: dict[str, Any] = {
        "accelerator": "cpu",
        # float16 needs a GPU; other precisions are kept
        "precision": 32 if str(precision) in ("16", "16-mixed", "16-true") else precision,
        "devices": str(processes),  # solo-learn scales the learning rate by len(devices)
        **({"strategy": "auto"} if processes == 1 else {}),
        "sync_batchnorm": False,
    }
    before = {key: OmegaConf.select(cfg, key) for key in changes}
    for key, value in changes.items():
        cfg[key] = value
    told = [
        f"{key}: {before[key]} → {value}"
        for key, value in changes.items()
        if before[key] is not None and str(before[key]) != str(value)
    ]
    if told:
        where = "Training" if accelerator == "cpu" else "No GPU here, training"
        say(f"{where} on the CPU ({', '.join(told)})")


def check_values(cfg: DictConfig) -> None:
    """Raise a ConfigError that names a number that no solo-learn can train with."""

    def whole(key: str, minimum: int, *allowed: object) -> None:
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        good = value in (None, *allowed) or is_whole(value, minimum)
        require(good, key, f"a whole number ≥ {minimum}", value)

    for key in ("optimizer.lr", "optimizer.classifier_lr", "optimizer.weight_decay"):
        rate = OmegaConf.select(cfg, key, throw_on_missing=False)
        require(rate is None or is_number(rate, 0), key, "a number ≥ 0", rate)
    # without an end of epochs there must be an end of steps
    endless = (-1,) if OmegaConf.select(cfg, "max_steps", default=-1) not in (None, -1) else ()
    whole("max_epochs", 1, *endless)
    whole("optimizer.batch_size", 1)
    whole("data.num_workers", 0)
    whole("seed", 0)
    whole("checkpoint.frequency", 1)
    entries = OmegaConf.select(cfg, "augmentations", throw_on_missing=False)
    if entries is not None:
        good = isinstance(entries, ListConfig) and len(entries) > 0
        require(good, "augmentations", "a list of pipelines", entries)
        for number in range(len(entries)):
            for key in ("crop_size", "num_crops"):
                if OmegaConf.select(cfg, f"augmentations.{number}.{key}") is None:
                    raise ConfigError(f"augmentations.{number}.{key}: expected a value, got none")
                whole(f"augmentations.{number}.{key}", 1)
