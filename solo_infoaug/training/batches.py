"""`data.whole_batches: true`: images in memory, and the views of a batch made at once.

For many small images: of 32 × 32 pixels Pillow's views, one image after another, take as long as a
small network's step, and Kornia's of the whole batch a fifth of that (docs/views.md compares them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from solo_infoaug.errors import ConfigError
from solo_infoaug.views import Pipeline, make_views


class WholeBatches(Dataset[Any]):
    """Indexed by a list of rows; gives solo-learn's batch: indices, views, labels."""

    def __init__(self, images: Tensor, labels: Tensor, pipelines: Sequence[Pipeline]) -> None:
        """`images` is uint8 [N, 3, H, W], `labels` int64 [N]; a pipeline for each augmentation."""
        self.images, self.labels, self.pipelines = images, labels, pipelines

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Sequence[int]) -> list[Any]:
        chosen = torch.as_tensor(rows)
        images = self.images[chosen]
        return [chosen, make_views(self.pipelines, images, images), self.labels[chosen]]


def whole_batches(images: Any, pipelines: Sequence[Pipeline], batch_size: int) -> DataLoader[Any]:
    """A loader over one of solo-learn's data sets that is read once.

    Args:
        images: without a transform, so that its items end with a PIL image and a label.
        pipelines: one for each entry of `augmentations`.
        batch_size: images a batch; what is left of an epoch is dropped, as solo-learn does.

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
                f"{shown.shape[:2]}; leave it out"
            )
        pixels[row] = shown
        labels.append(int(label))
    stored = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    dataset = WholeBatches(stored, torch.tensor(labels), pipelines)
    batches = BatchSampler(RandomSampler(dataset), batch_size, drop_last=True)
    return DataLoader(dataset, sampler=batches, batch_size=None)
