"""The demo's report: one self-contained HTML page, and its pictures as PNG files beside it."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.mining.export import richest_windows
from solo_infoaug.mining.pictures import draw_mi_matrix, draw_tracks, draw_twins

if TYPE_CHECKING:
    from solo_infoaug.demo import ArmResult, DemoResult

matplotlib.use("Agg")

# So many windows are drawn, those with the most twins.
_WINDOWS = 6


def _curve(file: Path, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of one column of Lightning's metrics.csv."""
    with file.open(encoding="utf-8", newline="") as rows:
        points = [(int(r["step"]), float(r[column])) for r in csv.DictReader(rows) if r.get(column)]
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: list[float], window: int = 5) -> list[float]:
    return [
        sum(values[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(values))
    ]


def draw_losses(arms: Iterable[ArmResult], folder: Path) -> Figure:
    """Loss curves of the view branch and of the twin branch, all arms."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    views, twins = figure.subplots(1, 2)
    for arm in arms:
        if arm.metrics_csv is None:
            continue
        for axes, column in ((views, "train_nce_loss_step"), (twins, "twin_loss_step")):
            steps, values = _curve(folder / arm.metrics_csv, column)
            if steps:
                axes.plot(steps, _smooth(values), label=arm.name, linewidth=1.5)
    for axes, title in ((views, "view branch"), (twins, "twin branch")):
        axes.set(title=title, xlabel="step", ylabel="InfoNCE loss (nats)")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _save(figure: Figure, file: Path) -> str:
    """Write the PNG, and return it as a data URI."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def write_report(demo: DemoResult, twins: TwinDictionary, folder: Path) -> Path:
    """Draw everything and write `report.html`; returns its path.

    Args:
        demo: what the demo found.
        twins: the dictionary that it trained with.
        folder: of the demo; the pictures go to its `pictures/`.
    """
    pictures = folder / "pictures"
    windows = []
    for number in richest_windows(twins, _WINDOWS):
        window = twins.windows[number]
        windows.append(
            {
                "title": f"{Path(window.video).name}, window {window.index}",
                "twins": _save(draw_twins(twins, number), pictures / f"window-{number}-twins.png"),
                "tracks": _save(
                    draw_tracks(twins, number), pictures / f"window-{number}-tracks.png"
                ),
                "matrix": _save(
                    draw_mi_matrix(twins, number), pictures / f"window-{number}-mi.png"
                ),
            }
        )
    losses = _save(draw_losses(demo.arms, folder), pictures / "losses.png")
    environment = Environment(
        loader=PackageLoader("solo_infoaug", "."), autoescape=select_autoescape(["html", "j2"])
    )
    page = environment.get_template("report.html.j2").render(
        demo=demo,
        windows=windows,
        images={"losses": losses},
        digits_error=100 * math.sqrt(0.25 / 899),
        reid_error=100 * math.sqrt(0.25 / max(1, demo.held_out_patches)),
    )
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    return file
