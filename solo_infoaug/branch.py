"""The twin branch: a second instance of the host's method over the host's backbone.

`extend(method)` gives a subclass of a solo-learn method. Where the configuration has no `infoaug`
it is the plain method. Where it has, the subclass holds one more instance of the same method,
the *twin branch*, whose heads, predictors, queues and momentum heads are its own and whose backbone
is the host's; its batches are patches and their twins, and its loss is added with a weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from torchvision.transforms import Normalize

from solo_infoaug.augment import Pipeline, build_pipeline, make_views, own_randomness
from solo_infoaug.batch_norm import exchanged, frozen, norms_of, own_norms
from solo_infoaug.config import InfoAugConfig, read_infoaug, write_infoaug
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError, DictionaryError
from solo_infoaug.host import Host
from solo_infoaug.locate import find_dictionary
from solo_infoaug.objectives.methods import check_method
from solo_infoaug.patch import MethodPatch, find_patch
from solo_infoaug.resume import (
    put_late_buffers,
    random_state,
    set_momentum,
    set_random_state,
    take_late_buffers,
)

# The view branch's modules that the twin branch uses, under the name of either host.
_SHARED = {"current": ("backbone", "momentum_backbone"), "release": ("encoder", "momentum_encoder")}

# Parameter groups that the view branch already has, or that a branch without labels has no use for.
_NOT_THE_BRANCHS = {"backbone", "encoder", "classifier", "momentum_classifier"}

# What a method logs about labels means nothing for images without them.
_NOT_LOGGED = {
    "train_class_loss",
    "train_acc1",
    "train_acc5",
    "train_nn_acc",
    "train_n_positives",
}

_CHECKPOINT_KEY = "solo_infoaug"

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


class _TwinBranch:
    """Mixed into a method: reaches the backbone through the view branch, and logs through it."""

    view_branch: Any
    norms: nn.ModuleList | None
    momentum_norms: nn.ModuleList | None
    batch_norm: str

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parameters of the branch's own heads."""
        groups = super().learnable_params  # type: ignore[misc]
        own = [group for group in groups if group.get("name") not in _NOT_THE_BRANCHS]
        if self.norms is not None:
            own.append({"name": "norms", "params": self.norms.parameters()})
        # some groups have no name
        return [{**g, "name": f"twin_{g['name']}"} if "name" in g else g for g in own]

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """The branch's own momentum heads; the view branch updates the backbone."""
        pairs = super().momentum_pairs  # type: ignore[misc]
        own = [pair for pair in pairs if pair[0] is not self.view_branch.backbone]
        return own if self.momentum_norms is None else [*own, (self.norms, self.momentum_norms)]

    def _base_shared_step(self, X: Tensor, targets: Tensor) -> Any:
        """Labels are for methods that pair by them: the class loss sees one class, and is zero."""
        return super()._base_shared_step(X, torch.zeros_like(targets))  # type: ignore[misc]

    @contextmanager
    def backbone_for_twins(self) -> Iterator[None]:
        """Inside, the shared backbone's batch norms work as `infoaug.batch_norm` says."""
        view_branch = self.view_branch
        backbones = [(view_branch.backbone, self.norms)]
        if hasattr(view_branch, "momentum_backbone"):
            backbones.append((view_branch.momentum_backbone, self.momentum_norms))
        with ExitStack() as stack:
            for backbone, norms in backbones:
                if self.batch_norm == "frozen":
                    stack.enter_context(frozen(backbone))
                elif norms is not None:
                    stack.enter_context(exchanged(backbone, norms))
            yield

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log through the view branch, `train_x` as `twin_x`."""
        if name not in _NOT_LOGGED:
            self.view_branch.log(f"twin_{name.removeprefix('train_')}", value, *args, **kwargs)

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Log through the view branch, `train_x` as `twin_x`."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)


def build_branch(
    method: type, patch: MethodPatch, cfg: DictConfig, config: InfoAugConfig, view_branch: Any
) -> Any:
    """A second instance of `method` that shares the backbone of `view_branch`.

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
        patch.configure(own)
    shared = _SHARED[view_branch.infoaug_host.info.kind]
    members = {name: _shared_module(name) for name in shared if hasattr(view_branch, name)}
    members |= {name: _renamed_module(name, to) for name, to in patch.renamed.items()}
    bases = tuple(base for base in (_TwinBranch, patch.branch, method) if base is not object)
    kind = type(f"Twin{method.__name__}", bases, members)
    with own_randomness(int(OmegaConf.select(cfg, "seed", default=0)) + 1, torch.device("cpu")):
        branch = kind(own)
    # a plain attribute: the view branch owns the branch, the branch only refers back to it
    object.__setattr__(branch, "view_branch", view_branch)
    for name in shared:
        branch._modules.pop(name, None)
    for name, to in patch.renamed.items():
        branch._modules[to] = branch._modules.pop(name)
    branch.classifier = _NoClassifier()
    branch.batch_norm = config.batch_norm
    branch.norms = branch.momentum_norms = None
    if config.batch_norm != "shared" and not norms_of(view_branch.backbone):
        raise ConfigError(
            f"infoaug.batch_norm: {config.batch_norm!r} needs a backbone with batch norm, and "
            f"{cfg.backbone.name} has none; use shared"
        )
    if config.batch_norm == "separate":
        branch.norms = own_norms(view_branch.backbone)
        if hasattr(view_branch, "momentum_backbone"):
            branch.momentum_norms = own_norms(view_branch.momentum_backbone)
    return branch


