"""What a user waits for: an epoch through solo-learn's own loader and Lightning's loop.

The part `epoch` of `gpu.py`. A run is `solo_infoaug.training.pretrain` with a callback that takes
times: of a stretch of steps as they are, and of one in which the device is waited for between the
parts of a step, which says where the time goes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

COLUMNS = ["run", "images/s", "s an epoch of 50,000", "s before the first step", "ms a step",
           "loader", "views", "forward", "backward", "optimizer", "rest"]  # fmt: skip
PARTS = ("loader", "views", "forward", "backward", "optimizer", "rest")
CLASSES = 10
EPOCH = 50_000  # images of CIFAR-10
CASES = [  # what a row is called, InfoAug, whole batches, one pass
    ("plain, solo-learn's loader", False, False, False),
    ("InfoAug, solo-learn's loader", True, False, False),
    ("plain, whole_batches", False, True, False),
    ("InfoAug, whole_batches", True, True, False),
    ("InfoAug, one pass, whole_batches", True, True, True),
]


class Watch(Callback):
    """Times of a run's steps: `warm` of them for nothing, then `free`, then `split` by parts."""

    def __init__(self, wait: Callable[[], None], warm: int, free: int, split: int) -> None:
        self.wait, self.free = wait, free
        self.begin, self.end = warm, warm + free
        self.steps = self.end + split
        self.parts: Counter[str] = Counter()
        self.created = self.mark = time.perf_counter()
        self.before = self.spent = 0.0
        self.done = 0

    def passed(self, part: str) -> None:
        """What has been done since the last call was `part`."""
        if self.done >= self.end:
            self.wait()
            now = time.perf_counter()
            self.parts[part] += now - self.mark
            self.mark = now

    def around(self, owner: Any, name: str, before: str, part: str) -> None:
        """Let a method of `owner` be `part`, and what was done before it `before`."""
        work = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.passed(before)
            result = work(*args, **kwargs)
            self.passed(part)
            return result

        setattr(owner, name, timed)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.around(pl_module, "training_step", "rest", "forward")
        if getattr(pl_module, "twin_branch", None) is not None:
            self.around(pl_module.twin_branch, "batch", "forward", "views")
        after = pl_module.on_train_batch_end  # the moving average

        def ended(*args: Any, **kwargs: Any) -> None:
            after(*args, **kwargs)
            self.passed("optimizer")
            self.done += 1
            if self.done in (self.begin, self.end):
                self.wait()
                now = time.perf_counter()
                self.spent, self.mark = now - self.mark, now

        pl_module.on_train_batch_end = ended

    def on_train_batch_start(self, *_: Any) -> None:
        if self.done == 0:
            self.before = time.perf_counter() - self.created
        self.passed("loader")

    def on_before_backward(self, *_: Any) -> None:
        self.passed("rest")

    def on_after_backward(self, *_: Any) -> None:
        self.passed("backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.passed("rest")


class _OnePass(Callback):
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.twin_branch.one_pass = pl_module.twin_branch.few_operations = True


def generated(folder: Path, images: int) -> Path:
    """Smooth images of 32 × 32 in the layout train/CLASS, test/CLASS."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for half, count in (("train", images), ("test", CLASSES)):
        for number in range(count):
            place = folder / half / f"class{number % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC)
            image.save(place / f"{number}.png")
    return folder


def settings(folder: Path, device: Any, sizes: Any, steps: int, share: float) -> Any:
    """solo-learn's configuration of SimCLR and ResNet-18, without checkpoints and logs."""
    from omegaconf import OmegaConf
    from step import VIEW
    from tiny_host import configuration

    cuda = device.type == "cuda"
    cfg = configuration("simclr", steps=steps, batch=sizes.epoch_batch, lr=0.1)
    cfg.augmentations = [{**VIEW, "crop_size": sizes.epoch_side}]
    cfg.optimizer.name = "sgd"
    data = {"dataset": "cifar10", "train_path": str(folder), "val_path": str(folder),
            "format": "image_folder", "num_workers": sizes.workers,
            "fraction": -1 if share >= 1 else share}  # fmt: skip
    return OmegaConf.merge(
        cfg,
        {
            "data": data,
            "max_epochs": 1,
            "limit_train_batches": steps,
            "limit_val_batches": 0,
            "accelerator": "gpu" if cuda else "cpu",
            "devices": str(device.index or 0) if cuda else "1",
            "strategy": "auto",
            "precision": "16-mixed" if cuda else 32,
            "checkpoint": {"enabled": False},
            "auto_resume": {"enabled": False},
            "logger": "none",
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )


def table(
    report: Any, device: Any, sizes: Any, clock: Any, folder: Path, twins: str, wait: Any
) -> None:
    """A row for each of `CASES`."""
    from solo_infoaug.training import pretrain

    there = sum(1 for _ in (folder / "train").glob("*/*"))
    warm, free, split = sizes.epoch_steps
    share = min(1.0, sizes.epoch_images / there)
    report.head("6. An epoch", COLUMNS)
    for name, infoaug, whole, together in CASES:
        if clock.over():
            report.skipped(name)
            continue
        watch = Watch(lambda: wait(device), warm, free, split)
        cfg = settings(folder, device, sizes, watch.steps, share)
        cfg.data.whole_batches = whole
        if infoaug:
            cfg.infoaug = {"twins": twins}
        pretrain(cfg, [watch, *([_OnePass()] if together else [])])
        assert watch.done == watch.steps, f"{watch.done} steps of {watch.steps}"
        parts = watch.parts
        if whole:  # there the loader does nothing but make views
            parts["views"] += parts.pop("loader")
        rate = free * sizes.epoch_batch / watch.spent
        total = sum(parts.values())
        report.row(name, rate, EPOCH / rate, watch.before, 1000 * total / split,
                   *(f"{parts[part] / total:.0%}" for part in PARTS))  # fmt: skip
    report.say(
        f"\nSimCLR, ResNet-18, batch {sizes.epoch_batch}, {sizes.epoch_side} pixels, images of "
        f"{folder.name} ({there:,}); InfoAug has as many twin pairs, which images/s do not count. "
        f"solo-learn's loader has {sizes.workers} workers, whose views are its time; of "
        f"whole_batches they are `views`, as the twins' are. images/s of {free} steps as they are; "
        f"the shares of {split} more, in which the device is waited for after each part."
    )
