"""The twin branch: all that is about training on twins, whoever trains.

A `TwinBranch` learns by a `learner` (a second instance of a solo-learn method, or heads and a loss)
from a `sampler`, over a backbone that its caller trains by something else:

    loss = own_loss + branch.loss(step)

The doors into solo-learn are in `attach.py` and `hook.py`; `TwinBranch.around` is for a loop of
your own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import Host
from solo_infoaug.twin.batch_norm import norms_of, seen
from solo_infoaug.twin.config import InfoAugConfig
from solo_infoaug.twin.joined import Views, joined
from solo_infoaug.twin.learner import PairLearner, learner_of
from solo_infoaug.twin.sampler import BEFORE_STEPS, TwinBatch, TwinSampler
from solo_infoaug.twin.spec import find_method
from solo_infoaug.views.pipeline import Pipeline, check_hosts_keys, run_pipelines


class TwinBranch(nn.Module):
    """Heads of its own over a shared backbone, which pull a patch and its twin together."""

    prefetch: bool | None = None
    """Prepare the next twin batch while a step runs; None: where the model is on a card."""

    one_pass: bool | None = None
    """Let the views of a step pass the backbone together; None: where the model is on the CPU."""

    few_operations: bool | None = None
    """How one pass works: by few operations (where Python takes the time) or by little memory
    traffic; None: the former where the model is on a card."""

    def __init__(self, learner: Any, sampler: TwinSampler) -> None:
        super().__init__()
        self.learner, self.sampler = learner, sampler
        self._twins: TwinBatch | None = None

    @property
    def settings(self) -> InfoAugConfig:
        """What `infoaug` says."""
        return self.sampler.settings

    # --- a step ------------------------------------------------------------------------------

    @torch.compiler.disable  # its shapes change from step to step
    def batch(self, step: int) -> TwinBatch:
        """Patches and twins of a step, as the backbone is given them."""
        twins = self.sampler.batch(step, self.learner.position)
        return TwinBatch(twins.index, self.learner.given(twins.views), twins.random)

    def loss(self, step: int) -> Tensor:
        """λ times the loss of the twins of a step; what is drawn depends on the step alone."""
        with self.together(step, []) if self._twins is None else nullcontext():
            twins = self._twins
            assert twins is not None
            position = self.learner.position
            with self.sampler.randomness(step, position, twins.random), self._norms():
                # a patch is a class of its own: its label is its number in the dictionary
                loss = self.learner.training_step([twins.index, twins.views, twins.index], step)
        self.learner.log("train_loss", loss, on_epoch=True, sync_dist=True)
        # gradients are computed without Python, which this does not take from them
        self._prepare(step + 1)
        return self.settings.weight * loss

    @contextmanager
    def together(self, step: int, views: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
        """Inside, the caller's views of a step and its twins pass the backbone in one go.

        The result is that of a pass each, up to rounding. `loss(step)` is to be called inside, with
        the caller's own step before it, which is given the views that this gives.
        """
        self._twins = twins = self.batch(step)
        on_cpu = twins.index.device.type == "cpu"
        one_pass = on_cpu if self.one_pass is None else self.one_pass
        try:
            with ExitStack() as stack:
                if one_pass:
                    views = self.learner.given(views)
                    for backbone, norms, still in self._backbones():
                        both = Views(views), Views(twins.views, norms, still)
                        stack.enter_context(joined(backbone, *both, few=self.few_operations))
                yield views
        finally:
            self._twins = None

    @contextmanager
    def _norms(self) -> Iterator[None]:
        """Inside, the shared backbone's batch norms work as `infoaug.batch_norm` says."""
        with ExitStack() as stack:
            for backbone, norms, still in self._backbones():
                stack.enter_context(seen(backbone, norms, still=still))
            yield

    def _backbones(self) -> Iterator[tuple[nn.Module, nn.ModuleList | None, bool]]:
        """Each that is shared, the branch's own batch norms of it, and whether they are frozen."""
        still = self.settings.batch_norm == "frozen"
        for backbone, norms in self.learner.backbones():
            yield backbone, norms, still

    @torch.compiler.disable
    def _prepare(self, step: int) -> None:
        """Begin to prepare the twins of the next step of this epoch.

        Between epochs loaders start their workers, and a process is best forked by its only thread.
        """
        position = self.learner.position
        # on the CPU it would take from the step what it gives
        wanted = position.device.type == "cuda" if self.prefetch is None else self.prefetch
        if wanted and not self.learner.ends_epoch:
            self.sampler.prepare(step, position)

    # --- training ----------------------------------------------------------------------------

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimizer, next to the caller's: what the branch trains but for the backbone."""
        groups: list[dict[str, Any]] = self.learner.learnable_params
        return groups

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """Pairs of modules of the branch's own, the second of which follows the first."""
        return getattr(self.learner, "momentum_pairs", [])

    def hook(self, name: str) -> None:
        """Do what the learner does in one of Lightning's hooks, `spec.HOOKS`, or end training."""
        if name == "on_train_end":
            self.close()
            return
        with self.sampler.randomness(BEFORE_STEPS, self.learner.position):
            getattr(self.learner, name)()

    def close(self) -> None:
        """Forget the twins of a step that does not come."""
        self.sampler.prefetch.clear()

    # --- how it is made ----------------------------------------------------------------------

    @classmethod
    def around(
        cls,
        backbone: nn.Module,
        loss: Callable[..., Tensor],
        settings: InfoAugConfig,
        views: Sequence[Pipeline],
        *,
        heads: nn.Module | None = None,
        seed: int = 0,
    ) -> TwinBranch:
        """A branch for a loop of your own.

        Args:
            backbone: any module, images to features, which the loop trains as well.
            loss: of the heads' outputs [B, D], one tensor a view: of patches and twins by turns.
            settings: with a `batch_size`, and without `heads`, `augmentations` and `objective`,
                whose place the other arguments take.
            views: `views.build_pipeline` makes one of them.
            heads: features to what the loss compares; default as they are.
            seed: of all that the branch draws.

        Raises:
            ConfigError: settings that do not fit each other, the dictionary or the backbone.
            DictionaryError: there is no such dictionary.
        """
        for key, instead in (("heads", "heads"), ("augmentations", "views"), ("objective", "loss")):
            if getattr(settings, key) is not None:
                raise ConfigError(
                    f"infoaug.{key}: expected none in a loop of your own, got "
                    f"{getattr(settings, key)!r}; it is the argument {instead} of "
                    "`TwinBranch.around`"
                )
        check_norms(settings, backbone, type(backbone).__name__)
        sampler = TwinSampler(settings, views, seed=seed, both_views=False)
        heads = nn.Identity() if heads is None else heads
        return cls(PairLearner(backbone, loss, heads, settings.batch_norm), sampler)

    @classmethod
    def of_method(
        cls, method: Any, kind: Any, cfg: DictConfig, settings: InfoAugConfig, host: Host
    ) -> TwinBranch:
        """The branch of a solo-learn method: a second instance of it learns from the twins.

        Args:
            method: with its backbone.
            kind: of the second instance, from `learner_class`.
            cfg: of the run.
            settings: of `cfg`, from `complete_infoaug`.
            host: whose method it is.

        Raises:
            ConfigError: settings that do not fit each other, the dictionary or the method.
            DictionaryError: a run that never had a dictionary has none now, or no patch a twin.
        """
        spec = find_method(kind.infoaug_name)
        spec.check(method, settings.batch_size or 0, 1)
        seed = int(OmegaConf.select(cfg, "seed", default=0))
        pipelines = twin_pipelines(host, cfg, settings)
        sampler = TwinSampler(settings, pipelines, seed=seed, both_views=spec.both_views)
        check_norms(settings, method.backbone, str(cfg.backbone.name))
        return cls(learner_of(method, kind, cfg, sampler), sampler)


