"""Progress of a run while it trains."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback

from solo_infoaug.compare.folder import RunFolder

_EVERY = 1.0  # seconds


class Watch(Callback):
    """Counts steps, images and seconds, and notes the progress. Draws no random number.

    `images` are augmented views that went through the backbone, of both branches.
    """

    def __init__(self, files: RunFolder) -> None:
        self.steps = 0
        self.images = 0
        self.seconds = 0.0
        self._files = files
        self._start = self._told = time.perf_counter()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch."""
        crops = sum(int(entry.num_crops) for entry in module.cfg.augmentations)
        pairs = getattr(module, "infoaug", None)
        self.images += crops * (len(batch[-1]) + (pairs.batch_size if pairs else 0))
        now = time.perf_counter()
        if now - self._told > _EVERY:
            self._told = now
            self._files.note_step(trainer.global_step, trainer.estimated_stepping_batches)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Stop the clock."""
        self.steps = int(trainer.global_step)
        self.seconds = time.perf_counter() - self._start
