"""A training step with InfoAug against plain solo-learn at the same number of images.

InfoAug's branch adds as many images as the view branch has, so the peer is the plain method with
its batch doubled. A step is views (of InfoAug; the peer gets its views for nothing), losses,
gradients, SGD and the moving average. Both take turns in one process; peak memory is that of a
process of its own for each.

    uv run python benchmarks/step.py [--methods simclr byol] [--sides 32 96] [--batch 32]
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from tiny_host import configuration

from solo_infoaug import TwinDictionary, register

VIEW = {
    "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
    "color_jitter": {
        "prob": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
    },
    "grayscale": {"prob": 0.2},
    "gaussian_blur": {"prob": 0.5},
    "solarization": {"prob": 0.0},
    "equalization": {"prob": 0.0},
    "horizontal_flip": {"prob": 0.5},
    "num_crops": 2,
}


class Run:
    """A method that steps by hand, without a Trainer."""

    def __init__(self, method: str, side: int, batch: int, twins: str | None) -> None:
        host = register()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        count = batch if twins else 2 * batch
        cfg = configuration(method, steps=100, batch=count, lr=0.1)
        cfg.data.dataset = "cifar10" if side == 32 else "custom"  # solo-learn's stem for CIFAR
        cfg.augmentations = [{**VIEW, "crop_size": side}]
        cfg.optimizer.name = "sgd"
        if twins:
            cfg.infoaug = {"twins": twins}
        torch.manual_seed(0)
        self.module: Any = host.methods[method](cfg).to(self.device)
        self.module = self.module.to(memory_format=torch.channels_last)
        self.module.log = self.module.log_dict = lambda *args, **kwargs: None
        views = torch.randn(2, count, 3, side, side, device=self.device)
        labels = torch.zeros(count, dtype=torch.long, device=self.device)
        self.batch = [torch.arange(count, device=self.device), list(views), labels]
        self.optimizer = torch.optim.SGD(self.module.learnable_params, lr=0.01, momentum=0.9)
        self.done = 0

    def step(self) -> tuple[float, float]:
        """Seconds of the step, and of its twin views."""
        self.wait()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.float16, enabled=self.device.type == "cuda"):
            loss = self.module.training_step(self.batch, self.done)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for pair in getattr(self.module, "momentum_pairs", []):
            self.module.momentum_updater.update(*pair)
        self.wait()
        whole, self.done = time.perf_counter() - start, self.done + 1
        if self.module.infoaug is None:
            return whole, 0.0
        start = time.perf_counter()
        with self.module._twin_randomness(self.done) as generator:
            self.module._twin_batch(generator)
        self.wait()
        return whole, time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def resident(which: str) -> float:
    """MiB of this process by Linux: `VmRSS` now, `VmHWM` at most since the last reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 2**10


def peak_memory(method: str, side: int, batch: int, twins: str | None, pipe: Any) -> None:
    """MiB that three steps add, at most, to what the process has before them."""
    run = Run(method, side, batch, twins)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        before = resident("VmRSS")
    for _ in range(3):
        run.step()
    cuda = run.device.type == "cuda"
    pipe.send((torch.cuda.max_memory_allocated() / 2**20 if cuda else resident("VmHWM")) - before)


def memory_of(*arguments: Any) -> float:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=peak_memory, args=(*arguments, theirs))
    process.start()
    value: float = ours.recv()
    process.join()
    return value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=["simclr", "byol"])
    parser.add_argument("--sides", nargs="+", type=int, default=[32, 96])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads"
    )
    info = register().info
    print(
        f"{device}; torch {torch.__version__}; solo-learn {info.version} ({info.kind}); resnet18,"
    )
    print(
        f"batch {options.batch} + {options.batch} twin pairs; median of {options.turns} in turns\n"
    )
    print("| method, pixels | plain, doubled, s | InfoAug, s | ratio | of best | views, s "
          "| ratio less views | plain, MiB | InfoAug, MiB | ratio |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        twins = str(Path(folder) / "twins")
        count = 2 * options.batch
        pixels = torch.randint(0, 256, (count, 1, 3, 64, 64), dtype=torch.uint8)
        partner = torch.arange(count).view(-1, 2).flip(1).reshape(-1, 1)
        TwinDictionary.create(twins, pixels, partner, torch.ones(count, 1), windows=[0] * count)
        for method in options.methods:
            for side in options.sides:
                peer = Run(method, side, options.batch, None)
                ours = Run(method, side, options.batch, twins)
                peer.step(), ours.step()  # warm up
                times = [(peer.step()[0], *ours.step()) for _ in range(options.turns)]
                a, b, views = (statistics.median(column) for column in zip(*times, strict=True))
                best = min(t[1] for t in times) / min(t[0] for t in times)
                del peer, ours
                m, n = (memory_of(method, side, options.batch, t) for t in (None, twins))
                print(f"| {method}, {side} | {a:.3f} | {b:.3f} | {b / a:.3f} | {best:.3f} "
                      f"| {views:.3f} | {(b - views) / a:.3f} | {m:.0f} | {n:.0f} | {n / m:.2f} |",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
