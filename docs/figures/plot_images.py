"""Draws docs/figures/images.png: CIFAR-100 accuracy over the length of training.

uv run python docs/figures/plot_images.py
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from solo_infoaug.compare.arms import ARMS

OUT = Path(__file__).with_name("images.png")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "compare_few_images.csv"
# Share of CIFAR-100's 50,000 training images: line, label
SHARES = {"0.1": ("-", "5,000 images"), "0.04": ("--", "2,000 images")}


def main() -> None:
    with RESULTS.open() as file:
        rows = [row for row in csv.DictReader(file) if row["weight"] != "1"]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axes, metric, title in zip(
        panels, ("linear", "knn"), ("linear probe", "k-NN"), strict=True
    ):
        for share, (line, images) in SHARES.items():
            for name in ("baseline", "random", "infoaug"):
                # `baseline_images` is the baseline with more steps
                points = sorted(
                    (int(row["images"]) / 1000, float(row[metric]))
                    for row in rows
                    if row["images_share"] == share
                    and (row["arm"] == name or row["arm"].startswith(f"{name}_"))
                )
                label = f"{ARMS[name].label.split(',')[0]}, {images}"
                colour = ARMS[name].colour
                axes.plot(*zip(*points, strict=True), f"o{line}", color=colour, label=label)
        axes.set(
            xlabel="views seen by both branches, thousands",
            ylabel="CIFAR-100 accuracy, %",
            title=title,
            xscale="log",
        )
        axes.set_xticks([150, 300, 600, 1200], ["150", "300", "600", "1200"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7, handlelength=4)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()
