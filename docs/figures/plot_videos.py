"""Draws docs/figures/videos.png: CIFAR-10 accuracy over the number of videos that were mined.

uv run python docs/figures/plot_videos.py
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from solo_infoaug.compare.arms import ARMS

OUT = Path(__file__).with_name("videos.png")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "compare_videos.csv"


def main() -> None:
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axes, metric, title in zip(
        panels, ("linear", "knn"), ("linear probe", "k-NN"), strict=True
    ):
        for name in ("baseline_images", "random", "infoaug"):
            for seed, look in (("0", "o-"), ("1", "s--")):
                points = sorted(
                    (int(row["videos"]), float(row[metric]))
                    for row in rows
                    if (row["arm"], row["seed"]) == (name, seed)
                )
                arm = ARMS[name]
                label = f"{arm.label}, seed {seed}"
                axes.plot(*zip(*points, strict=True), look, color=arm.colour, label=label)
        axes.set(
            xlabel="videos with twins", ylabel="CIFAR-10 accuracy, %", title=title, ylim=(40, 48)
        )
        axes.set_xticks(sorted({int(row["videos"]) for row in rows}))
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7, ncols=2)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
