"""What a run tells about itself while it trains."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from solo_infoaug.compare.run import write_json

_EVERY = 1.0  # seconds


class Watch(Callback):
    """Counts steps, images and seconds, and writes `progress.json`. Draws no random number.

    Attributes:
        steps: of the optimizer.
        images: augmented views that went through the backbone, of both branches.
        seconds: from the first batch to the end of the training loop.
    """

    def __init__(self, file: Path) -> None:
        self.steps = 0
        self.images = 0
        self.seconds = 0.0
        self._file = file
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
            total = trainer.estimated_stepping_batches
            # Progress is for people to look at: a full disk for a moment is no reason to end a run.
            with suppress(OSError):
                write_json(self._file, {"step": trainer.global_step, "steps": total})

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Stop the clock."""
        self.steps = int(trainer.global_step)
        self.seconds = time.perf_counter() - self._start
