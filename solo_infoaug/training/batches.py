"""`data.whole_batches: true`: keep images in memory and make the views of a batch at once.

This helps with many small images. At 32 × 32 pixels, Pillow's views, one image at a time, take as
long as a small network's step. Views of the whole batch take a fifth of that (docs/views.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from solo_infoaug.errors import ConfigError
from solo_infoaug.twin.views import Pipeline, make_views


class WholeBatches(Dataset[Any]):
    """Indexed by a list of rows; returns solo-learn's batch: indices, views, labels."""

    def __init__(self, images: Tensor, labels: Tensor, pipelines: Sequence[Pipeline]) -> None:
        """`images` is uint8 [N, 3, H, W], `labels` int64 [N]; each augmentation has a pipeline."""
        self.images, self.labels, self.pipelines = images, labels, pipelines

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Sequence[int]) -> list[Any]:
        chosen = torch.as_tensor(rows)
        images = self.images[chosen]
        return [chosen, make_views(self.pipelines, images, images), self.labels[chosen]]


def whole_batches(images: Any, pipelines: Sequence[Pipeline], batch_size: int) -> DataLoader[Any]:
    """A loader over one of solo-learn's data sets, which is read once into memory.

    Args:
        images: data set without a transform, so that its items end with a PIL image and a label.
        pipelines: one for each entry of `augmentations`.
        batch_size: images in a batch; an incomplete last batch is dropped, as in solo-learn.

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
    batches = BatchSampler(RandomSampler(dataset), batch_size, drop_last=True)
    return DataLoader(dataset, sampler=batches, batch_size=None)
