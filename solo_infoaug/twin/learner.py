"""What a twin branch trains: a second instance of a solo-learn method, or heads and a loss.

Both use a backbone that somebody else owns, own their heads and state, and return the loss of a
batch. `learner_of` makes the first; `PairLearner` is the second.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, distributed, nn

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.host import BACKBONE_NAMES
from solo_infoaug.host.method import Method
from solo_infoaug.objectives.config import FMICLConfig
from solo_infoaug.twin.batch_norm import own_norms
from solo_infoaug.twin.config import InfoAugConfig
from solo_infoaug.twin.fmicl import FMICLStep, read_fmicl
from solo_infoaug.twin.randomness import fork_rng
from solo_infoaug.twin.run_dictionary import risks
from solo_infoaug.twin.sampler import Position, TwinSampler
from solo_infoaug.twin.spec import MethodSpec, find_method

REGISTERED = "solo_infoaug.registered"
"""The module through which pickle finds the classes made for solo-learn's methods."""

# Parameter groups that the view branch has already, or that a branch without labels does not need.
_NOT_THE_BRANCHS = {*BACKBONE_NAMES.values(), "classifier", "momentum_classifier"}

# What a method logs about labels means nothing for images without them.
_NOT_LOGGED = {"train_class_loss", "train_acc1", "train_acc5", "train_nn_acc", "train_n_positives"}

Backbones = Iterator[tuple[nn.Module, nn.ModuleList | None]]
"""Each backbone that a branch shares, and the branch's own batch norms for it."""


# --- a second instance of a method -----------------------------------------------------------


class _NoClassifier(nn.Module):
    """Replaces the online classifier: it has one class, so its loss is exactly zero."""

    def forward(self, features: Tensor) -> Tensor:
        return features.new_zeros(len(features), 1)


def _shared_module(name: str) -> property:
    def get(learner: Any) -> nn.Module:
        # while it is built its constructor works on a module of its own
        own = learner._modules.get(name)
        return own if own is not None else getattr(learner.view_branch, name)

    return property(get)


def _renamed_module(name: str, to: str) -> property:
    def get(learner: Any) -> nn.Module:
        # under its old name while the constructor works
        return learner._modules[to if to in learner._modules else name]

    return property(get)


