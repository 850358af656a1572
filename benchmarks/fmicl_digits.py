"""k-NN accuracy while InfoNCE or f-MICL trains on scikit-learn's handwritten digits.

1797 scans of digits, on a 16 × 16 canvas, turned, moved, scaled and noised at random: two views in
training, and once in the evaluation, so that k-NN on pixels or on an untrained backbone is poor.
The method is solo-learn's own on whichever host is here, with `fmicl:` in its configuration.

    uv run python benchmarks/fmicl_digits.py [--method simclr] [--steps 2000] [--seeds 0 1]

Writes benchmarks/results/fmicl_digits.csv and docs/figures/f-micl-digits.png, prints the table.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer, seed_everything
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from tiny_host import configuration, features, shrink
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from solo_infoaug import register
from solo_infoaug.objectives import DIVERGENCES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fmicl_digits.csv"
FIGURE = ROOT / "docs" / "figures" / "f-micl-digits.png"
COLUMNS = ("host", "method", "objective", "seed", "step", "knn", "alignment", "uniformity")


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images [N, 1, 16, 16], and labels; a fixed split, 1297 and 500."""
    images, labels = load_digits(return_X_y=True)
    canvas = torch.zeros(len(images), 1, 16, 16)
    canvas[:, :, 4:12, 4:12] = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8
    found = train_test_split(canvas, torch.from_numpy(labels), test_size=500, random_state=0)
    return found[0], found[1], found[2], found[3]


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turned, scaled, moved and noised: [N, 1, 16, 16] → [N, 3, 16, 16]."""
    n = len(images)
    turn, size, across, down = torch.rand(4, n, generator=generator)
    angle, zoom = (turn - 0.5) * (math.pi / 4.5), 1 / (0.9 + 0.6 * size)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    moves = (across - 0.5) * 0.375, (down - 0.5) * 0.375
    rows = torch.stack([cos, -sin, moves[0], sin, cos, moves[1]], dim=1).view(n, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    out = F.grid_sample(images, grid, align_corners=False)
    out += 0.1 * torch.randn(out.shape, generator=generator)
    return out.expand(-1, 3, -1, -1)


class Views(Dataset[list[Any]]):
    """`steps` batches of two views in solo-learn's format, all of them drawn by the seed."""

    def __init__(self, images: Tensor, labels: Tensor, steps: int, batch: int, seed: int) -> None:
        self.images, self.labels = images, labels
        self.steps, self.batch, self.seed = steps, batch, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[Any]:
        if step >= self.steps:
            raise IndexError(step)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        index = torch.randperm(len(self.images), generator=generator)[: self.batch]
        views = [view(self.images[index], generator) for _ in range(2)]
        return [index, views, self.labels[index]]


def knn_accuracy(model: Any, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Per cent of test images whose 5 nearest training images, by cosine, vote for their label."""
    train, test, train_labels, test_labels = data
    sets = [F.normalize(features(model, images), dim=1).numpy() for images in (train, test)]
    knn = KNeighborsClassifier(5).fit(sets[0], train_labels)
    return 100 * float(knn.score(sets[1], test_labels))


class Curve(Callback):
    """Notes k-NN accuracy, alignment and uniformity every `every` steps."""

    def __init__(self, data: Any, every: int) -> None:
        generator = torch.Generator().manual_seed(7)
        train, test, train_labels, test_labels = data
        self.data = view(train, generator), view(test, generator), train_labels, test_labels
        self.every = every
        self.rows: list[tuple[int, float, float, float]] = []

    def note(self, trainer: Trainer, model: Any) -> None:
        metrics = trainer.callback_metrics
        alignment, uniformity = (
            float(metrics.get(name, math.nan)) for name in ("train_alignment", "train_uniformity")
        )
        accuracy = knn_accuracy(model, self.data)
        self.rows.append((trainer.global_step, accuracy, alignment, uniformity))

    def on_train_start(self, trainer: Trainer, model: Any) -> None:
        self.note(trainer, model)

    def on_train_batch_end(self, trainer: Trainer, model: Any, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            self.note(trainer, model)


def run(host: Any, objective: str, seed: int, options: argparse.Namespace, data: Any) -> Curve:
    """One training; the curve of it."""
    seed_everything(seed, verbose=False)
    extra = {} if objective == "infonce" else {"fmicl": objective}
    cfg = configuration(
        options.method, steps=options.steps, batch=options.batch, lr=options.lr, **extra
    )
    model = shrink(host.methods[options.method](cfg))
    train, _, labels, _ = data
    loader = DataLoader(Views(train, labels, options.steps, options.batch, seed), batch_size=None)
    curve = Curve(data, max(1, options.steps // 12))
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[curve],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, loader)
    return curve


def plot(rows: list[dict[str, Any]], method: str) -> None:
    """The mean curve of each objective over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for objective in dict.fromkeys(row["objective"] for row in rows):
        points: dict[int, list[float]] = {}
        for row in rows:
            if row["objective"] == objective:
                points.setdefault(int(row["step"]), []).append(float(row["knn"]))
        steps = sorted(points)
        style = "k--" if objective == "infonce" else "-"
        axes.plot(steps, [sum(points[s]) / len(points[s]) for s in steps], style, label=objective)
    axes.set(xlabel="step", ylabel="k-NN accuracy (%)", title=f"{method} on handwritten digits")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--objectives", nargs="+", default=["infonce", *DIVERGENCES])
    parser.add_argument("--keep", action="store_true", help="add to the results file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are too small to share
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    host, data = register(), load()
    rows: list[dict[str, Any]] = []
    if options.keep and RESULTS.exists():
        with RESULTS.open(newline="") as file:
            rows = list(csv.DictReader(file))
    print(f"solo-learn {host.info.version} ({host.info.kind}), {options.steps} steps")
    print("| objective | seed | k-NN before | k-NN after | alignment | uniformity |")
    print("|---|---|---|---|---|---|")
    for seed in options.seeds:
        for objective in options.objectives:
            curve = run(host, objective, seed, options, data)
            for point in curve.rows:
                values = (host.info.kind, options.method, objective, seed, *point)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
            (_, before, *_), (_, after, alignment, uniformity) = curve.rows[0], curve.rows[-1]
            print(
                f"| {objective} | {seed} | {before:.1f} | {after:.1f} "
                f"| {alignment:.3f} | {uniformity:.3f} |",
                flush=True,
            )
            with RESULTS.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    plot([row for row in rows if row["method"] == options.method], options.method)


if __name__ == "__main__":
    main()
