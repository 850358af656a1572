"""Time of a training step with `fmicl: js` against the method's own InfoNCE.

Both run inside Lightning's Trainer, with solo-learn's own resnet18, in turns of a few steps each;
the fastest and the median step of each are compared. On a CPU that others use as well the processor
time (of the one thread) is what can be trusted; on a GPU it is the wall time.

    uv run python benchmarks/fmicl_step_time.py [--methods simclr mocov2plus] [--turns 12]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from tiny_host import configuration
from torch.utils.data import DataLoader

from solo_infoaug import register


class Clock(Callback):
    """Wall and processor seconds of a step: forward, backward, optimiser, what is logged."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        _wait()
        self.start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        _wait()
        self.seconds.append(time.perf_counter() - self.start[0])
        self.processor.append(time.process_time() - self.start[1])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def turn(model: Any, batches: list[Any], clock: Clock) -> None:
    """Train a few steps; the first of them warms up and is not counted."""
    before = len(clock.seconds)
    Trainer(
        max_epochs=1,
        accelerator="auto",
        devices=1,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, DataLoader(batches, batch_size=None))
    del clock.seconds[before], clock.processor[before]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=["simclr", "mocov2plus", "mocov3"])
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="steps a turn, the first not counted")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--queue", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    host = register()
    print(
        f"solo-learn {host.info.version} ({host.info.kind}), resnet18, batch {options.batch} of "
        f"{options.side} × {options.side}, best and median of {options.turns} × "
        f"{options.steps - 1} steps in turns"
    )
    print(
        "| method | InfoNCE, best | fmicl: js, best | ratio of best | of medians "
        "| processor, ratio of best | of medians |"
    )
    print("|---|---|---|---|---|---|---|")
    for method in options.methods:
        if method not in host.methods:
            print(f"| {method} | not in this solo-learn | | | | | |")
            continue
        clocks, models = {}, {}
        for objective in (None, "js"):
            seed_everything(0, verbose=False)
            cfg = configuration(
                method, steps=options.steps, batch=options.batch, lr=1e-3, fmicl=objective
            )
            cfg.method_kwargs.queue_size = options.queue
            cfg.scheduler.name = "none"
            models[objective], clocks[objective] = host.methods[method](cfg), Clock()
        images = torch.randn(2, options.batch, 3, options.side, options.side)
        labels = torch.zeros(options.batch, dtype=torch.long)
        batches = [[torch.arange(options.batch), list(images), labels]] * options.steps
        for _ in range(options.turns):
            for objective, model in models.items():
                turn(model, batches, clocks[objective])
        nce, js = clocks[None], clocks["js"]
        ratios = [
            f"{of(there) / of(here):.3f}"
            for here, there in ((nce.seconds, js.seconds), (nce.processor, js.processor))
            for of in (min, statistics.median)
        ]
        best = [f"{1e3 * min(clock.seconds):.0f} ms" for clock in (nce, js)]
        print(f"| {method} | {' | '.join(best + ratios)} |", flush=True)


if __name__ == "__main__":
    main()
