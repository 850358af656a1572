"""The door that registration opens: a subclass of each method of solo-learn, which holds a branch.

`extend(name, method, host)` gives a subclass that looks at `infoaug` and `fmicl` in its
configuration. Without them, it is the plain method, bit for bit. With `infoaug`, it adds the loss,
parameters, momentum pairs and hooks of a `TwinBranch` to those of the method. With `fmicl`, an
`FMICLStep` replaces its training step. It knows nothing of twins itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from solo_infoaug.host import Host
from solo_infoaug.host.method import Method
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.twin import checkpoint as checkpoints
from solo_infoaug.twin.component import TwinBranch
from solo_infoaug.twin.config import InfoAugConfig, complete_infoaug, write_infoaug
from solo_infoaug.twin.fmicl import FMICLStep, read_fmicl, write_fmicl
from solo_infoaug.twin.learner import REGISTERED, learner_class
from solo_infoaug.twin.momentum import update_by_foreach


class _BranchClass:
    """`METHODS[…].infoaug_branch`, made when it is first asked for; pickle finds it here."""

    def __get__(self, method: Any, owner: type[InfoAugMethod]) -> type:
        shared = owner.infoaug_host.shared_modules
        return learner_class(owner.infoaug_name, owner.infoaug_plain, shared)


def give_branch(method: Any, branch: TwinBranch) -> None:
    """Give a method a branch, whose learner is trained, moved and saved as `method.twin`."""
    method.twin = branch.learner
    # not as a module of the method: its weights would be saved twice
    object.__setattr__(method, "twin_branch", branch)


class InfoAugMethod(Method):
    """Mixed into every supported method of solo-learn by `extend`."""

    infoaug_plain: type
    infoaug_host: Host
    infoaug_name: str
    infoaug_branch = _BranchClass()

    infoaug: InfoAugConfig | None = None
    fmicl: FMICLConfig | None = None
    fmicl_step: FMICLStep | None = None
    twin: Any
    twin_branch: TwinBranch | None = None
    resumption: checkpoints.Resumption | None = None
    """What to restore, from the time a checkpoint is loaded until the first epoch has begun."""

    def __init__(self, cfg: DictConfig | None = None, *args: Any, **kwargs: Any) -> None:
        if cfg is None:  # the PyPI release's own keyword arguments
            super().__init__(*args, **kwargs)
            return
        settings = complete_infoaug(cfg, self.infoaug_name)
        objective = read_fmicl(cfg, self.infoaug_name)
        super().__init__(cfg, *args, **kwargs)
        self.infoaug, self.fmicl = settings, objective
        self.fmicl_step = FMICLStep.of(self, self, objective)
        write_fmicl(cfg, objective)
        if settings is not None:
            host, kind = self.infoaug_host, self.infoaug_branch
            give_branch(self, TwinBranch.of_method(self, kind, cfg, settings, host))
            if hasattr(self, "momentum_updater"):
                update_by_foreach(self.momentum_updater)
        write_infoaug(cfg, settings)
        if settings is not None:
            checkpoints.check_former_runs(cfg, self.infoaug_host)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Without `infoaug` and `fmicl`, a model is pickled as plain solo-learn's.

        It can then be loaded without this package. The release's methods are adapters of this
        package, and are pickled as such.
        """
        off = self.infoaug is None and self.fmicl is None
        # a user's subclass is left as it is
        ours = type(self).__module__ == REGISTERED
        if off and ours and not self.infoaug_host.adapted:
            return object.__new__, (self.infoaug_plain,), self.__getstate__()
        return super().__reduce_ex__(protocol)

    # --- training ----------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The method's own loss; with InfoAug, plus λ times the loss of the twin branch."""
        branch = self.twin_branch
        if branch is None:
            return self._own_step(batch, batch_idx)
        views = [batch[1]] if isinstance(batch[1], Tensor) else batch[1]
        with branch.together(batch_idx, views) as views:
            loss = self._own_step([batch[0], views, batch[2]], batch_idx)
            return loss + branch.loss(batch_idx)

    def _own_step(self, batch: Any, batch_idx: int) -> Any:
        if self.fmicl_step is None:
            return super().training_step(batch, batch_idx)
        return self.fmicl_step(self, batch, batch_idx)

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        groups = super().learnable_params
        return groups if self.twin_branch is None else groups + self.twin_branch.parameter_groups

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        pairs = super().momentum_pairs
        return pairs if self.twin_branch is None else pairs + self.twin_branch.momentum_pairs

    def on_train_start(self) -> None:
        self._hook("on_train_start")
        with self.resumption.on_train_start() if self.resumption else nullcontext():
            super().on_train_start()

    def on_train_epoch_start(self) -> None:
        self._hook("on_train_epoch_start")
        with self.resumption.on_train_epoch_start() if self.resumption else nullcontext():
            super().on_train_epoch_start()
        self.resumption = None

    def on_after_backward(self) -> None:
        self._hook("on_after_backward")
        super().on_after_backward()

    def on_train_end(self) -> None:
        self._hook("on_train_end")
        super().on_train_end()

    def _hook(self, name: str) -> None:
        if self.twin_branch is not None:
            self.twin_branch.hook(name)

    # --- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings of the run."""
        super().on_save_checkpoint(checkpoint)
        checkpoints.save(checkpoint, self, self.infoaug, self.fmicl)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume from another kind of run.

        Raises:
            ConfigError: the checkpoint has another objective, or only one of checkpoint and run has
                InfoAug.
        """
        super().on_load_checkpoint(checkpoint)
        trainer = getattr(self, "_trainer", None)
        trained = trainer is not None and trainer.training
        if trained:
            checkpoints.check_objective(checkpoint, self.fmicl)
            checkpoints.check_kind(checkpoints.has_twins(checkpoint), self.twin_branch is not None)
        if self.twin_branch is not None:
            resumption = checkpoints.Resumption.of(self, self.twin_branch, checkpoint)
            if trained and resumption is not None:
                self.resumption = resumption
                resumption.restore_random_state()


def extend(name: str, method: type, host: Host) -> type:
    """A subclass of the method `name` in `METHODS` that reads `infoaug` and `fmicl` from `cfg`."""
    members: dict[str, Any] = {
        "infoaug_name": name,
        "infoaug_plain": method,
        "infoaug_host": host,
        "__module__": REGISTERED,
        "__qualname__": name,
        "__doc__": method.__doc__,
    }
    create: Callable[..., type] = type
    return create(method.__name__, (InfoAugMethod, method), members)
