"""The twin branch: a second instance of the host's method over the host's backbone.

`extend(method)` gives a subclass of a solo-learn method. Where the configuration has no `infoaug`
it is the plain method. Where it has, the subclass holds one more instance of the same method,
the *twin branch*, whose heads, predictors, queues and momentum heads are its own and whose backbone
is the host's; its batches are patches and their twins, and its loss is added with a weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from torchvision.transforms import Normalize

from solo_infoaug.augment import Pipeline, build_pipeline, make_views
from solo_infoaug.config import InfoAugConfig, read_infoaug, write_infoaug
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError, DictionaryError
from solo_infoaug.host import Host
from solo_infoaug.locate import find_dictionary
from solo_infoaug.objectives.methods import check_method

SUPPORTED = ("simclr", "mocov2plus", "byol", "simsiam", "barlow_twins", "vicreg", "nnclr")

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


class _TwinBranch:
    """Mixed into a method: reaches the backbone through the view branch, and logs through it."""

    view_branch: Any

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The parameters of the branch's own heads."""
        groups = super().learnable_params  # type: ignore[misc]
        own = [group for group in groups if group.get("name") not in _NOT_THE_BRANCHS]
        # the PyPI release leaves some groups without a name
        return [{**g, "name": f"twin_{g['name']}"} if "name" in g else g for g in own]

    @property
    def momentum_pairs(self) -> list[tuple[Any, Any]]:
        """The branch's own momentum heads; the view branch updates the backbone."""
        pairs = super().momentum_pairs  # type: ignore[misc]
        return [pair for pair in pairs if pair[0] is not self.view_branch.backbone]

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log through the view branch, `train_x` as `twin_x`."""
        if name not in _NOT_LOGGED:
            self.view_branch.log(f"twin_{name.removeprefix('train_')}", value, *args, **kwargs)

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Log through the view branch, `train_x` as `twin_x`."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)


def build_branch(method: type, cfg: DictConfig, config: InfoAugConfig, view_branch: Any) -> Any:
    """A second instance of `method` that shares the backbone of `view_branch`.

    Its heads are initialised from the run's seed without touching torch's random state, so that
    a run with InfoAug sees the same data in the same order as one without.
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
    names = _SHARED[view_branch.infoaug_host.info.kind]
    kind = type(
        f"Twin{method.__name__}",
        (_TwinBranch, method),
        {name: _shared_module(name) for name in names if hasattr(view_branch, name)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(OmegaConf.select(cfg, "seed", default=0)) + 1)
        branch = kind(own)
    # a plain attribute: the view branch owns the branch, the branch only refers back to it
    object.__setattr__(branch, "view_branch", view_branch)
    for name in names:
        branch._modules.pop(name, None)
    branch.classifier = _NoClassifier()
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
            if config is not None and self.infoaug_name not in SUPPORTED:
                raise ConfigError(
                    f"infoaug: the method {self.infoaug_name!r} has no twin branch; "
                    f"expected one of {', '.join(SUPPORTED)}"
                )
            if config is not None and config.objective:
                check_method(self.infoaug_name, "infoaug.objective")
            super().__init__(cfg, *args, **kwargs)  # type: ignore[call-arg]
        self.infoaug = config
        if cfg is None or config is None:
            if cfg is not None:
                write_infoaug(cfg, None)
            return
        config.batch_size = config.batch_size or int(cfg.optimizer.batch_size)
        queue = getattr(self, "queue_size", None)
        if self.infoaug_name == "mocov2plus" and queue and queue % config.batch_size:
            raise ConfigError(
                f"infoaug.batch_size: expected a divisor of method_kwargs.queue_size ({queue}), "
                f"got {config.batch_size}"
            )
        self.twin_dictionary = _load_dictionary(config)
        self.twin_views = build_views(self.infoaug_host, cfg, config)
        self.twin = build_branch(self.infoaug_plain, cfg, config, self)
        write_infoaug(cfg, config)

    # --- training ----------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The method's own loss; with InfoAug plus λ times that of the twin branch."""
        loss = super().training_step(batch, batch_idx)  # type: ignore[misc]
        if self.infoaug is None:
            return loss
        twin_loss = self.twin.training_step(self._twin_batch(batch_idx), batch_idx)
        self.log("twin_loss", twin_loss, on_epoch=True, sync_dist=True)  # type: ignore[attr-defined]
        return loss + self.infoaug.weight * twin_loss

    def _twin_batch(self, batch_idx: int) -> list[Any]:
        """Patches and twins of this step as a solo-learn batch: indices, views, labels.

        Drawn by seed, rank, epoch and step: a resumed run draws what an uninterrupted one would.
        """
        assert self.infoaug is not None
        assert isinstance(self.twin_dictionary, TwinDictionary)
        module: Any = self
        sequence = np.random.SeedSequence(
            [
                int(OmegaConf.select(module.cfg, "seed", default=0)),
                module.global_rank,
                module.current_epoch,
                batch_idx,
            ]
        )
        draw, augment = (int(n) for n in sequence.generate_state(2, np.uint64) >> 1)
        assert self.infoaug.batch_size is not None
        patch, twin, index = self.twin_dictionary.sample(
            self.infoaug.batch_size,
            torch.Generator().manual_seed(draw),
            arm=self.infoaug.arm,
            top_k=self.infoaug.top_k,
            temporal=self.infoaug.temporal,
        )
        device = module.device
        patch, twin = (images.to(device, non_blocking=True) for images in (patch, twin))
        views = make_views(self.twin_views, patch, twin, augment)
        labels = torch.zeros(len(index), dtype=torch.long, device=device)
        return [index.to(device), views, labels]

    # --- optimisation ------------------------------------------------------------------------

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        """The method's parameter groups and those of the twin branch's heads."""
        groups = super().learnable_params  # type: ignore[misc]
        return groups if self.infoaug is None else groups + self.twin.learnable_params

    # --- hooks that a method may live by -----------------------------------------------------

    def on_train_start(self) -> None:
        """Forwarded to the branch; a dictionary that could not be loaded is an error here."""
        if self.infoaug is not None:
            if isinstance(self.twin_dictionary, DictionaryError):
                raise self.twin_dictionary
            # solo-learn's configurations silence logging
            rank_zero_only(print)(
                f"InfoAug: {self.infoaug.arm} twins, weight {self.infoaug.weight:g}, "
                f"{self.infoaug.batch_size} pairs a step of {len(self.twin_dictionary)} patches "
                f"in {self.infoaug.twins}; views on {self.device}"  # type: ignore[attr-defined]
            )
            self.twin.on_train_start()
        super().on_train_start()  # type: ignore[misc]

    def on_train_epoch_start(self) -> None:
        """Forwarded to the branch."""
        if self.infoaug is not None:
            self.twin.on_train_epoch_start()
        super().on_train_epoch_start()  # type: ignore[misc]

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
            checkpoint[_CHECKPOINT_KEY] = {
                "fingerprint": self.infoaug.fingerprint,
                "arm": self.infoaug.arm,
                "weight": self.infoaug.weight,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on training with another kind of run's checkpoint.

        Raises:
            ConfigError: a baseline's checkpoint for a run with InfoAug, or the other way.
        """
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
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
