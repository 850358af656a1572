"""`data.whole_batches: true`: keep images in memory and make the views of a batch at once.

For many small images: of 32 × 32 pixels Pillow's views, one image after another, take as long as a
small network's step, and Kornia's of the whole batch a fifth of that (docs/views.md compares them).

Views are made on the device that trains. On a card the images lie there as well if they fit
(`data.device_memory`), else a batch's are sent as bytes. What is drawn is drawn on the CPU either
way, so a run's numbers do not depend on where the images lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, distributed
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler

from solo_infoaug._checks import is_number, require
from solo_infoaug.errors import ConfigError
from solo_infoaug.training.config import say
from solo_infoaug.views.pipeline import Pipeline, apply_views, draw_views, send

_SHARE = 0.1
"""Of a card's memory: what images may take of it by default."""

_GIB = 2**30


class WholeBatches(Dataset[Any]):
    """Indexed by a list of rows; gives solo-learn's batch: indices, views, labels.

    They are on the device of the last `move`, at first the CPU.
    """

    def __init__(self, images: Tensor, labels: Tensor, pipelines: Sequence[Pipeline]) -> None:
        """`images` is uint8 [N, 3, H, W], `labels` int64 [N]; each augmentation has a pipeline."""
        self.images, self.labels, self.pipelines = images, labels, pipelines
        self.device = torch.device("cpu")
        self.kept = False
        """The images lie on the device."""

    def move(self, device: torch.device, room: float) -> None:
        """From now on make the views on `device`, and keep the images there up to `room` bytes."""
        self.device = device
        self.kept = self.images.nbytes <= room
        if self.kept:
            self.images = self.images.to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Sequence[int]) -> list[Any]:
        """One copy goes to the device, and nobody waits for it."""
        chosen = torch.as_tensor(rows)
        height, width = self.images.shape[2:]
        random = torch.default_generator
        drawn = draw_views(self.pipelines, len(chosen), height, width, random)
        pixels = [] if self.kept else [self.images[chosen]]
        parameters, (index, labels, *left) = send(
            drawn, self.device, chosen, self.labels[chosen], *pixels
        )
        images = self.images.index_select(0, index) if self.kept else left[0]
        return [index, apply_views(self.pipelines, images, images, parameters), labels]


class _Rows(DistributedSampler[Any]):
    """Rows of a batch; of several processes each has its share of an epoch.

    Lightning would put single rows in the place of any other kind of sampler. How many processes
    there are is known when training has started.
    """

    def __init__(self, dataset: WholeBatches, batch_size: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, seed=seed)
        self.batch_size = batch_size

    def _processes(self) -> int:
        if distributed.is_available() and distributed.is_initialized():
            self.rank, self.num_replicas = distributed.get_rank(), distributed.get_world_size()
        self.num_samples = -(-len(self.dataset) // self.num_replicas)  # type: ignore[arg-type]
        self.total_size = self.num_samples * self.num_replicas
        return self.num_replicas

    def __iter__(self) -> Iterator[Any]:
        several = self._processes() > 1
        rows = super().__iter__() if several else RandomSampler(self.dataset)  # type: ignore[arg-type]
        return iter(BatchSampler(rows, self.batch_size, drop_last=True))

    def __len__(self) -> int:
        self._processes()
        return self.num_samples // self.batch_size


class _OnDevice(Callback):
    """Moves a run's images when the device is known."""

    def __init__(self, batches: WholeBatches, gib: float | None) -> None:
        self.batches, self.gib = batches, gib

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        device = trainer.strategy.root_device
        if device.type not in ("cpu", "cuda"):  # views need float64
            return
        room = float("inf") if self.gib is None else self.gib * _GIB
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            room = min(free, room if self.gib is not None else _SHARE * total)
        self.batches.move(device, room)
        if device.type == "cuda" and not self.batches.kept and self.gib != 0:
            say(_does_not_fit(self.batches.images.nbytes, device, room, self.gib is None))


def _does_not_fit(size: float, device: torch.device, room: float, by_default: bool) -> str:
    which = f"by default {_SHARE:.0%} of its memory" if by_default else "data.device_memory"
    return (
        f"data.whole_batches: {size / _GIB:.2f} GiB of images stay in host memory, because "
        f"{device} has room for {room / _GIB:.2f} GiB ({which}); data.device_memory=GIB sets it"
    )


def check_device_memory(cfg: DictConfig) -> float | None:
    """`data.device_memory`: GiB that the images may take of a card; None for the default.

    Raises:
        ConfigError: it is not such a number.
    """
    gib = OmegaConf.select(cfg, "data.device_memory")
    require(gib is None or is_number(gib, 0), "data.device_memory", "a number of GiB ≥ 0", gib)
    return None if gib is None else float(gib)


def on_device(loader: Any, cfg: DictConfig) -> list[Callback]:
    """The callback that a run with this loader needs, if any."""
    if not isinstance(getattr(loader, "dataset", None), WholeBatches):
        return []
    return [_OnDevice(loader.dataset, check_device_memory(cfg))]


def whole_batches(
    images: Any, pipelines: Sequence[Pipeline], batch_size: int, seed: int = 0
) -> DataLoader[Any]:
    """A loader over one of solo-learn's data sets that is read once, by each process all of it.

    It has no transform, so that its items end with a PIL image and a label. `batch_size` is that of
    a process; the rest of an epoch is dropped, as solo-learn does. Several processes share the
    images in an order by `seed`.

    Raises:
        ConfigError: images differ in size.
    """
    pixels, labels = np.empty(0, np.uint8), []
    for row in range(len(images)):
        *_, image, label = images[row]
        shown = np.asarray(image.convert("RGB"))
        if row == 0:
            pixels = np.empty((len(images), *shown.shape), np.uint8)
        if shown.shape != pixels.shape[1:]:
            raise ConfigError(
                f"data.whole_batches: expected images of one size, got {pixels.shape[1:3]} and "
                f"{shown.shape[:2]}; leave out data.whole_batches"
            )
        pixels[row] = shown
        labels.append(int(label))
    stored = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    dataset = WholeBatches(stored, torch.tensor(labels), pipelines)
    return DataLoader(dataset, sampler=_Rows(dataset, batch_size, seed), batch_size=None)
