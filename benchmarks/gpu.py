"""All that is about a GPU, in one command: MI, twin views, steps, f-MICL, an epoch.

    benchmarks/on_card.sh OUT [IMAGES]              # a lent card: this and the tests, 8 minutes
    python benchmarks/gpu.py --images CIFAR10       # one card, at most 8 minutes
    python benchmarks/gpu.py --tiny --device cpu    # that every part runs, without a card

`on_card.sh` writes all it finds under OUT. `--images` is CIFAR-10 as folders (train/CLASS/…), for
`epoch`; without it images of that size are generated.

Needs, beside PyTorch and torchvision and this repository: numpy, omegaconf, lazy-loader and, for
all parts but `mi`, kornia, lightning, hydra-core, timm, pillow, einops, torchmetrics and solo-learn
(its release 1.0.2, or a clone named by SOLO_LEARN_HOME). Better with: triton (the kernel for MI and
the rate of the card's minima and maxima; comes with PyTorch for CUDA, and wants a C compiler) and
numba (our engine on the CPU, the peer of `mi`). What is missing is said before anything is run.

1. `mi`: MI of all pairs of 64 scenes of (400, 240, 3). Peer: our engine on the CPU, same run. The
   floor is T² maxima and insertions into the k nearest a pair, 2k operations, at the rate of
   minima and maxima that the card does in registers. A merge of two samples at a time needs fewer,
   5 of 6 for k = 3, but distances are made as well.
2. `views`: peer: solo-learn's torchvision pipelines in a worker a CPU core. The floor is reading
   the images once as bytes and writing them once as float32.
3. `step`: peer: the plain method with its batch doubled, so at the same number of images; forward,
   losses, gradients, SGD and moving average, with the scaler of `16-mixed`. The peer's views come
   for nothing, ours are part of the step. Both take turns. `one pass` is with all views passing the
   backbone together, which on a card is off by default.
4. `fmicl`: a step with f-MICL; peer: the same step with the method's own InfoNCE.
5. `operations`: what a step of SimCLR, BYOL and MoCo v2+ asks PyTorch for, by what it is for.
6. `epoch`: what a user waits for: SimCLR through Lightning's loop, by solo-learn's own loader or
   `data.whole_batches`, with and without InfoAug: images a second, and where the time goes.

Where a card waits for Python, the ratio of what it computes is the smaller one: it is there too.

Launches of kernels, synchronisations of host and device and copies to the device are counted by
torch.profiler over one step. Without CUDA nothing is launched, nothing waits and nothing is sent:
there the count is of what can make a host wait (`.item()`, `nonzero`), which is more than would,
since draws are made on the CPU on purpose, and of `.to(device)`.

Writes benchmarks/results/gpu.md and gpu.json (`gpu_tiny_cpu` without a card), anew with each row. A
part that is out of its time leaves rows out and says so.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import logging
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gpu_operations

RESULTS = Path(__file__).parent / "results"
ALWAYS = {"torch": "torch", "numpy": "numpy", "lazy_loader": "lazy-loader"}
FOR_TRAINING = {
    "torchvision": "torchvision",
    "omegaconf": "omegaconf",
    "kornia": "kornia",
    "lightning": "lightning",
    "hydra": "hydra-core",
    "timm": "timm",
    "PIL": "pillow",
    "einops": "einops",
    "torchmetrics": "torchmetrics",
}
BETTER = {
    "triton": "without it MI on the card is plain torch's, and there is no floor for it",
    "numba": "without it the peer of MI is plain torch on the CPU",
}
# shares of the time
PARTS = {"mi": 0.1, "views": 0.12, "step": 0.43, "fmicl": 0.07, "operations": 0.08, "epoch": 0.2}
K = 3
GOAL_STEP, GOAL_FMICL = 1.05, 1.03


@dataclass
class Sizes:
    """What is measured, in the order of what matters."""

    scenes: int = 64
    tracks: tuple[int, int, int] = (400, 240, 3)
    cpu_scenes: int = 2
    sides: tuple[int, ...] = (32, 96, 224)
    view_batches: tuple[int, ...] = (256, 1024)
    view_images: int = 256  # of the peer, a worker
    methods: tuple[str, ...] = ("simclr", "byol")
    backbones: tuple[str, ...] = ("resnet18", "resnet50")
    step_sides: tuple[int, ...] = (32, 96)
    step_batches: tuple[int, ...] = (256, 1024)
    precisions: tuple[str, ...] = ("16-mixed", "32")
    fmicl_batches: tuple[int, ...] = (256, 1024)
    turns: int = 10
    counted_methods: tuple[str, ...] = ("simclr", "byol", "mocov2plus")
    counted_batch: int = 64
    epoch_batch: int = 256
    epoch_side: int = 32
    epoch_images: int = 50_000
    epoch_steps: tuple[int, int, int] = (10, 60, 20)  # to warm up, as they are, by parts
    workers: int = 8


TINY = Sizes(
    scenes=2,
    tracks=(8, 40, 2),
    cpu_scenes=1,
    sides=(16,),
    view_batches=(4, 8),
    view_images=16,
    backbones=("resnet18",),
    step_sides=(16,),
    step_batches=(4,),
    precisions=("16-mixed",),
    fmicl_batches=(8,),
    turns=1,
    counted_batch=2,
    epoch_batch=4,
    epoch_side=16,
    epoch_images=40,
    epoch_steps=(1, 2, 2),
    workers=2,
)


def check_needs(parts: list[str]) -> None:
    """Exit with one sentence that names all that is missing."""
    needs = ALWAYS | (FOR_TRAINING if set(parts) - {"mi"} else {})
    missing = [name for module, name in needs.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(
            f"benchmarks/gpu.py needs {', '.join(missing)} beside what is installed: "
            f"pip install {' '.join(missing)}, or choose --parts mi"
        )
    host = os.environ.get("SOLO_LEARN_HOME") or importlib.util.find_spec("solo")
    if set(parts) - {"mi"} and not host:
        sys.exit(
            "benchmarks/gpu.py needs solo-learn for all parts but mi: pip install --no-deps "
            "solo-learn==1.0.2, or let SOLO_LEARN_HOME name a clone, or choose --parts mi"
        )
    for module, without in BETTER.items():
        if importlib.util.find_spec(module) is None:
            print(f"{module} is not installed: {without}", file=sys.stderr)


class Clock:
    """Seconds that are left to a part."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds

    def over(self) -> bool:
        return time.perf_counter() > self.end