class TwinMethod(Method):
    """Mixed into a method: it uses the backbone of the view branch, and logs through the view
    branch."""

    infoaug_name: str
    infoaug_plain: type
    infoaug_shared: tuple[str, ...]

    view_branch: Any
    spec: MethodSpec
    sampler: TwinSampler
    norms: nn.ModuleList | None
    momentum_norms: nn.ModuleList | None
    fmicl: FMICLConfig | None
    fmicl_step: Callable[..., Tensor] | None

    # --- what the branch asks ----------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where training is."""
        view, trainer = self.view_branch, self.view_branch._trainer
        batches = getattr(trainer, "num_training_batches", None)
        return Position(
            view.global_rank,
            view.current_epoch,
            view.device,
            processes=getattr(trainer, "world_size", 1),
            steps=batches if isinstance(batches, int) else None,
        )

    @property
    def ends_epoch(self) -> bool:
        """Whether this is the last step of the epoch."""
        return bool(getattr(self.view_branch._trainer, "is_last_batch", False))

    def backbones(self) -> Backbones:
        """The view branch's backbone, and its momentum backbone."""
        yield self.view_branch.backbone, self.norms
        if hasattr(self.view_branch, "momentum_backbone"):
            yield self.view_branch.momentum_backbone, self.momentum_norms

    def given(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Views in the form that the backbone takes, so that the method makes no copies.

        They get the backbone's memory layout and the precision of the loader's batches.
        """
        if not getattr(self.view_branch, "no_channel_last", True):
            views = [view.to(memory_format=torch.channels_last) for view in views]
        plugin = getattr(self.view_branch._trainer, "precision_plugin", None)
        return list(views) if plugin is None else plugin.convert_input(list(views))

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log through the view branch, `train_x` as `twin_x`."""
        if name not in _NOT_LOGGED:
            self.view_branch.log(f"twin_{name.removeprefix('train_')}", value, *args, **kwargs)

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Log through the view branch, `train_x` as `twin_x`."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)

    # --- what is different from the method ---------------------------------------------------

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parameters of the branch's own heads."""
        groups = super().learnable_params
        own = [group for group in groups if group.get("name") not in _NOT_THE_BRANCHS]
        if self.norms is not None:
            own.append({"name": "norms", "params": self.norms.parameters()})
        # some groups have no name
        return [{**g, "name": f"twin_{g['name']}"} if "name" in g else g for g in own]

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """The branch's own momentum heads; the view branch updates the backbone."""
        pairs = super().momentum_pairs
        own = [pair for pair in pairs if pair[0] is not self.view_branch.backbone]
        return own if self.momentum_norms is None else [*own, (self.norms, self.momentum_norms)]

    def _base_shared_step(self, X: Tensor, targets: Tensor) -> Any:  # noqa: N803
        """The method's outputs, with the class loss of one class, which is zero.

        Computing it would take about thirty operations per step.
        """
        # as the release's and the current solo-learn's base classes do it
        method: Any = self
        outputs = method.base_forward(X) if hasattr(method, "base_forward") else method(X)
        return {**outputs, "loss": 0.0, "acc1": 0.0, "acc5": 0.0}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The method's own training step, or f-MICL's."""
        if self.fmicl_step is None:
            return super().training_step(batch, batch_idx)
        return self.fmicl_step(self, batch, batch_idx)

    def on_train_start(self) -> None:
        """Print what the branch trains on, warn of risks, and run the method's own hook.

        Raises:
            DictionaryError: the dictionary cannot be opened.
            ConfigError: the method's state cannot take the twin batches of all processes.
        """
        dictionary, settings = self.sampler.opened(), self.sampler.settings
        processes = self.view_branch.trainer.world_size
        self.spec.check(self.view_branch, settings.batch_size or 0, processes)
        # solo-learn's configurations silence logging
        rank_zero_only(print)(_announcement(dictionary, settings, self.view_branch.device))
        pairs = (settings.batch_size or 0) * processes
        for risk in risks(dictionary, self.view_branch.cfg, self.spec.state, pairs):
            rank_zero_warn(risk)
        super().on_train_start()


def _announcement(dictionary: TwinDictionary, settings: InfoAugConfig, device: torch.device) -> str:
    return (
        f"InfoAug: positives={settings.positives}, weight={settings.weight:g}, "
        f"{settings.batch_size} pairs a step of {len(dictionary.anchors)} "
        f"patches with a twin in {settings.twins} ({settings.chosen_by}; written "
        f"{settings.written}, of {', '.join(settings.videos or [])}); views on {device}"
    )


@cache
def learner_class(name: str, plain: type, shared: tuple[str, ...]) -> type:
    """The class of a method's second instances. It is made once, so that pickle can name it.

    `shared` are the method's names for the backbone and the momentum backbone.
    """
    spec = find_method(name)
    members: dict[str, Any] = {module: _shared_module(module) for module in shared}
    members |= {old: _renamed_module(old, new) for old, new in spec.renamed.items()}
    members |= {"infoaug_name": name, "infoaug_plain": plain, "infoaug_shared": shared}
    members |= {"__module__": REGISTERED, "__qualname__": f"{name}.infoaug_branch"}
    bases = tuple(base for base in (TwinMethod, spec.branch, plain) if base is not object)
    return type(f"Twin{plain.__name__}", bases, members)


def learner_of(view_branch: Any, kind: Any, cfg: DictConfig, sampler: TwinSampler) -> Any:
    """A second instance of the method `view_branch` that a run trains, over its backbone.

    Its class is from `learner_class`. Its heads are initialised from the run's seed without
    touching torch's random state, so that a run with InfoAug sees the same data in the same order
    as one without.

    Raises:
        ConfigError: the settings ask for no heads where the loss needs them.
    """
    spec, settings = find_method(kind.infoaug_name), sampler.settings
    own = _configuration(spec, cfg, settings)
    if settings.heads == "none":
        _check_headless(spec)
        with open_dict(own):
            own.method_kwargs.proj_output_dim = view_branch.features_dim  # of queues
    with fork_rng(sampler.seed + 1, torch.device("cpu")):
        learner = kind(own)
    if settings.heads == "none":
        _leave_out_heads(learner, view_branch.features_dim)
    # not as a submodule: the view branch owns this learner, which only refers back
    object.__setattr__(learner, "view_branch", view_branch)
    for shared in kind.infoaug_shared:
        learner._modules.pop(shared, None)
    for old, to in spec.renamed.items():
        learner._modules[to] = learner._modules.pop(old)
    learner.classifier = _NoClassifier()
    learner.spec, learner.sampler = spec, sampler
    learner.fmicl = read_fmicl(own, kind.infoaug_name)
    learner.fmicl_step = FMICLStep.of(learner, kind, learner.fmicl)
    learner.norms = learner.momentum_norms = None
    if settings.batch_norm == "separate":
        learner.norms, *momentum = [own_norms(shared) for shared, _ in learner.backbones()]
        learner.momentum_norms = momentum[0] if momentum else None
    return learner


def _configuration(spec: MethodSpec, cfg: DictConfig, settings: InfoAugConfig) -> DictConfig:
    """The configuration that a second instance is built from."""
    own = copy.deepcopy(cfg)
    with open_dict(own):
        own.pop("infoaug", None)
        if settings.objective is not None:
            own.fmicl = settings.objective
        own.data.num_classes = 1
        own.knn_eval = {"enabled": False}
        own.optimizer.batch_size = settings.batch_size
        if OmegaConf.select(own, "momentum") is not None:
            own.momentum.classifier = False
        spec.configure(own)
    return own


def _check_headless(spec: MethodSpec) -> None:
    if "projector" not in spec.heads or set(spec.heads) - {"projector", "predictor"}:
        raise ConfigError(
            f"infoaug.heads: expected full for {spec.title}, whose loss needs its heads "
            f"({', '.join(spec.heads)}), got 'none'"
        )


def _leave_out_heads(learner: Any, features: int) -> None:
    """Replace the heads by batch norm: compare normalised features of the backbone.

    Heads can learn the link between patch and twin alone: the loss falls, and the backbone learns
    nothing. Normalised features cannot collapse to one point, because their variance is fixed. The
    view branch makes sure that they tell patches apart.
    """
    for name in ("projector", "momentum_projector"):
        if hasattr(learner, name):
            setattr(learner, name, nn.BatchNorm1d(features, affine=False))
    if hasattr(learner, "predictor"):
        learner.predictor = nn.Identity()


# --- heads and a loss ------------------------------------------------------------------------


class PairLearner(nn.Module):
    """Heads over a shared backbone, and a loss of the views of patches and twins."""

    ends_epoch = False
    backbone: nn.Module
    loss: Callable[..., Tensor]

    def __init__(
        self,
        backbone: nn.Module,
        loss: Callable[..., Tensor],
        heads: nn.Module,
        batch_norm: str = "shared",
    ) -> None:
        """`loss` takes the outputs of the heads, a tensor for each view; `batch_norm` is a setting
        of `infoaug`."""
        super().__init__()
        # its owner trains and saves it
        object.__setattr__(self, "backbone", backbone)
        self.heads, self.loss = heads, loss
        self.norms = own_norms(backbone) if batch_norm == "separate" else None
        self.logged: dict[str, Tensor] = {}
        self.epoch = 0
        """The epoch in which steps are counted. A loop that counts all its steps leaves it at 0."""

    @property
    def position(self) -> Position:
        """Where training is."""
        there = distributed.is_available() and distributed.is_initialized()
        rank, processes = (
            (distributed.get_rank(), distributed.get_world_size()) if there else (0, 1)
        )
        device = next(self.backbone.parameters()).device
        return Position(rank, self.epoch, device, processes)

    def backbones(self) -> Backbones:
        """The shared backbone."""
        yield self.backbone, self.norms

    def given(self, views: Sequence[Tensor]) -> list[Tensor]:
        """The views, unchanged."""
        return list(views)

    def log(self, name: str, value: Tensor, **kwargs: Any) -> None:
        """Keep the last value of each name in `logged`."""
        self.logged[name] = value.detach()

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parameters of heads and own batch norms."""
        parameters = list(self.parameters())
        return [{"name": "twin_heads", "params": parameters}] if parameters else []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch in solo-learn's format."""
        return self.loss(*(self.heads(self.backbone(view)) for view in batch[1]))