def check_norms(settings: InfoAugConfig, backbone: nn.Module, name: str) -> None:
    """Raise a ConfigError if `infoaug.batch_norm` is about what the backbone does not have."""
    if settings.batch_norm != "shared" and not norms_of(backbone):
        raise ConfigError(
            f"infoaug.batch_norm: {settings.batch_norm!r} needs a backbone with batch norm, and "
            f"{name} has none; use shared"
        )


def twin_pipelines(host: Host, cfg: DictConfig, settings: InfoAugConfig) -> list[Pipeline]:
    """The branch's view pipelines: `infoaug.augmentations`, or the run's own.

    Raises:
        ConfigError: other numbers or sizes of crops than the run's own views have; or
            augmentations that the run's own views would lack.
    """
    entries = cfg.augmentations
    if settings.augmentations is None:
        if not OmegaConf.select(cfg, "data.whole_batches", default=False):
            check_hosts_keys(entries)
    else:
        entries = OmegaConf.create(list(settings.augmentations))

        def crops(pipelines: Any) -> list[tuple[int, int]]:
            return [(int(p.crop_size), int(p.num_crops)) for p in pipelines]

        if crops(entries) != crops(cfg.augmentations):
            raise ConfigError(
                "infoaug.augmentations: expected the crop sizes and numbers of `augmentations`, "
                f"{crops(cfg.augmentations)}, got {crops(entries)}"
            )
    return run_pipelines(host, cfg, entries)