@dataclass
class Report:
    """Tables for the page and rows for JSON."""

    lines: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    save: Callable[[], None] = lambda: None
    """Called after each row, so that what is measured is not lost."""

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def head(self, title: str, columns: list[str]) -> None:
        self.say(f"\n## {title}\n")
        self.say(f"| {' | '.join(columns)} |")
        self.say("|---" * len(columns) + "|")
        self.part, self.columns = title, columns

    def row(self, *cells: Any) -> None:
        self.say(f"| {' | '.join(_shown(cell) for cell in cells)} |")
        self.rows.append({"part": self.part, **dict(zip(self.columns, cells, strict=True))})
        self.save()

    def skipped(self, what: str) -> None:
        self.row(what, *["not run: out of time"] + [""] * (len(self.columns) - 2))


def _shown(cell: Any) -> str:
    if cell is None:
        return "–"
    return (
        f"{cell:.3g}"
        if isinstance(cell, float) and abs(cell) < 1000
        else (f"{cell:,.0f}" if isinstance(cell, float) else str(cell))
    )


def wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: Any) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def best(work: Callable[[], object], device: Any, turns: int) -> float:
    work()  # compiles, finds algorithms, fills the allocator
    return min(seconds(work, device) for _ in range(turns))


# --- what a step asks of the device ---------------------------------------------------------------

_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "hipLaunchKernel")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_WOULD_WAIT = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")


@dataclass
class Counts:
    """Of one step; on the CPU no launches, and for the others what a card would be waited for."""

    launches: int | None
    waits: int
    copies: int
    busy: float | None
    """Seconds that the card computes or copies, all streams added."""


