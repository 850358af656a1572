"""A training step with InfoAug against plain solo-learn at the same number of images.

InfoAug's branch adds as many images as the view branch has, so the peer is the plain method with
its batch doubled. A step is views (of InfoAug; the peer gets its views for nothing), losses,
gradients, SGD and the moving average. All take turns in one process, and a ratio is the median of
those of the turns; peak memory is that of a process of its own for each. `ahead` is InfoAug with
the next step's twins drawn and read in a thread meanwhile, which on a CPU is off by default.

    uv run python benchmarks/step.py [--methods simclr byol] [--sides 32 96] [--batch 32]
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import platform
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
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

    def __init__(
        self, method: str, side: int, batch: int, twins: str | None, ahead: bool | None = None
    ) -> None:
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
        if twins:
            self.module.twin_branch.prefetch = ahead
        self.module.log = self.module.log_dict = lambda *args, **kwargs: None
        views = torch.randn(2, count, 3, side, side, device=self.device)
        labels = torch.zeros(count, dtype=torch.long, device=self.device)
        self.batch = [torch.arange(count, device=self.device), list(views), labels]
        self.optimizer = torch.optim.SGD(self.module.learnable_params, lr=0.01, momentum=0.9)
        self.done = 0

    def step(self) -> float:
        """Seconds of the step."""
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
        self.done += 1
        return time.perf_counter() - start

    def views(self) -> float:
        """Seconds of the twin views of a step."""
        self.wait()
        start = time.perf_counter()
        self.module.twin_branch.batch(self.done)
        self.wait()
        return time.perf_counter() - start

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


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over turns."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


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
    print("| method, pixels | plain, doubled, s | InfoAug, s | ratio | of best | ahead | views, s "
          "| ratio less views | plain, MiB | InfoAug, MiB | ratio |")  # fmt: skip
    print("|---" * 11 + "|")
    with tempfile.TemporaryDirectory() as folder:
        twins = str(Path(folder) / "twins")
        count = 2 * options.batch
        pixels = torch.randint(0, 256, (count, 1, 3, 64, 64), dtype=torch.uint8)
        partner = torch.arange(count).view(-1, 2).flip(1).reshape(-1, 1)
        TwinDictionary.create(twins, pixels, partner, torch.ones(count, 1), windows=[0] * count)
        for method in options.methods:
            for side in options.sides:
                runs = [
                    Run(method, side, options.batch, None),
                    Run(method, side, options.batch, twins),
                    Run(method, side, options.batch, twins, ahead=True),
                ]
                for run in runs:
                    run.step()  # warm up
                times = [
                    (*(run.step() for run in runs), runs[1].views()) for _ in range(options.turns)
                ]
                plain, ours, ahead, views = zip(*times, strict=True)
                runs[2].module.twin_branch.close()
                del runs, run
                m, n = (memory_of(method, side, options.batch, t) for t in (None, twins))
                less = [b - v for b, v in zip(ours, views, strict=True)]
                print(f"| {method}, {side} | {median(plain):.3f} | {median(ours):.3f} "
                      f"| {ratio(ours, plain):.3f} | {min(ours) / min(plain):.3f} "
                      f"| {ratio(ahead, plain):.3f} | {median(views):.3f} "
                      f"| {ratio(less, plain):.3f} | {m:.0f} | {n:.0f} | {n / m:.2f} |",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
