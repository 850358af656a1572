"""Weights from files: read without running their code, and loaded into a backbone as far as they
fit."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import backbone_entries

TIMM = "timm:"
"""Prefix of `init` for a model of timm instead of a file."""

# What other programs put before the names of a model, and around them.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_INSIDE = ("state_dict", "model", "model_state_dict")
# A message names at most this many tensors of a kind.
_NAMED = 4


class _Inert:
    """Stands for objects in a checkpoint that are not needed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class _TensorsOnly:
    """A pickle module for `torch.load` that only makes tensors and containers, and runs no other
    code.

    `weights_only` would refuse checkpoints whose scheduler holds a function, such as SimSiam's in
    solo-learn.
    """

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            wanted = {
                ("collections", "OrderedDict"),
                ("torch._utils", "_rebuild_parameter"),
                ("torch._utils", "_rebuild_tensor_v2"),
            }
            return super().find_class(module, name) if (module, name) in wanted else _Inert


def read_checkpoint(path: str | Path) -> Any:
    """The content of a file from torch.save, on the CPU. Errors of torch pass through."""
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_TensorsOnly)


@dataclass(frozen=True)
class Fit:
    """The weights that fit a backbone, and the names of those that do not."""

    taken: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]

    @property
    def told(self) -> str:
        """One line for people."""
        texts = [f"{len(self.taken)} tensors of the backbone"]
        kinds = {"missing": self.missing, "unexpected": self.unexpected}
        for what, names in {**kinds, "of another shape": self.shapes}.items():
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                texts.append(f"{what}: {', '.join(names[:_NAMED])}{more}")
        return "; ".join(texts)


def fit(backbone: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Compare weights with a backbone's, by name and shape."""
    own = backbone.state_dict()
    # it counts steps, and older files have none
    missing = [n for n in own if n not in weights and not n.endswith("num_batches_tracked")]
    shapes = {
        name: f"{name} {list(weights[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    }
    taken = {name: weights[name] for name in own if name in weights and name not in shapes}
    unexpected = tuple(sorted(name for name in weights if name not in own))
    return Fit(taken, tuple(missing), unexpected, tuple(shapes.values()))


def initial_weights(init: str, backbone: nn.Module) -> Fit:
    """Compare the weights that `init` names with a backbone.

    `init` is a file (a checkpoint of solo-learn or of Lightning, a state dict, safetensors), or
    `timm:NAME` for a pretrained model of timm.

    Raises:
        ConfigError: the weights cannot be read or downloaded, or none of them fits.
    """
    if init.startswith(TIMM):
        candidates = iter([_from_timm(init.removeprefix(TIMM))])
    else:
        candidates = _candidates(_read(init))
    fits = [fit(backbone, weights) for weights in candidates]
    best = max(fits, key=lambda found: sum(map(Tensor.numel, found.taken.values())))
    if not any(tensor.is_floating_point() for tensor in best.taken.values()):
        raise ConfigError(f"init: nothing in {init} fits the backbone ({best.told})")
    return best


def _from_timm(name: str) -> dict[str, Tensor]:
    import timm

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # of the network, of the hub, of timm
        why = " ".join(str(error).split())[:200] or type(error).__name__
        known = timm.list_models(name) or timm.list_models(name.partition(".")[0])
        if not known:
            close = ", ".join(timm.list_models(f"{name[:6]}*", pretrained=True)[:5])
            hint = f"; it has {close}, …" if close else ""
            raise ConfigError(f"init: timm has no model {name!r}{hint}") from error
        raise ConfigError(
            f"init: the weights of {TIMM}{name} could not be downloaded ({why}); try again with a "
            "network, or name a file that holds them"
        ) from error
    return dict(model.state_dict())


def _read(path: str) -> Mapping[str, Any]:
    if not Path(path).is_file():
        raise ConfigError(
            f"init: expected a checkpoint or {TIMM}NAME, got {path}, which is not a file"
        )
    try:
        read: Any = load_file(path) if path.endswith(".safetensors") else read_checkpoint(path)
    except SafetensorError as error:
        raise ConfigError(f"init: {path} cannot be read: {error}") from error
    except Exception as error:  # torch.load raises anything
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"init: {path} cannot be read as a checkpoint: {why}") from error
    if not isinstance(read, Mapping):
        raise ConfigError(f"init: {path} holds no weights by name, but a {type(read).__name__}")
    return read


def _candidates(read: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Candidates for the backbone's weights, under its own names."""
    for inside in (read, *(read[key] for key in _INSIDE if isinstance(read.get(key), Mapping))):
        state = {key: value for key, value in inside.items() if isinstance(value, Tensor)}
        for prefix in ("", *_PREFIXES):
            bare = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if isinstance(key, str) and key.startswith(prefix)
            }
            yield backbone_entries(bare) or bare