def normalization(transform: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that a host's view pipeline ends with."""
    while not isinstance(transform, Normalize):
        steps = getattr(transform, "transforms", None)
        transform = steps[-1] if steps else transform.transform
    return list(transform.mean), list(transform.std)


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
    return [
        build_pipeline(
            entry, *normalization(host.build_transform_pipeline(cfg.data.dataset, entry))
        )
        for entry in entries
    ]


def _load_dictionary(config: InfoAugConfig) -> TwinDictionary | DictionaryError:
    """The dictionary; or the error, kept until training starts, where a finished run is read."""
    try:
        path = find_dictionary(config.twins)
        dictionary = TwinDictionary.load(path)
    except DictionaryError as error:
        if config.fingerprint is None:
            raise
        return error
    config.twins = str(path.resolve())
    config.fingerprint = dictionary.fingerprint
    return dictionary


class InfoAugMethod:
    """Mixed into every supported method of solo-learn by `extend`."""

    infoaug_plain: type
    infoaug_host: Host
    infoaug_name: str

    def __init__(self, cfg: DictConfig | None = None, *args: Any, **kwargs: Any) -> None:
        config = None if cfg is None else read_infoaug(cfg)
        if cfg is None:  # the PyPI release's own keyword arguments
            super().__init__(*args, **kwargs)
        else:
            if config is not None:
                patch = find_patch(self.infoaug_name)
                if config.objective:
                    check_method(self.infoaug_name, "infoaug.objective")
            super().__init__(cfg, *args, **kwargs)  # type: ignore[call-arg]
        self.infoaug = config
        if cfg is None or config is None:
            if cfg is not None:
                write_infoaug(cfg, None)
            return
        config.batch_size = config.batch_size or int(cfg.optimizer.batch_size)
        patch.check(self, config.batch_size, 1)
        self.infoaug_patch = patch
        self.twin_dictionary = _load_dictionary(config)
        self.twin_views = build_views(self.infoaug_host, cfg, config)
        self.twin = build_branch(self.infoaug_plain, patch, cfg, config, self)
        self._resumed: dict[str, Any] | None = None
        write_infoaug(cfg, config)

    # --- training ----------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The method's own loss; with InfoAug plus λ times that of the twin branch."""
        loss = super().training_step(batch, batch_idx)  # type: ignore[misc]
        if self.infoaug is None:
            return loss
        with self._twin_randomness(batch_idx) as draw:
            twin_batch = self._twin_batch(draw)
            with self.twin.backbone_for_twins():
                twin_loss = self.twin.training_step(twin_batch, batch_idx)
        self.log("twin_loss", twin_loss, on_epoch=True, sync_dist=True)  # type: ignore[attr-defined]
        return loss + self.infoaug.weight * twin_loss

    @contextmanager
    def _twin_randomness(self, moment: int) -> Iterator[torch.Generator]:
        """Inside, the branch draws by seed, rank, epoch and `moment` (the step) alone.

        So a resumed run draws what an uninterrupted one would, and the view branch draws what a
        run without InfoAug does.

        Yields:
            the generator of the choice of pairs.
        """
        module: Any = self
        sequence = np.random.SeedSequence(
            [
                int(OmegaConf.select(module.cfg, "seed", default=0)),
                module.global_rank,
                module.current_epoch,
                moment,
            ]
        )
        draw, rest = (int(n) for n in sequence.generate_state(2, np.uint64) >> 1)
        with own_randomness(rest, module.device):
            yield torch.Generator().manual_seed(draw)

    def _twin_batch(self, generator: torch.Generator) -> list[Any]:
        """Patches and twins of a step as a solo-learn batch: indices, views, labels.

        A patch is a class of its own: its label is its index in the dictionary.
        """
        assert self.infoaug is not None
        assert self.infoaug.batch_size is not None
        assert isinstance(self.twin_dictionary, TwinDictionary)
        patch, twin, index = self.twin_dictionary.sample(
            self.infoaug.batch_size,
            generator,
            arm=self.infoaug.arm,
            top_k=self.infoaug.top_k,
            temporal=self.infoaug.temporal,
        )
        device = self.device  # type: ignore[attr-defined]
        patch, twin, index = (
            tensor.to(device, non_blocking=True) for tensor in (patch, twin, index)
        )
        views = make_views(self.twin_views, patch, twin, both=self.infoaug_patch.both_views)
        return [index, views, index]

    # --- optimisation ------------------------------------------------------------------------

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The method's parameter groups and those of the twin branch's heads."""
        groups = super().learnable_params  # type: ignore[misc]
        return groups if self.infoaug is None else groups + self.twin.learnable_params

    # --- hooks that a method may live by -----------------------------------------------------

    def on_train_start(self) -> None:
        """Forwarded to the branch; a dictionary that could not be loaded is an error here."""
        module: Any = self
        if self.infoaug is None:
            super().on_train_start()  # type: ignore[misc]
            return
        if isinstance(self.twin_dictionary, DictionaryError):
            raise self.twin_dictionary
        self.infoaug_patch.check(self, self.infoaug.batch_size or 0, module.trainer.world_size)
        # solo-learn's configurations silence logging
        rank_zero_only(print)(
            f"InfoAug: {self.infoaug.arm} twins, weight {self.infoaug.weight:g}, "
            f"{self.infoaug.batch_size} pairs a step of {len(self.twin_dictionary)} patches "
            f"in {self.infoaug.twins}; views on {module.device}"
        )
        with self._twin_randomness(_BEFORE_STEPS):
            self.twin.on_train_start()
        # what a run draws here it drew when it first started
        with own_randomness(0, module.device) if self._resumed else nullcontext():
            super().on_train_start()  # type: ignore[misc]
        if self._resumed:
            put_late_buffers(module, self._resumed["buffers"])
            if self._resumed["tau"] is not None:
                set_momentum(module, self._resumed["tau"])

    def on_train_epoch_start(self) -> None:
        """Forwarded to the branch."""
        if self.infoaug is not None:
            with self._twin_randomness(_BEFORE_STEPS):
                self.twin.on_train_epoch_start()
        if not getattr(self, "_resumed", None):
            super().on_train_epoch_start()  # type: ignore[misc]
            return
        # A run that was not stopped comes here before it asks its data loader for the epoch, and
        # a resumed one afterwards: draw again in the order of the former.
        self._set_random_state()
        super().on_train_epoch_start()  # type: ignore[misc]
        torch.empty((), dtype=torch.int64).random_()
        self._resumed = None

    def _set_random_state(self) -> None:
        trainer = self.trainer  # type: ignore[attr-defined]
        # a checkpoint is the first process's
        if self._resumed is not None and trainer.world_size == 1:
            set_random_state(self._resumed["random"], trainer.strategy.root_device)

    def on_after_backward(self) -> None:
        """Forwarded to the branch."""
        if self.infoaug is not None:
            self.twin.on_after_backward()
        super().on_after_backward()  # type: ignore[misc]

    # --- checkpoints -------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which twins the run was trained with."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if self.infoaug is not None:
            module: Any = self
            checkpoint[_CHECKPOINT_KEY] = {
                "fingerprint": self.infoaug.fingerprint,
                "arm": self.infoaug.arm,
                "weight": self.infoaug.weight,
                "random": random_state(module.device),
                "tau": module.momentum_updater.cur_tau
                if hasattr(module, "momentum_updater")
                else None,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on training with another kind of run's checkpoint.

        Raises:
            ConfigError: a baseline's checkpoint for a run with InfoAug, or the other way.
        """
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        note = checkpoint.get(_CHECKPOINT_KEY)
        if self.infoaug is not None:
            module: Any = self
            names = tuple(name.rpartition(".")[2] for name in self.infoaug_patch.state)
            buffers = take_late_buffers(module, names, checkpoint["state_dict"])
            if note and "random" in note:
                self._resumed = {"buffers": buffers, "random": note["random"], "tau": note["tau"]}
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
        if self.infoaug is not None:
            self._set_random_state()


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
        "__module__": method.__module__,
        "__doc__": method.__doc__,
    }
    if hasattr(method, "momentum_pairs"):
        members["momentum_pairs"] = _momentum_pairs(method)
    create: Callable[..., type] = type
    return create(method.__name__, (InfoAugMethod, method), members)
