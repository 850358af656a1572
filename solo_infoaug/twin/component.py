"""The twin branch: everything about training on twins, whoever trains.

A `TwinBranch` has a `learner` (a second instance of a solo-learn method, or heads and a loss) and a
`sampler` of twins. It shares the backbone of its caller, who adds the two losses:

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
    """Prepare the next twin batch while a step runs. None: if the model is on a GPU."""

    one_pass: bool | None = None
    """Pass all views of a step through the backbone together. None: if the model is on the CPU."""

    few_operations: bool | None = None
    """How one pass works: with few operations (if Python is the bottleneck) or with little memory
    traffic. None: with few operations if the model is on a GPU."""

    def __init__(self, learner: Any, sampler: TwinSampler) -> None:
        super().__init__()
        self.learner, self.sampler = learner, sampler
        self._twins: TwinBatch | None = None

    @property
    def settings(self) -> InfoAugConfig:
        """The settings under `infoaug`."""
        return self.sampler.settings

    # --- a step ------------------------------------------------------------------------------

    @torch.compiler.disable  # its shapes change from step to step
    def batch(self, step: int) -> TwinBatch:
        """Patches and twins of a step, as the backbone is given them."""
        twins = self.sampler.batch(step, self.learner.position)
        return TwinBatch(twins.index, self.learner.given(twins.views), twins.random)

    def loss(self, step: int) -> Tensor:
        """λ times the loss of the twins of a step. All random draws depend on the step alone."""
        with self.together(step, []) if self._twins is None else nullcontext():
            twins = self._twins
            assert twins is not None
            position = self.learner.position
            with self.sampler.randomness(step, position, twins.random), self._norms():
                # a patch is a class of its own: its label is its number in the dictionary
                loss = self.learner.training_step([twins.index, twins.views, twins.index], step)
        self.learner.log("train_loss", loss, on_epoch=True, sync_dist=True)
        # the backward pass needs no Python, so this does not slow it down
        self._prepare(step + 1)
        return self.settings.weight * loss

    @contextmanager
    def together(self, step: int, views: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
        """Inside, the caller's views of a step and the twins pass through the backbone together.

        Up to rounding, the result is that of separate passes. Inside, run your own step on the
        views that this yields, then call `loss(step)`.
        """
        self._twins = twins = self.batch(step)
        on_cpu = twins.index.device.type == "cpu"
        one_pass = on_cpu if self.one_pass is None else self.one_pass
        try:
            with ExitStack() as stack:
                if one_pass:
                    views = self.learner.given(views)
                    for backbone, norms, is_frozen in self._backbones():
                        both = Views(views), Views(twins.views, norms, is_frozen)
                        stack.enter_context(joined(backbone, *both, few=self.few_operations))
                yield views
        finally:
            self._twins = None

    @contextmanager
    def _norms(self) -> Iterator[None]:
        """Inside, the backbone's batch norms work as `infoaug.batch_norm` says."""
        with ExitStack() as stack:
            for backbone, norms, is_frozen in self._backbones():
                stack.enter_context(seen(backbone, norms, is_frozen=is_frozen))
            yield

    def _backbones(self) -> Iterator[tuple[nn.Module, nn.ModuleList | None, bool]]:
        """Each shared backbone, the branch's own batch norms for it, and whether they are
        frozen."""
        is_frozen = self.settings.batch_norm == "frozen"
        for backbone, norms in self.learner.backbones():
            yield backbone, norms, is_frozen

    @torch.compiler.disable
    def _prepare(self, step: int) -> None:
        """Begin to prepare the twins of the next step of this epoch.

        It does nothing at the end of an epoch: loaders then fork their workers, which is unsafe
        with more than one thread.
        """
        position = self.learner.position
        # on the CPU it would slow down the step by as much as it saves
        wanted = position.device.type == "cuda" if self.prefetch is None else self.prefetch
        if wanted and not self.learner.ends_epoch:
            self.sampler.prepare(step, position)

    # --- training ----------------------------------------------------------------------------

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimizer, in addition to the caller's: what the branch trains, without the
        backbone."""
        groups: list[dict[str, Any]] = self.learner.learnable_params
        return groups

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """The branch's own pairs of modules; the second is the moving average of the first."""
        return getattr(self.learner, "momentum_pairs", [])

    def hook(self, name: str) -> None:
        """Run one of Lightning's hooks (`spec.HOOKS`) of the learner; `on_train_end` closes the
        branch."""
        if name == "on_train_end":
            self.close()
            return
        with self.sampler.randomness(BEFORE_STEPS, self.learner.position):
            getattr(self.learner, name)()

    def close(self) -> None:
        """Discard twins that were prepared for a step that will not run."""
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
            backbone: any module from images to features. Your loop trains it too.
            loss: takes the outputs of the heads, a tensor [B, D] for each view, alternately of
                patches and of twins.
            settings: with `batch_size`, but without `heads`, `augmentations` and `objective`, which
                are arguments here.
            views: pipelines, from `views.build_pipeline`.
            heads: module from features to what the loss compares; by default, the features
                themselves.
            seed: of all random draws of the branch.

        Raises:
            ConfigError: settings that do not fit each other, the dictionary or the backbone.
            DictionaryError: there is no such dictionary.
        """
        for key, instead in (("heads", "heads"), ("augmentations", "views"), ("objective", "loss")):
            if getattr(settings, key) is not None:
                raise ConfigError(
                    f"infoaug.{key}: expected none in a loop of your own, got "
                    f"{getattr(settings, key)!r}; use the argument {instead} of "
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

        Its class `kind` is from `learner_class`, `settings` from `complete_infoaug`.

        Raises:
            ConfigError: settings that do not fit each other, the dictionary or the method.
            DictionaryError: there is no dictionary, or no patch in it has a twin.
        """
        spec = find_method(kind.infoaug_name)
        spec.check(method, settings.batch_size or 0, 1)
        seed = int(OmegaConf.select(cfg, "seed", default=0))
        pipelines = twin_pipelines(host, cfg, settings)
        sampler = TwinSampler(settings, pipelines, seed=seed, both_views=spec.both_views)
        check_norms(settings, method.backbone, str(cfg.backbone.name))
        return cls(learner_of(method, kind, cfg, sampler), sampler)


def check_norms(settings: InfoAugConfig, backbone: nn.Module, name: str) -> None:
    """Raise a ConfigError if `infoaug.batch_norm` is set and the backbone has no batch norm."""
    if settings.batch_norm != "shared" and not norms_of(backbone):
        raise ConfigError(
            f"infoaug.batch_norm: {settings.batch_norm!r} needs a backbone with batch norm, and "
            f"{name} has none; use shared"
        )


def twin_pipelines(host: Host, cfg: DictConfig, settings: InfoAugConfig) -> list[Pipeline]:
    """The branch's view pipelines: `infoaug.augmentations`, or the run's own.

    Raises:
        ConfigError: the numbers or sizes of crops differ from those of the run's own views; or
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