@contextmanager
def moves() -> Iterator[Counter[str]]:
    """Counts tensors that are moved by `.to(device)`, `.cpu()` or `.cuda()`."""
    import torch
    from torch.overrides import TorchFunctionMode

    found: Counter[str] = Counter()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            name = getattr(function, "__name__", "")
            given = [*args[1:], *(kwargs or {}).values()]
            to_device = name == "to" and any(isinstance(one, torch.device) for one in given)
            found[name] += to_device or name in ("cpu", "cuda")
            return function(*args, **(kwargs or {}))

    with Watch():
        yield found


def count(step: Callable[[], object], device: Any) -> Counts:
    """Kernel launches, waits and copies to the device of one step."""
    from torch.profiler import ProfilerActivity, profile, record_function

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    wait(device)
    with profile(activities=activities) as profiled, moves() as moved:
        with record_function("counted_step"):
            step()
        wait(device)
    events = list(profiled.events())
    span = next(
        e.time_range for e in events if e.name == "counted_step" and e.device_type.value == 0
    )
    names = Counter(e.name for e in events if span.start <= e.time_range.start <= span.end)
    if not cuda:
        asked, _ = gpu_operations.operations(step)
        return Counts(asked, sum(names[n] for n in _WOULD_WAIT), moved.total(), None)
    launches = sum(n for name, n in names.items() if name.startswith(_LAUNCHES))
    waits = sum(n for name, n in names.items() if name in _WAITS)
    # spans that the host names, such as the optimizer's step, are on the card's clock too
    on_host = {e.name for e in events if e.device_type.value == 0}
    on_card = [e for e in events if e.device_type.value == 1 and e.name not in on_host]
    copies = sum(e.name.startswith("Memcpy HtoD") for e in on_card)
    busy = sum(e.time_range.elapsed_us() for e in on_card) / 1e6
    return Counts(launches, waits, copies, busy)


# --- 1: mutual information ------------------------------------------------------------------------


def minmax_rate(device: Any) -> float | None:
    """Minima and maxima of float32 a second, operands in registers; None without Triton."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    import torch
    from gpu_rate import CHAINS, operations

    best_rate = 0.0
    for blocks in (1024, 4096):
        out = torch.zeros(blocks * 128, device=device)
        spent = best(lambda o=out, b=blocks: operations(o, b), device, 5)
        best_rate = max(best_rate, CHAINS * out.numel() / spent)
    return best_rate


def cpu_rate() -> float:
    """The same on one core with all threads of torch, by tensors in the cache."""
    import torch

    a, b = torch.rand(2, 2**13)
    out = torch.empty_like(a)

    def some() -> None:
        for _ in range(2000):
            torch.maximum(a, b, out=out)

    return 2000 * len(a) / best(some, torch.device("cpu"), 5)


def information(report: Report, device: Any, sizes: Sizes, clock: Clock) -> None:
    import torch

    from solo_infoaug.information import _backend, pairwise_mutual_information

    report.head(
        "1. Mutual information",
        ["engine", "P, T, d", "scenes", "pairs/s", "of floor", "× our CPU engine", "max |Δ|, nats",
         "added MiB", "launches a scene", "waits a scene"],
    )  # fmt: skip
    count_, samples, _ = sizes.tracks
    pairs = count_ * (count_ - 1) // 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sizes.scenes, *sizes.tracks, generator=generator)
    few = x[: sizes.cpu_scenes]
    cpu = torch.device("cpu")
    pairwise_mutual_information(few[:1])
    start = time.perf_counter()
    expected = pairwise_mutual_information(few)
    theirs = len(few) * pairs / (time.perf_counter() - start)
    name = "numba" if _backend._compiled() is not None else "plain torch"
    shape = ", ".join(map(str, sizes.tracks))
    rate = cpu_rate()
    floor = rate / (2 * K * samples**2)  # pairs a second
    report.row(f"CPU, {name}, {torch.get_num_threads()} threads", shape, len(few), theirs,
               None, 1.0, 0.0, None, None, None)  # fmt: skip
    rate = minmax_rate(device)
    floor = rate / (2 * K * samples**2) if rate else None
    kernel = _backend._triton() if device.type == "cuda" else None
    engines = ["plain torch"]
    if kernel is not None and kernel.works(device):
        engines.insert(0, "Triton")
    for engine in engines:
        if clock.over():
            report.skipped(engine)
            continue
        there = (x if engine == "Triton" or device == cpu else few).to(device)
        chosen = _backend._triton, _backend._compiled
        if engine == "plain torch":
            _backend._triton = _backend._compiled = lambda: None
        try:
            got = pairwise_mutual_information(there[: len(few)])
            added = None
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            spent = min(
                seconds(lambda t=there: pairwise_mutual_information(t), device) for _ in range(3)
            )
            if device.type == "cuda":
                added = (torch.cuda.max_memory_allocated(device) - before) / 2**20
            asked = count(lambda t=there: pairwise_mutual_information(t[:1]), device)
        finally:
            _backend._triton, _backend._compiled = chosen
        ours = len(there) * pairs / spent
        off = float((got.cpu() - expected).abs().max())
        report.row(f"{device.type}, {engine}", shape, len(there), ours,
                   ours / floor if floor else None, ours / theirs, off, added,
                   asked.launches, asked.waits)  # fmt: skip
    report.say(
        f"\nMinima and maxima a second in registers: {rate:.3g}" if rate else
        "\nNo floor: the rate of minima and maxima in registers is measured on a card with Triton"
    )  # fmt: skip


# --- 2: views -------------------------------------------------------------------------------------


class Views:
    """solo-learn's views of random images, for a loader with workers."""

    def __init__(self, transform: Any, side: int, length: int) -> None:
        import torch

        self.transform, self.length = transform, length
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (16, side, side, 3), generator=generator).byte().numpy()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index % 16]))


