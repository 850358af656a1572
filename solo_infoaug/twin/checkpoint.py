"""Checkpoints of runs with InfoAug or f-MICL: what is saved, refused and restored.

solo-learn saves weights, optimizer and schedule. With InfoAug, the checkpoint also holds the random
state and the momentum coefficient. The buffers that SwAV and DeepCluster V2 make when training
starts (queue, memory) are restored. A resumed run is therefore, bit for bit, the run that was not
stopped.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import Host
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.twin.config import SHOULD_MATCH, InfoAugConfig, from_former_keys
from solo_infoaug.twin.randomness import fork_rng

_TWINS, _OBJECTIVE = "solo_infoaug", "solo_infoaug_fmicl"  # the keys in a checkpoint


# --- saved -----------------------------------------------------------------------------------


def save(
    checkpoint: dict[str, Any],
    method: Any,
    settings: InfoAugConfig | None,
    objective: FMICLConfig | None,
) -> None:
    """Save a run's twins, objective, random state and momentum coefficient."""
    if objective is not None:
        checkpoint[_OBJECTIVE] = objective.asdict()
    if settings is None:
        return
    updater = getattr(method, "momentum_updater", None)
    checkpoint[_TWINS] = {
        "fingerprint": settings.fingerprint,
        "positives": settings.positives,
        "weight": settings.weight,
        "random": random_state(method.device),
        "tau": None if updater is None else updater.cur_tau,
    }


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators, in plain types and tensors."""
    algorithm, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [algorithm, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


# --- refused ---------------------------------------------------------------------------------


def check_objective(checkpoint: dict[str, Any], objective: FMICLConfig | None) -> None:
    """Raise a ConfigError unless the checkpoint was trained with this objective."""
    ours = None if objective is None else objective.asdict()
    theirs = checkpoint.get(_OBJECTIVE)
    if ours != theirs:
        raise ConfigError(
            f"fmicl: the checkpoint to resume was trained with {theirs or 'no fmicl'}, this "
            f"run has {ours or 'none'}; resume with the configuration that it was trained with"
        )


def check_kind(theirs: bool, ours: bool) -> None:
    """Raise a ConfigError unless checkpoint and run both have a twin branch, or neither."""
    if theirs != ours:
        kinds = {False: "a baseline run", True: "a run with InfoAug"}
        raise ConfigError(
            f"resume_from_checkpoint: the checkpoint is that of {kinds[theirs]}, but this is "
            f"{kinds[ours]}; resume with the configuration that it was trained with"
        )


def check_former_runs(cfg: DictConfig, host: Host) -> None:
    """Refuse to start again if the same run exists under the former keys.

    Auto-resume compares the keys in args.json. A run saved under the former keys never matches, so
    it would silently be trained again from the beginning. `cfg` is as `write_infoaug` completes it.

    Raises:
        ConfigError: there is such a run.
    """
    select = OmegaConf.select
    if not select(cfg, "auto_resume.enabled") or select(cfg, "resume_from_checkpoint") is not None:
        return
    keys = {*host.should_match, *SHOULD_MATCH}
    oldest = time.time() - 3600 * select(cfg, "auto_resume.max_hours", default=36)
    for path in (Path(cfg.checkpoint.dir) / cfg.method).rglob("*.ckpt"):
        args = path.parent / "args.json"
        if not args.is_file() or path.stat().st_ctime < oldest:
            continue
        run = json.loads(args.read_text(encoding="utf-8"))
        former = run.get("infoaug")
        if not isinstance(former, dict) or "arm" not in former:
            continue
        today = OmegaConf.create({**run, "infoaug": from_former_keys(former)})
        if all(select(today, key) == select(cfg, key) for key in keys):
            raise ConfigError(
                f"auto_resume: {path} is from this run, but its args.json has the former keys "
                "infoaug.arm and infoaug.others; to resume, replace them there by positives: "
                f"{cfg.infoaug.positives} and without_twin_share: "
                f"{cfg.infoaug.without_twin_share}; to start again, choose another checkpoint.dir"
            )


def has_twins(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is from a run with InfoAug."""
    return _TWINS in checkpoint


# --- put back --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resumption:
    """What to restore when a run resumes, and when.

    In this order: `restore_random_state`, once the checkpoint is loaded; `on_train_start` around
    the method's hook of that name, and `on_train_epoch_start` around that one, once.
    """

    method: Any
    branch: Any
    saved: Mapping[str, Any]
    """What `save` put into the checkpoint."""
    late_buffers: dict[str, Tensor]
    """From `take_late_buffers`."""

    @staticmethod
    def of(method: Any, branch: Any, checkpoint: dict[str, Any]) -> Resumption | None:
        """None if the checkpoint has no random state."""
        late = take_late_buffers(method, branch, checkpoint["state_dict"])
        saved = checkpoint.get(_TWINS, {})
        return Resumption(method, branch, saved, late) if "random" in saved else None

    def restore_random_state(self) -> None:
        """Restore the random state. The checkpoint only has that of the first process."""
        trainer = self.method.trainer
        if trainer.world_size == 1:
            _set_random_state(self.saved["random"], trainer.strategy.root_device)

    @contextmanager
    def on_train_start(self) -> Iterator[None]:
        """Inside, the run draws what it drew at its first start. Then restore buffers and
        momentum."""
        with fork_rng(0, self.method.device):
            yield
        for name, value in self.late_buffers.items():
            self.method.get_buffer(name).copy_(value)
        if self.saved["tau"] is not None:
            # those of the branch may be among the method's
            pairs = dict.fromkeys([*self.method.momentum_pairs, *self.branch.momentum_pairs])
            _set_momentum(self.method.momentum_updater, list(pairs), self.saved["tau"])

    @contextmanager
    def on_train_epoch_start(self) -> Iterator[None]:
        """Draw in the same order as a run that was not stopped.

        Such a run calls this hook before it asks its data loader for the epoch; a resumed run,
        after.
        """
        self.restore_random_state()
        yield
        # the loader's base seed; if it has workers, it queues indices at once, so the sampler's too
        loader = self.method.trainer.train_dataloader
        for _ in range(2 if getattr(loader, "num_workers", 0) else 1):
            torch.empty((), dtype=torch.int64).random_()


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the state that `random_state` returned."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"].cpu(), device)


def take_late_buffers(
    method: nn.Module, branch: Any, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Remove from a checkpoint's `weights` the buffers that training only makes when it starts.

    The branch's spec names these. The method is as its constructor leaves it, with the branch.
    """
    known = method.state_dict().keys()
    names = {name.rpartition(".")[2] for name in branch.learner.spec.state}
    late = [key for key in weights if key not in known and key.rpartition(".")[2] in names]
    return {key: weights.pop(key) for key in late}


@torch.no_grad()
def _set_momentum(updater: Any, pairs: list[tuple[Any, Any]], tau: float) -> None:
    """Restore the momentum coefficient `tau`.

    A momentum update chooses the memory layout of its results, and the rounding of a convolution
    depends on the layout. An update that changes no value therefore restores the layout.
    """
    updater.cur_tau = 1.0
    for pair in pairs:
        updater.update(*pair)
    updater.cur_tau = tau


def once_inside(owner: Any, name: str, context: Callable[[], AbstractContextManager[None]]) -> None:
    """Run the next call of a hook of `owner` inside `context`; later calls run as usual."""

    def hook() -> None:
        delattr(owner, name)
        with context():
            getattr(owner, name)()

    setattr(owner, name, hook)
