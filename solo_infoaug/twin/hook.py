"""InfoAug and f-MICL through solo-learn's own hook for plugins, where it has one.

A solo-learn with the patches in `upstream/` loads plugins from the entry-point group `solo.plugins`
and adds their losses to those of a method. Then nothing of solo-learn is replaced: `METHODS` and
what auto-resume compares stay as they are. The twin branch is that of `branch.py`, around a method
that does nothing by itself and otherwise is the run's.

solo-learn imports this module in every program that imports its methods: what is heavy is imported
when it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from solo.utils.plugins import ExtraLoss, Plugin

NAME = "infoaug"
"""The plugin's name: `plugins: [infoaug]` in a configuration makes solo-learn ask for it."""


class InfoAugPlugin(Plugin):
    """What solo-learn calls."""

    @property
    def resume_keys(self) -> Sequence[str]:
        """The keys that auto-resume compares as well."""
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
        from solo_infoaug.twin.config import complete_infoaug, write_infoaug
        from solo_infoaug.twin.fmicl import read_fmicl, write_fmicl
        from solo_infoaug.twin.twins import open_if_there

        write_fmicl(cfg, read_fmicl(cfg, cfg.method))
        config = complete_infoaug(cfg, cfg.method)
        if config is not None:
            open_if_there(config)
        write_infoaug(cfg, config)
        return cfg

    def extra_loss(self, method: Any) -> ExtraLoss:
        """The twin branch's loss; without InfoAug none, but a wrong checkpoint is refused."""
        return TwinLoss(method)


class TwinLoss(ExtraLoss):
    """λ times the loss of the twin branch, its parameters, momentum pairs and hooks.

    The branch is `method.twin`, as it is without the hook: checkpoints are the same.
    """

    def __init__(self, method: Any) -> None:
        super().__init__(method)
        from solo_infoaug.twin.fmicl import read_fmicl, with_fmicl

        name, cfg = method.cfg.method, method.cfg
        plain = with_fmicl(name, type(method))
        self.twins = _around(name, plain)(cfg, method)
        objective = read_fmicl(cfg, name)
        if objective is not None:
            # InfoNCE is not added to but replaced: this one model gets f-MICL's training step
            method.__class__ = plain
            method.use_fmicl(objective)
        if self.twins.infoaug is not None:
            method.twin = self.twins.twin
            method.twin.trainer = method.trainer
        method.register_load_state_dict_pre_hook(self._before_loading)

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parameter groups of the branch's heads."""
        groups: list[dict[str, Any]] = self.twins.learnable_params
        return groups

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """The branch's momentum heads."""
        return [] if self.twins.infoaug is None else self.twins.twin.momentum_pairs

    def loss(self, batch: Any, batch_idx: int) -> Any:
        """λ times the loss of a batch of twins; 0 without InfoAug."""
        return self.twins.training_step(batch, batch_idx)

    # --- hooks -------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Forwarded to the branch."""
        if not self.twins.inside:
            self.twins.on_train_start()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Forwarded to the branch."""
        if not self.twins.inside:
            self.twins.on_train_epoch_start()

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Forwarded to the branch."""
        self.twins.on_after_backward()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Forget the twins of a step that does not come."""
        self.twins.on_train_end()

    # --- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note which twins the run was trained with."""
        self.twins.on_save_checkpoint(checkpoint)

    def _before_loading(self, method: Any, weights: dict[str, Any], *_: Any) -> None:
        """Refuse another kind of run's checkpoint, and take out what is only made later.

        Lightning shows a callback the checkpoint when it is too late for that.
        """
        from solo_infoaug.twin.branch import _CHECKPOINT_KEY

        checkpoint: dict[str, Any] = {"state_dict": weights}
        if any(name.startswith("twin.") for name in weights):
            checkpoint[_CHECKPOINT_KEY] = {}
        self.twins.on_load_checkpoint(checkpoint)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on where the run was stopped.

        Raises:
            ConfigError: the checkpoint was trained with f-MICL, and this run has none.
        """
        from solo_infoaug.twin.fmicl import check_checkpoint

        if not trainer.training:
            return
        if OmegaConf.select(self.method.cfg, "fmicl") is None:
            check_checkpoint(checkpoint, None)
        self.twins.on_load_checkpoint(checkpoint)
        if self.twins.resumption is not None:
            for name in ("on_train_start", "on_train_epoch_start"):
                self._once_inside(name)

    def _once_inside(self, name: str) -> None:
        """Let the method's next hook run inside the branch's, as when it goes on from a checkpoint.

        A callback's hook is over when the method's begins; what is restored there would be lost.
        """
        self.twins.inside.add(name)

        def hook() -> None:
            delattr(self.method, name)
            getattr(self.twins, name)()
            self.twins.inside.discard(name)

        setattr(self.method, name, hook)


def _around(name: str, plain: type) -> type:
    """`extend` for a method that is there already: what it adds, without the method."""
    from solo_infoaug.host import load_host
    from solo_infoaug.twin.branch import InfoAugMethod

    members = {"infoaug_name": name, "infoaug_plain": plain, "infoaug_host": load_host()}
    return type(f"Twins{plain.__name__}", (InfoAugMethod, _Nothing), members)


class _Nothing:
    """The method that `InfoAugMethod` extends here: no loss, no parameters, no hooks of its own.

    Everything else is the run's method's.
    """

    def __init__(self, cfg: DictConfig, method: Any) -> None:
        self.method = method
        self.inside: set[str] = set()
        """Hooks inside which the method's own runs."""

    def __getattr__(self, name: str) -> Any:
        if name == "method":  # not there yet
            raise AttributeError(name)
        return getattr(self.method, name)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return 0

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        return []

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """All of the run's: they are touched when it goes on from a checkpoint."""
        return self.method.momentum_pairs + self.twin.momentum_pairs

    def on_train_start(self) -> None:
        if "on_train_start" in self.inside:
            self.method.on_train_start()

    def on_train_epoch_start(self) -> None:
        if "on_train_epoch_start" in self.inside:
            self.method.on_train_epoch_start()

    def _nothing(self, *args: Any) -> None:
        return

    on_after_backward = on_train_end = on_save_checkpoint = on_load_checkpoint = _nothing