def torchvision_rate(transform: Any, side: int, images: int, workers: int) -> float:
    """Views a second by a worker a core; the first round starts the workers."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Views(transform, side, images * workers),  # type: ignore[arg-type]
        batch_size=max(1, min(32, images // 2)),
        num_workers=workers,
        persistent_workers=True,
    )
    for _ in loader:
        pass
    start = time.perf_counter()
    for _ in loader:
        pass
    return images * workers / (time.perf_counter() - start)


def views(report: Report, device: Any, sizes: Sizes, clock: Clock) -> None:
    import torch
    from omegaconf import OmegaConf
    from step import VIEW

    from solo_infoaug.host import load_host
    from solo_infoaug.twin.randomness import fork_rng
    from solo_infoaug.views import build_pipeline, make_views

    host = load_host()
    report.head(
        "2. Twin views",
        ["pixels, batch", "ours, images/s", "torchvision, images/s", "ours / torchvision",
         "ours / read and write once", "launches a batch", "waits a batch", "copies a batch"],
    )  # fmt: skip
    workers = os.cpu_count() or 1
    for side in sizes.sides:
        entry = OmegaConf.create({**VIEW, "crop_size": side, "num_crops": 1})
        theirs = None
        for batch in sizes.view_batches:
            if clock.over():
                report.skipped(f"{side}, {batch}")
                continue
            if theirs is None:
                transform = host.build_transform_pipeline("custom", entry)
                theirs = torchvision_rate(transform, side, sizes.view_images, workers)
            pipeline = build_pipeline(entry, [0.5] * 3, [0.25] * 3)
            generator = torch.Generator().manual_seed(0)
            images = torch.randint(0, 256, (batch, 3, side, side), generator=generator)
            images = images.byte().to(device)
            out = torch.empty(images.shape, device=device)

            def ours(p: Any = pipeline, i: Any = images) -> Any:
                return make_views([p], i, i)

            with fork_rng(0, device):
                spent = best(ours, device, sizes.turns)
                asked = count(ours, device)
            floor = best(lambda o=out, i=images: o.copy_(i), device, sizes.turns)
            report.row(f"{side}, {batch}", batch / spent, theirs, batch / spent / theirs,
                       floor / spent, asked.launches, asked.waits, asked.copies)  # fmt: skip


# --- 3 and 4: a step ------------------------------------------------------------------------------


class Stepper:
    """A method that steps by hand, without a Trainer."""

    def __init__(
        self,
        method: str,
        backbone: str,
        side: int,
        images: int,
        precision: str,
        device: Any,
        **extra: Any,
    ) -> None:
        import torch
        from step import VIEW
        from tiny_host import configuration

        from solo_infoaug import register

        host = register()
        self.device = device
        cfg = configuration(method, steps=100, batch=images, lr=0.1, **extra)
        cfg.backbone.name = backbone
        cfg.data.dataset = "cifar10" if side == 32 else "custom"  # solo-learn's stem for CIFAR
        cfg.augmentations = [{**VIEW, "crop_size": side}]
        cfg.optimizer.name = "sgd"
        torch.manual_seed(0)
        self.module: Any = host.methods[method](cfg).to(device)
        self.module = self.module.to(memory_format=torch.channels_last)
        self.module.log = self.module.log_dict = lambda *args, **kwargs: None
        views_ = torch.randn(2, images, 3, side, side, device=device)
        labels = torch.zeros(images, dtype=torch.long, device=device)
        self.batch = [torch.arange(images, device=device), list(views_), labels]
        self.optimizer = torch.optim.SGD(
            self.module.learnable_params, lr=0.01, momentum=0.9, foreach=True
        )
        # on a CPU float16 is not what anybody trains in: there it stands for bfloat16
        half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self.autocast = lambda: torch.autocast(device.type, half, enabled=precision == "16-mixed")
        scaled = precision == "16-mixed" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.done = 0

    def loss(self) -> Any:
        with self.autocast():
            return self.module.training_step(self.batch, self.done)

    def average(self) -> None:
        for pair in getattr(self.module, "momentum_pairs", []):
            self.module.momentum_updater.update(*pair)

    def step(self) -> None:
        loss = self.loss()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average()
        self.done += 1


def built(make: Callable[[], Stepper], device: Any) -> tuple[Stepper, float | None]:
    """A stepper after two steps, and the MiB that it has added to the peak."""
    import torch

    cuda = device.type == "cuda"
    if cuda:
        gc.collect()  # models hold on to themselves in circles
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    stepper = make()
    stepper.step(), stepper.step()
    added = (torch.cuda.max_memory_allocated(device) - before) / 2**20 if cuda else None
    return stepper, added


def pair_of(
    plain: Callable[[], Stepper], ours: Callable[[], Stepper], device: Any, turns: int
) -> list[Any]:
    """Seconds of both, their ratio, and for both memory, launches, waits and copies."""
    here, memory = built(plain, device)
    there, our_memory = built(ours, device)
    times: list[tuple[float, float]] = []
    while len(times) < turns and (len(times) < 3 or sum(map(sum, times)) < 4):  # seconds
        times.append((seconds(here.step, device), seconds(there.step, device)))
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    asked = count(here.step, device), count(there.step, device)
    busy = [one.busy for one in asked]
    cells: list[Any] = [a, b, b / a, busy[1] / busy[0] if all(busy) else None, memory, our_memory]
    for name in ("launches", "waits", "copies"):
        cells += [getattr(one, name) for one in asked]
    return cells


def rows_of_steps(
    report: Report,
    clock: Clock,
    turns: int,
    cases: list[tuple[str, Callable[[], Stepper], Callable[[], Stepper]]],
    device: Any,
) -> None:
    import torch

    for name, plain, ours in cases:
        if clock.over():
            report.skipped(name)
            continue
        try:
            report.row(name, *pair_of(plain, ours, device, turns))
        except torch.OutOfMemoryError:
            report.row(name, "out of memory", *[""] * (len(report.columns) - 2))


_COLUMNS = [
    "s, {peer}", "s, {ours}", "ratio", "of the card's time", "MiB, {peer}", "MiB, {ours}",
    "launches, {peer}", "launches, {ours}", "waits, {peer}", "waits, {ours}",
    "copies, {peer}", "copies, {ours}",
]  # fmt: skip


def columns(peer: str, ours: str) -> list[str]:
    return ["method", *(name.format(peer=peer, ours=ours) for name in _COLUMNS)]


@contextmanager
def some_twins(patches: int) -> Iterator[str]:
    """A dictionary of random patches of 96 pixels, each with a twin."""
    import torch

    from solo_infoaug import TwinDictionary

    with tempfile.TemporaryDirectory() as folder:
        twins = str(Path(folder) / "twins")
        pixels = torch.randint(0, 256, (patches, 1, 3, 96, 96), dtype=torch.uint8)
        partner = torch.arange(patches).view(-1, 2).flip(1).reshape(-1, 1)
        TwinDictionary.create(twins, pixels, partner, torch.ones(patches, 1), windows=[0] * patches)
        yield twins


def training(report: Report, device: Any, sizes: Sizes, clock: Clock) -> None:
    report.head("3. A training step", columns("plain, doubled", "InfoAug"))
    with some_twins(2 * max(sizes.step_batches)) as twins:
        cases = []
        for precision, batch, backbone, side, method in product(
            sizes.precisions, sizes.step_batches, sizes.backbones, sizes.step_sides, sizes.methods
        ):
            name = f"{method}, {backbone}, {side} pixels, batch {batch}, {precision}"
            what = (method, backbone, side)

            def plain(w: Any = what, b: int = batch, p: str = precision) -> Stepper:
                return Stepper(*w, 2 * b, p, device)

            def ours(
                w: Any = what, b: int = batch, p: str = precision, together: bool = False
            ) -> Stepper:
                stepper = Stepper(*w, b, p, device, infoaug={"twins": twins})
                branch = stepper.module.twin_branch
                branch.one_pass = branch.few_operations = together
                return stepper

            cases.append((name, plain, ours))
            # fewer operations than the plain method (5): for where Python takes the time
            if (batch, precision) == (min(sizes.step_batches), "16-mixed"):
                cases.append((f"{name}, one pass", plain, partial(ours, together=True)))
        rows_of_steps(report, clock, sizes.turns, cases, device)
    report.say(f"\nGoal: a ratio of at most {GOAL_STEP}, and no more waits than the plain method.")


def objective(report: Report, device: Any, sizes: Sizes, clock: Clock) -> None:
    report.head("4. f-MICL", columns("InfoNCE", "fmicl: js"))
    cases = []
    for batch in sizes.fmicl_batches:
        side = min(sizes.step_sides)

        def plain(b: int = batch, s: int = side) -> Stepper:
            return Stepper("simclr", "resnet18", s, b, "16-mixed", device)

        def ours(b: int = batch, s: int = side) -> Stepper:
            return Stepper("simclr", "resnet18", s, b, "16-mixed", device, fmicl="js")

        cases.append((f"simclr, resnet18, {side} pixels, batch {batch}, 16-mixed", plain, ours))
    rows_of_steps(report, clock, 2 * sizes.turns, cases, device)
    report.say(f"\nGoal: a ratio of at most {GOAL_FMICL}.")


# --- 5 and 6: operations, and an epoch -----------------------------------------------------------


def counted(report: Report, device: Any, sizes: Sizes, clock: Clock) -> None:
    batch = sizes.counted_batch
    with some_twins(4 * batch) as twins:

        def make(method: str, way: str) -> Stepper:
            ours = way.startswith("InfoAug")
            extra = {"infoaug": {"twins": twins}} if ours else {}
            images = 2 * batch if way == "plain, doubled" else batch
            stepper = Stepper(method, "resnet18", 32, images, "16-mixed", device, **extra)
            if ours:
                together = way == "InfoAug, one pass"
                branch = stepper.module.twin_branch
                branch.one_pass = branch.few_operations = together
            return stepper

        gpu_operations.table(report, make, sizes.counted_methods, clock)


def epoch(images: Path | None, report: Report, device: Any, sizes: Sizes, clock: Clock) -> None:
    import gpu_epoch

    with some_twins(4 * sizes.epoch_batch) as twins, tempfile.TemporaryDirectory() as folder:
        if images is None:
            images = gpu_epoch.generated(Path(folder) / "generated", sizes.epoch_images)
        gpu_epoch.table(report, device, sizes, clock, images, twins, wait)


# --- the command ----------------------------------------------------------------------------------


def parsed_options() -> argparse.Namespace:
    """The command line, with `device` as torch has it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, … or, with --tiny, cpu")
    parser.add_argument(
        "--tiny", action="store_true", help="that it runs; the figures mean nothing"
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="for all parts together")
    parser.add_argument("--images", type=Path, help="CIFAR-10 as folders, train/CLASS: for `epoch`")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    check_needs(options.parts)
    import torch

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "benchmarks/gpu.py: torch finds no CUDA device; --tiny --device cpu shows that it runs"
        )
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    elif not options.tiny:
        parser.error("--device cpu is for --tiny: on a CPU the rest takes hours")
    else:
        # with threads that wait for each other a busy machine takes ten times as long
        torch.set_num_threads(1)
    if options.images is not None and not (options.images / "train").is_dir():
        parser.error(f"--images: expected a folder with train/CLASS in it, got {options.images}")
    options.device = device
    return options


