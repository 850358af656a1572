"""The door that solo-learn's own hook for plugins opens, where it has one.

A solo-learn with the patches in `upstream/` loads plugins from the entry-point group `solo.plugins`
and adds their losses to those of a method. Nothing in solo-learn is then replaced, neither
`METHODS` nor the keys of auto-resume. The loss is that of a `TwinBranch`.

solo-learn imports this module in every program that imports its methods, so heavy modules are
imported only when needed. Without such a solo-learn, this module cannot be imported; that is why it
is separate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig
from solo.utils.plugins import ExtraLoss, Plugin

NAME = "infoaug"
"""The plugin's name: `plugins: [infoaug]` in a configuration makes solo-learn ask for it."""


class InfoAugPlugin(Plugin):
    """The plugin, as solo-learn calls it."""

    @property
    def resume_keys(self) -> Sequence[str]:
        """Further keys that auto-resume compares."""
        from solo_infoaug.twin.config import SHOULD_MATCH

        return SHOULD_MATCH

    def add_and_assert_specific_cfg(self, cfg: DictConfig) -> DictConfig:
        """Check and complete `infoaug` and `fmicl`.

        Raises:
            ConfigError: a key or a value that cannot be used.
            DictionaryError: no twin dictionary.
        """
        if "infoaug" not in cfg and "fmicl" not in cfg:
            return cfg
        from solo_infoaug.host import load_host
        from solo_infoaug.twin.checkpoint import check_former_runs
        from solo_infoaug.twin.config import complete_infoaug, write_infoaug
        from solo_infoaug.twin.fmicl import read_fmicl, write_fmicl
        from solo_infoaug.twin.run_dictionary import open_if_there

        write_fmicl(cfg, read_fmicl(cfg, cfg.method))
        settings = complete_infoaug(cfg, cfg.method)
        if settings is not None:
            open_if_there(settings)
        write_infoaug(cfg, settings)
        if settings is not None:
            check_former_runs(cfg, load_host())
        return cfg

    def extra_loss(self, method: Any) -> ExtraLoss:
        """The twin branch's loss. Without InfoAug the loss is 0, but wrong checkpoints are
        refused."""
        return TwinLoss(method)


class TwinLoss(ExtraLoss):
    """The loss, parameters, momentum pairs and hooks of a twin branch.

    The branch is `method.twin_branch`, and checkpoints are the same as without the hook. The branch
    steps on its own, before the method has summed its own losses.
    """

    def __init__(self, method: Any) -> None:
        super().__init__(method)
        from solo_infoaug.host import load_host
        from solo_infoaug.twin.attach import give_branch
        from solo_infoaug.twin.component import TwinBranch
        from solo_infoaug.twin.config import complete_infoaug, write_infoaug
        from solo_infoaug.twin.fmicl import FMICLStep, read_fmicl
        from solo_infoaug.twin.learner import learner_class

        host, cfg, name = load_host(), method.cfg, method.cfg.method
        self.settings, self.objective = complete_infoaug(cfg, name), read_fmicl(cfg, name)
        kind = SimpleNamespace(infoaug_name=name, infoaug_plain=type(method))
        step = FMICLStep.of(method, kind, self.objective)
        self.branch: TwinBranch | None = None
        if self.settings is not None:
            plain: Any = type(method)
            learner = learner_class(name, plain, host.shared_modules)
            self.branch = TwinBranch.of_method(method, learner, cfg, self.settings, host)
            give_branch(method, self.branch)
            method.twin.trainer = method.trainer
        write_infoaug(cfg, self.settings)
        if step is not None:
            # the hook cannot replace InfoNCE, so the step of this one model is replaced
            method.training_step = partial(step.__call__, method)  # Lightning looks at its code
        method.register_load_state_dict_pre_hook(self._before_loading)

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        return [] if self.branch is None else self.branch.parameter_groups

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        return [] if self.branch is None else self.branch.momentum_pairs

    def loss(self, batch: Any, batch_idx: int) -> Any:
        """λ times the loss of a batch of twins; 0 without InfoAug."""
        return 0 if self.branch is None else self.branch.loss(batch_idx)

    # --- hooks -------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._hook("on_train_start")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._hook("on_train_epoch_start")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._hook("on_after_backward")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._hook("on_train_end")

    def _hook(self, name: str) -> None:
        if self.branch is not None:
            self.branch.hook(name)

    # --- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the settings of the run."""
        from solo_infoaug.twin.checkpoint import save

        save(checkpoint, self.method, self.settings, self.objective)

    def _before_loading(self, method: Any, weights: dict[str, Any], *_: Any) -> None:
        """Refuse the checkpoint of another kind of run, and remove buffers that are only made
        later.

        Lightning shows the checkpoint to callbacks too late for this.
        """
        from solo_infoaug.twin.checkpoint import check_kind, take_late_buffers

        if self.branch is not None:
            take_late_buffers(method, self.branch, weights)
        if method.trainer.training:
            theirs = any(name.startswith("twin.") for name in weights)
            check_kind(theirs, self.branch is not None)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Resume where the run was stopped.

        Raises:
            ConfigError: the checkpoint was trained with another objective.
        """
        from solo_infoaug.twin.checkpoint import Resumption, check_objective, once_inside

        if not trainer.training:
            return
        check_objective(checkpoint, self.objective)
        if self.branch is None:
            return
        resumption = Resumption.of(self.method, self.branch, checkpoint)
        if resumption is not None:
            resumption.restore_random_state()
            # a callback's hook is over when the method's begins
            once_inside(self.method, "on_train_start", resumption.on_train_start)
            once_inside(self.method, "on_train_epoch_start", resumption.on_train_epoch_start)
