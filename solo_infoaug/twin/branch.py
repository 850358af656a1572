"""The twin branch: a second instance of the host's method over the host's backbone.

`extend(method)` gives a subclass of a solo-learn method. Where the configuration has no `infoaug`
it is the plain method. Where it has, the subclass holds one more instance of the same method,
the *twin branch*, whose heads, predictors, queues and momentum heads are its own and whose backbone
is the host's; its batches are patches and their twins, and its loss is added with a weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.host import BACKBONE_NAMES, Host
from solo_infoaug.host.method import Method
from solo_infoaug.twin.batch_norm import norms_of, own_norms, seen
from solo_infoaug.twin.config import InfoAugConfig, complete_infoaug, write_infoaug
from solo_infoaug.twin.joined import Views, joined
from solo_infoaug.twin.method import MethodSpec, find_method
from solo_infoaug.twin.prefetch import Prefetch, TwinRequest
from solo_infoaug.twin.randomness import fork_rng
from solo_infoaug.twin.resume import Resumption, take_late_buffers
from solo_infoaug.twin.twins import check_dictionary, open_dictionary, open_if_there, risks
from solo_infoaug.views.pipeline import Pipeline, apply_views, run_pipelines

# Parameter groups that the view branch already has, or that a branch without labels has no use for.
_NOT_THE_BRANCHS = {*BACKBONE_NAMES.values(), "classifier", "momentum_classifier"}

# What a method logs about labels means nothing for images without them.
_NOT_LOGGED = {
    "train_class_loss",
    "train_acc1",
    "train_acc5",
    "train_nn_acc",
    "train_n_positives",
}

_CHECKPOINT_KEY = "solo_infoaug"

# The module through which pickle finds the classes made here.
_REGISTERED = "solo_infoaug.registered"

# In the place of a step's number, for what the branch draws before an epoch's first one.
_BEFORE_STEPS = 2**31


class _NoClassifier(nn.Module):
    """Stands where the online classifier was: one class, so that its loss is exactly zero."""

    def forward(self, features: Tensor) -> Tensor:
        return features.new_zeros(len(features), 1)


def _shared_module(name: str) -> property:
    def get(branch: Any) -> nn.Module:
        # while the branch is built its constructor works on a module of its own
        own = branch._modules.get(name)
        return own if own is not None else getattr(branch.view_branch, name)

    return property(get)


def _renamed_module(name: str, to: str) -> property:
    def get(branch: Any) -> nn.Module:
        # under its old name while the constructor works
        return branch._modules[to if to in branch._modules else name]

    return property(get)


class _TwinBranch(Method):
    """Mixed into a method: reaches the backbone through the view branch, and logs through it."""

    view_branch: Any
    norms: nn.ModuleList | None
    momentum_norms: nn.ModuleList | None
    batch_norm: str

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
        """Labels are for methods that pair by them: the class loss sees one class, and is zero."""
        return super()._base_shared_step(X, torch.zeros_like(targets))

    @contextmanager
    def views_together(
        self, views: Sequence[Tensor], twins: Sequence[Tensor], few: bool | None = None
    ) -> Iterator[None]:
        """Inside, the view branch's views and then the twins' pass backbones together."""
        with ExitStack() as stack:
            for backbone, norms in self._backbones():
                own = Views(twins, norms, still=self.batch_norm == "frozen")
                stack.enter_context(joined(backbone, Views(views), own, operations_count=few))
            yield

    @contextmanager
    def backbone_for_twins(self) -> Iterator[None]:
        """Inside, the shared backbone's batch norms work as `infoaug.batch_norm` says."""
        with ExitStack() as stack:
            for backbone, norms in self._backbones():
                stack.enter_context(seen(backbone, norms, still=self.batch_norm == "frozen"))
            yield

    def _backbones(self) -> Iterator[tuple[nn.Module, nn.ModuleList | None]]:
        """The view branch's, and the branch's own batch norms of each."""
        yield self.view_branch.backbone, self.norms
        if hasattr(self.view_branch, "momentum_backbone"):
            yield self.view_branch.momentum_backbone, self.momentum_norms

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log through the view branch, `train_x` as `twin_x`."""
        if name not in _NOT_LOGGED:
            self.view_branch.log(f"twin_{name.removeprefix('train_')}", value, *args, **kwargs)

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Log through the view branch, `train_x` as `twin_x`."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)


@cache
def _branch_class(name: str, plain: type, shared: tuple[str, ...]) -> type:
    """The class of the twin branches of a method: one for all, so that pickle can name it."""
    spec = find_method(name)
    members: dict[str, Any] = {module: _shared_module(module) for module in shared}
    members |= {old: _renamed_module(old, new) for old, new in spec.renamed.items()}
    members |= {"__module__": _REGISTERED, "__qualname__": f"{name}.infoaug_branch"}
    bases = tuple(base for base in (_TwinBranch, spec.branch, plain) if base is not object)
    return type(f"Twin{plain.__name__}", bases, members)


def build_branch(spec: MethodSpec, cfg: DictConfig, config: InfoAugConfig, view_branch: Any) -> Any:
    """A second instance of the method of `view_branch`, over its backbone.

    Its heads are initialised from the run's seed without touching torch's random state, so that
    a run with InfoAug sees the same data in the same order as one without.

    Raises:
        ConfigError: `infoaug.batch_norm` is about batch norms that the backbone does not have.
    """
    own = copy.deepcopy(cfg)
    with open_dict(own):
        own.pop("infoaug", None)
        if config.objective is not None:
            own.fmicl = config.objective
        own.data.num_classes = 1
        own.knn_eval = {"enabled": False}
        own.optimizer.batch_size = config.batch_size
        if OmegaConf.select(own, "momentum") is not None:
            own.momentum.classifier = False
        spec.configure(own)
    if config.heads == "none":
        _check_headless(spec)
        with open_dict(own):
            own.method_kwargs.proj_output_dim = view_branch.features_dim  # of queues
    with fork_rng(int(OmegaConf.select(cfg, "seed", default=0)) + 1, torch.device("cpu")):
        branch = view_branch.infoaug_branch(own)
    if config.heads == "none":
        _leave_out_heads(branch, view_branch.features_dim)
    # a plain attribute: the view branch owns the branch, the branch only refers back to it
    object.__setattr__(branch, "view_branch", view_branch)
    for name in view_branch.infoaug_host.shared_modules:
        branch._modules.pop(name, None)
    for name, to in spec.renamed.items():
        branch._modules[to] = branch._modules.pop(name)
    branch.classifier = _NoClassifier()
    _give_norms(branch, config.batch_norm, str(cfg.backbone.name))
    return branch


def _give_norms(branch: Any, batch_norm: str, backbone: str) -> None:
    """The batch norms that the branch has of its own, if any."""
    view_branch = branch.view_branch
    branch.batch_norm = batch_norm
    branch.norms = branch.momentum_norms = None
    if batch_norm != "shared" and not norms_of(view_branch.backbone):
        raise ConfigError(
            f"infoaug.batch_norm: {batch_norm!r} needs a backbone with batch norm, and "
            f"{backbone} has none; use shared"
        )
    if batch_norm == "separate":
        branch.norms = own_norms(view_branch.backbone)
        if hasattr(view_branch, "momentum_backbone"):
            branch.momentum_norms = own_norms(view_branch.momentum_backbone)


def _check_headless(spec: MethodSpec) -> None:
    if "projector" not in spec.heads or set(spec.heads) - {"projector", "predictor"}:
        raise ConfigError(
            f"infoaug.heads: expected full for {spec.title}, whose loss needs its heads "
            f"({', '.join(spec.heads)}), got 'none'"
        )


def _leave_out_heads(branch: Any, features: int) -> None:
    """Compare features of the backbone, each dimension normalised over the batch.

    Heads can carry the link between patch and twin by themselves: then the loss falls and the
    backbone does not learn it. Without variance left to lose, normalised features cannot collapse
    to one point; that they keep what tells patches apart is the view branch's work.
    """
    for name in ("projector", "momentum_projector"):
        if hasattr(branch, name):
            setattr(branch, name, nn.BatchNorm1d(features, affine=False))
    if hasattr(branch, "predictor"):
        branch.predictor = nn.Identity()


def build_views(host: Host, cfg: DictConfig, config: InfoAugConfig) -> list[Pipeline]:
    """The branch's view pipelines: `infoaug.augmentations`, or the run's own.

    Raises:
        ConfigError: other numbers or sizes of crops than the run's own views have.
    """
    entries = cfg.augmentations
    if config.augmentations is not None:
        entries = OmegaConf.create(list(config.augmentations))

        def crops(pipelines: Any) -> list[tuple[int, int]]:
            return [(int(p.crop_size), int(p.num_crops)) for p in pipelines]

        if crops(entries) != crops(cfg.augmentations):
            raise ConfigError(
                "infoaug.augmentations: expected the crop sizes and numbers of `augmentations`, "
                f"{crops(cfg.augmentations)}, got {crops(entries)}"
            )
    return run_pipelines(host, cfg, entries)


class _BranchClass:
    """`METHODS[…].infoaug_branch`, made when it is first asked for."""

    def __get__(self, method: Any, owner: type[InfoAugMethod]) -> type:
        return _branch_class(
            owner.infoaug_name, owner.infoaug_plain, owner.infoaug_host.shared_modules
        )


class InfoAugMethod(Method):
    """Mixed into every supported method of solo-learn by `extend`."""

    infoaug_plain: type
    infoaug_host: Host
    infoaug_name: str
    infoaug_branch = _BranchClass()

    infoaug: InfoAugConfig | None = None
    twin_dictionary: TwinDictionary | None
    """None where a finished run is read whose dictionary is gone."""
    twin_views: list[Pipeline]
    twin: Any
    resumption: Resumption | None = None
    """What is to be put back, from a checkpoint's loading until the first epoch has begun."""

    prefetch_twins: bool | None = None
    """Prepare the next twin batch while a step runs; None: where the model is on a card."""

    one_pass: bool | None = None
    """Let the views of a step pass the backbone together; None: where the model is on the CPU."""

    few_operations: bool | None = None
    """How one pass works: by few operations (where Python takes the time) or by little memory
    traffic; None: the former where the model is on a card."""

    def __init__(self, cfg: DictConfig | None = None, *args: Any, **kwargs: Any) -> None:
        if cfg is None:  # the PyPI release's own keyword arguments
            super().__init__(*args, **kwargs)
            return
        config = complete_infoaug(cfg, self.infoaug_name)
        super().__init__(cfg, *args, **kwargs)
        self.infoaug = config
        if config is None:
            write_infoaug(cfg, None)
            return
        self.infoaug_spec = spec = find_method(self.infoaug_name)
        spec.check(self, config.batch_size or 0, 1)
        self.twin_dictionary = open_if_there(config)
        if self.twin_dictionary is not None:
            check_dictionary(self.twin_dictionary, config)
        self.twin_views = build_views(self.infoaug_host, cfg, config)
        self.twin = build_branch(spec, cfg, config, self)
        self._prefetch = Prefetch()
        write_infoaug(cfg, config)

    # --- copies, whole models on disk, other processes ---------------------------------------

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Without `infoaug` and `fmicl` a model is plain solo-learn's, and is pickled as that.

        So it can be loaded where this package is not. The release's plain methods are adapters of
        ours, and have no other name.
        """
        off = self.infoaug is None and self.fmicl is None
        # a user's subclass is left as it is
        ours = type(self).__module__ == _REGISTERED
        if off and ours and not self.infoaug_host.adapted:
            return object.__new__, (self.fmicl_plain,), self.__getstate__()
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        """All but the dictionary, which is opened again where it lies."""
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "twin_dictionary"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.infoaug is not None:
            self.twin_dictionary = open_if_there(self.infoaug)

    # --- training ----------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The method's own loss; with InfoAug plus λ times that of the twin branch."""
        if self.infoaug is None:
            return super().training_step(batch, batch_idx)
        twin_batch, drawn = self._twin_batch(self._twin_seeds(batch_idx))
        together = self.device.type == "cpu" if self.one_pass is None else self.one_pass
        if together:
            views = [batch[1]] if isinstance(batch[1], Tensor) else batch[1]
            batch = [batch[0], self._as_passed_on(views), batch[2]]
        few = self.few_operations
        with self.twin.views_together(batch[1], twin_batch[1], few) if together else nullcontext():
            loss = super().training_step(batch, batch_idx)
            with self._twin_randomness(batch_idx, after=drawn), self.twin.backbone_for_twins():
                twin_loss = self.twin.training_step(twin_batch, batch_idx)
        self.log("twin_loss", twin_loss, on_epoch=True, sync_dist=True)
        # gradients are computed without Python, which this does not take from them
        self._prepare_next(batch_idx)
        return loss + self.infoaug.weight * twin_loss

    def _twin_seeds(self, moment: int) -> tuple[int, int]:
        """Seeds of the choice of pairs and of all else, by seed, rank, epoch and `moment`."""
        seed = int(OmegaConf.select(self.cfg, "seed", default=0))
        sequence = np.random.SeedSequence([seed, self.global_rank, self.current_epoch, moment])
        pairs, rest = (n >> 1 for n in sequence.generate_state(2, np.uint64).tolist())
        return pairs, rest

    @contextmanager
    def _twin_randomness(self, moment: int, after: Tensor | None = None) -> Iterator[None]:
        """Inside, the branch draws by seed, rank, epoch and `moment` (the step) alone.

        So a resumed run draws what an uninterrupted one would, and the view branch draws what a
        run without InfoAug does.

        Args:
            moment: the step, or another number.
            after: the CPU generator's state to begin with, if something has been drawn already.
        """
        with fork_rng(self._twin_seeds(moment)[1], self.device):
            if after is not None:
                torch.default_generator.set_state(after)
            yield

    def _twin_request(self, seeds: tuple[int, int]) -> TwinRequest:
        assert self.infoaug is not None
        assert self.infoaug.batch_size is not None
        assert self.twin_dictionary is not None
        temporal = self.infoaug.temporal
        return TwinRequest(
            *seeds,
            device=self.device,
            dictionary=self.twin_dictionary,
            batch_size=self.infoaug.batch_size,
            arm=self.infoaug.arm,
            top_k=self.infoaug.top_k,
            temporal=bool(temporal),
            seconds=None if isinstance(temporal, bool) else float(temporal),
            others=self.infoaug.others,
            pipelines=self.twin_views,
            both=self.infoaug_spec.both_views,
        )

    @torch.compiler.disable  # its shapes change from step to step
    def _twin_batch(self, seeds: tuple[int, int]) -> tuple[list[Any], Tensor]:
        """Patches and twins of a step as a solo-learn batch: indices, views, labels.

        A patch is a class of its own: its label is its index in the dictionary. With it comes the
        CPU generator's state after the views' draws, where the method's begin.
        """
        request = self._twin_request(seeds)
        twins = self._prefetch.take(request)
        views = apply_views(
            request.pipelines, twins.patch, twins.twin, twins.drawn, both=request.both
        )
        views = self._as_passed_on(views)
        # as the loader's batches are, for precisions in which the weights are not float32
        plugin = getattr(self._trainer, "precision_plugin", None)
        views = views if plugin is None else plugin.convert_input(views)
        return [twins.index, views, twins.index], twins.random

    def _as_passed_on(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Views in the layout in which the method passes them on, so that it makes no copies."""
        if getattr(self, "no_channel_last", True):
            return list(views)
        return [view.to(memory_format=torch.channels_last) for view in views]

    @torch.compiler.disable
    def _prepare_next(self, batch_idx: int) -> None:
        """Begin to prepare the twins of the next step of this epoch.

        Between epochs loaders start their workers, and a process is best forked by its only thread.
        """
        module: Any = self
        wanted = self.prefetch_twins
        if wanted is None:  # on the CPU it would take from the step what it gives
            wanted = module.device.type == "cuda"
        if wanted and not getattr(module._trainer, "is_last_batch", False):
            self._prefetch.start(self._twin_request(self._twin_seeds(batch_idx + 1)))

    # --- optimisation ------------------------------------------------------------------------

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The method's parameter groups and those of the twin branch's heads."""
        groups = super().learnable_params
        return groups if self.infoaug is None else groups + self.twin.learnable_params

    # --- hooks that a method may live by -----------------------------------------------------

    def on_train_start(self) -> None:
        """Forwarded to the branch; a dictionary that is gone is an error here.

        Raises:
            DictionaryError: it cannot be opened.
        """
        if self.infoaug is None:
            super().on_train_start()
            return
        if self.twin_dictionary is None:
            self.twin_dictionary = open_dictionary(self.infoaug)
            check_dictionary(self.twin_dictionary, self.infoaug)
        processes = self.trainer.world_size
        self.infoaug_spec.check(self, self.infoaug.batch_size or 0, processes)
        self._announce(self.twin_dictionary, processes)
        with self._twin_randomness(_BEFORE_STEPS):
            self.twin.on_train_start()
        with self.resumption.training_start() if self.resumption else nullcontext():
            super().on_train_start()

    def _announce(self, dictionary: TwinDictionary, processes: int) -> None:
        """What the branch trains on, and what is risky about it."""
        assert self.infoaug is not None
        # solo-learn's configurations silence logging
        rank_zero_only(print)(
            f"InfoAug: {self.infoaug.arm} twins, weight {self.infoaug.weight:g}, "
            f"{self.infoaug.batch_size} pairs a step of {len(dictionary.anchors)} "
            f"patches with a twin in {self.infoaug.twins} ({self.infoaug.chosen_by}; written "
            f"{self.infoaug.written}, of {', '.join(self.infoaug.videos or [])}); "
            f"views on {self.device}"
        )
        pairs = (self.infoaug.batch_size or 0) * processes
        for risk in risks(dictionary, self.cfg, self.infoaug_spec.state, pairs):
            rank_zero_warn(risk)

    def on_train_epoch_start(self) -> None:
        """Forwarded to the branch."""
        if self.infoaug is None:
            super().on_train_epoch_start()
            return
        with self._twin_randomness(_BEFORE_STEPS):
            self.twin.on_train_epoch_start()
        with self.resumption.first_epoch_start() if self.resumption else nullcontext():
            super().on_train_epoch_start()
        self.resumption = None

    def on_after_backward(self) -> None:
        """Forwarded to the branch."""
        if self.infoaug is not None:
            self.twin.on_after_backward()
        super().on_after_backward()

    def on_train_end(self) -> None:
        """Forget the twins of a step that does not come."""
        if self.infoaug is not None:
            self._prefetch.clear()
        super().on_train_end()

    # --- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which twins the run was trained with."""
        super().on_save_checkpoint(checkpoint)
        if self.infoaug is not None:
            checkpoint[_CHECKPOINT_KEY] = {
                "fingerprint": self.infoaug.fingerprint,
                "arm": self.infoaug.arm,
                "weight": self.infoaug.weight,
                **Resumption.note(self),
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on training with another kind of run's checkpoint.

        Raises:
            ConfigError: a baseline's checkpoint for a run with InfoAug, or the other way.
        """
        super().on_load_checkpoint(checkpoint)
        note = checkpoint.get(_CHECKPOINT_KEY)
        if self.infoaug is not None:
            names = tuple(name.rpartition(".")[2] for name in self.infoaug_spec.state)
            buffers = take_late_buffers(cast(nn.Module, self), names, checkpoint["state_dict"])
        trainer = getattr(self, "_trainer", None)
        if trainer is None or not trainer.training:
            return
        if (_CHECKPOINT_KEY in checkpoint) != (self.infoaug is not None):
            kinds = "a baseline run", "a run with InfoAug"
            theirs, ours = kinds if self.infoaug is not None else kinds[::-1]
            raise ConfigError(
                f"resume_from_checkpoint: the checkpoint is that of {theirs}, and this is {ours}; "
                "resume with the configuration that it was trained with"
            )
        if self.infoaug is not None and note is not None and "random" in note:
            self.resumption = Resumption(self, note, buffers)
            self.resumption.restore_random_state()


def _momentum_pairs(method: Any) -> property:
    def get(self: Any) -> list[tuple[Any, Any]]:
        pairs = method.momentum_pairs.fget(self)
        return pairs if self.infoaug is None else pairs + self.twin.momentum_pairs

    return property(get)


def extend(name: str, method: type, host: Host) -> type:
    """A subclass of a solo-learn method that reads `infoaug` from its configuration.

    Args:
        name: of the method, as in `METHODS`.
        method: the plain class.
        host: whose method it is.
    """
    members: dict[str, Any] = {
        "infoaug_name": name,
        "infoaug_plain": method,
        "infoaug_host": host,
        "__module__": _REGISTERED,
        "__qualname__": name,
        "__doc__": method.__doc__,
    }
    if hasattr(method, "momentum_pairs"):
        members["momentum_pairs"] = _momentum_pairs(method)
    create: Callable[..., type] = type
    return create(method.__name__, (InfoAugMethod, method), members)