def waits_text(device: Any) -> str:
    """What the columns of waits and copies count."""
    if device.type == "cuda":
        return (
            "waits: cudaStreamSynchronize, cudaDeviceSynchronize and cudaEventSynchronize; "
            "copies: from the host to the device"
        )
    return (
        "launches: operations that PyTorch is asked for, less views of memory and bare memory; "
        "waits: `.item()`, `nonzero` and `masked_select`, also on what is drawn on the CPU, "
        "for which no card is waited for; copies: calls of `.to(device)`, `.cpu()` and `.cuda()`. "
        "To a device that is not the CPU a step sends its twins and all that is drawn for their "
        "views in one copy, and neither views nor steps wait for anything of it: both is tested on "
        "torch's device `meta`"
    )


def keep_bytecode() -> None:
    """Where Python is told to write none, as in many containers: half of the time was compiling."""
    if sys.dont_write_bytecode:
        # where the tests keep theirs
        sys.pycache_prefix = str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode")
        sys.dont_write_bytecode = False


def main() -> None:
    keep_bytecode()
    options = parsed_options()
    device = options.device
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    import torch

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    name = "gpu" if not options.tiny else f"gpu_tiny_{device.type}"
    report, sizes = Report(), TINY if options.tiny else Sizes()
    started = time.perf_counter()
    machine = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.processor() or platform.machine()}, no card"
    )
    report.save = lambda: write(report, options, machine, name)
    if options.tiny:
        report.say(
            "**At tiny size**: this shows that every part runs. No figure of time below means "
            f"anything{'' if device.type == 'cuda' else ', and nothing below ran on a GPU'}."
        )
    report.say(
        f"\n{machine}; {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
    works = {
        "mi": information,
        "views": views,
        "step": training,
        "fmicl": objective,
        "operations": counted,
        "epoch": partial(epoch, options.images),
    }
    left = sum(PARTS[part] for part in options.parts)
    spent = []
    for part in options.parts:
        before = time.perf_counter(), time.process_time()
        remains = 60 * options.minutes - (time.perf_counter() - started)
        share = math.inf if options.tiny else remains * PARTS[part] / left
        left -= PARTS[part]
        works[part](report, device, sizes, Clock(share))
        wall, busy = time.perf_counter() - before[0], time.process_time() - before[1]
        spent.append(f"{part} {wall:.0f} ({busy:.0f})")
    took = time.perf_counter() - started
    report.say(
        f"\n{waits_text(device)}. All of it took {took:.0f} s; by parts, and in brackets this "
        f"process's time on processors: {', '.join(spent)}."
    )
    write(report, options, machine, name)


def write(report: Report, options: argparse.Namespace, machine: str, name: str) -> None:
    """The page and JSON of what has been measured."""
    import torch

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.md").write_text("\n".join(report.lines) + "\n", encoding="utf-8")
    content = {
        "tiny": options.tiny,
        "device": machine,
        "torch": torch.__version__,
        "rows": report.rows,
    }
    (options.out / f"{name}.json").write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
