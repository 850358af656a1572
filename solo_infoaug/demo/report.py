"""The sentences and tables of the demo, for terminal and page, and its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from solo_infoaug._files import mark_as_made
from solo_infoaug.compare.arms import ARMS
from solo_infoaug.compare.results import draw_bars, read_losses
from solo_infoaug.compare.tables import Column, Values
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.viewer.html import data_uri, render
from solo_infoaug.viewer.pictures import (
    draw_pairs,
    draw_tracks,
    draw_twins,
    richest_windows,
    square_of,
    strongest_pairs,
)

matplotlib.use("Agg")

# Maximum number of videos whose richest window is drawn.
_WINDOWS = 4
# Minimum lead over every other row, in points, to claim a gain. The standard error of one accuracy
# over the 600 test stills is two points, and seeds differ by more than that.
_PLAINLY = 10.0


@dataclass(frozen=True)
class ArmResult:
    """One row of the demo's table; accuracies of the linear probe in per cent."""

    arm: str
    """Its key in `compare.arms.ARMS`."""
    across: float
    usual: float


@dataclass(frozen=True)
class ScenesResult:
    """Results of the three arms on `scenes`."""

    videos: int
    chance: float
    """Per cent, for either probe."""
    steps: int
    arms: list[ArmResult]


@dataclass(frozen=True)
class BackboneResult:
    """The exported backbone; file names are relative to the demo's folder."""

    name: str
    file: str
    images: int
    steps: int
    metrics_csv: str
    losses: dict[str, tuple[float, float]]
    """Branch → mean loss of the first and of the last ten steps, nats."""


@dataclass(frozen=True)
class DemoResult:
    """The content of the report, which `results.json` also holds."""

    twins: str
    videos: list[tuple[str, ...]]
    """A heading, and one row for each video."""
    scenes: ScenesResult
    backbone: BackboneResult
    seconds: dict[str, float]


def twins_text(twins: TwinDictionary) -> str:
    """What a twin is, what was mined, and why some videos have no twins."""
    failed = [
        f" None in {Path(path).name} ({why.removeprefix(f'{path}: ')})."
        for path, why in (twins.info.get("failed") or {}).items()
    ]
    return (
        "The twin of a patch is the patch whose motion shares the most mutual information with its "
        f"own. {len(twins.anchors)} of {len(twins)} stored patches have a twin, in "
        f"{len(twins.windows)} windows of {len(twins.videos)} videos."
    ) + "".join(failed)


def arms_table(scenes: ScenesResult) -> tuple[list[str], list[list[str]], str]:
    """Heading, rows and title of the table of arms."""
    numbers = [("chance", scenes.chance, scenes.chance)]
    numbers += [(ARMS[row.arm].label, row.across, row.usual) for row in scenes.arms]
    rows = [[label, f"{across:.1f}", f"{usual:.1f}"] for label, across, usual in numbers]
    title = "linear probe of the frozen backbone (per cent)"
    return ["arm", "across parts", "as usual"], rows, title


def scenes_text(scenes: ScenesResult) -> list[str]:
    """How the arms were probed, what the numbers show, and what they do not show."""
    across = {row.arm: row.across for row in scenes.arms}
    ours = across.pop("infoaug")
    others = ", ".join(f"{ARMS[arm].label} {value:.1f}" for arm, value in across.items())
    others += f", chance {scenes.chance:.1f}"
    if ours - max(scenes.chance, *across.values()) > _PLAINLY:
        shows = (
            f"InfoAug reaches {ours:.1f} across parts ({others}). So it brings parts that move "
            "together close to each other in the features, and this takes the right twins: the "
            "same training with random patches does not do it."
        )
    else:
        shows = (
            f"This run shows no gain: InfoAug ({ours:.1f} across parts) is not clearly above the "
            f"others ({others})."
        )
    return [
        "The scenes are generated. Each object has a class and parts of different texture, and "
        "only motion tells which parts belong together. Across parts: the probe learns the classes "
        "from all parts except one and is tested on that one. Features that know only textures may "
        "be below chance, because an unseen part may look like another class's. "
        "As usual: the probe learns from all parts.",
        shows,
        f"This is one method (SimCLR), one seed, {scenes.steps} steps for each arm, and "
        f"{scenes.videos} videos that were made so that motion alone helps. Where several real "
        "things move, InfoAug tells them apart better than the baseline does, in videos that it "
        "was trained on. On CIFAR and Tiny-ImageNet it has shown no gain: see docs/results.md.",
    ]


def backbone_text(backbone: BackboneResult) -> str:
    """Where the backbone is, and how briefly it was trained."""
    losses = ", ".join(
        f"{branch} {first:.2f} → {last:.2f}" for branch, (first, last) in backbone.losses.items()
    )
    return (
        f"{backbone.file}: {backbone.name}, SimCLR with InfoAug, {backbone.steps} steps on "
        f"{backbone.images} images of the patches. Losses, mean of the first and of the last ten "
        f"steps (nats): {losses}. So few steps do not make a useful backbone; use more video and "
        "--epochs."
    )


def draw_arms(scenes: ScenesResult) -> Figure:
    """The table as bars in the arms' colours; the dashed line is chance."""
    values: Values = {
        (probe, Column(row.arm)): {0: accuracy}
        for row in scenes.arms
        for probe, accuracy in (("across parts", row.across), ("as usual", row.usual))
    }
    figure = draw_bars(values, "linear probe")
    (axes,) = figure.axes
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.1f", fontsize=9, padding=2)  # type: ignore[arg-type]
    axes.axhline(scenes.chance, color="#444", linestyle="--", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "va": "center"}
    look: dict[str, Any] = {**place, "textcoords": "offset points", "fontsize": 9, "color": "#444"}
    axes.annotate("chance", (1.0, scenes.chance), **look)
    axes.set_ylim(0, 108)
    return figure


def draw_losses(metrics: Path) -> Figure:
    """Both losses of a run of SimCLR with InfoAug, from Lightning's metrics.csv."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    colour = ARMS["infoaug"].colour
    for (branch, points), style in zip(read_losses(metrics).items(), ("-", "--"), strict=True):
        axes.plot(*points, style, color=colour, label=branch, linewidth=1.5)
    axes.set(xlabel="step", ylabel="InfoNCE loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def draw_pairs_in_place(twins: TwinDictionary, count: int = 12) -> Figure:
    """Pairs in their surroundings: each patch (solid) and its twin (dashed), MI and video above.

    The strongest pair of each window comes first, then the next one elsewhere in the window.
    """
    chosen = _scattered_pairs(twins)[:count]
    columns = max(1, min(4, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(2.5 * columns, 2.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    images = {number: twins.windows[number].image for number in {pair[0] for pair in chosen}}
    for axes, (number, patch, twin) in zip(grid, chosen, strict=False):
        image = images[number]
        height, width = image.shape[:2]
        both = twins.patches[[patch, twin]]
        places = np.stack([both["x"], both["y"]], axis=1)
        size = float(both["size"][0])
        side = min(max(6 * size, float(np.ptp(places, axis=0).max()) + 2 * size), height, width)
        middle = places.mean(axis=0)
        left, top = np.clip(middle - side / 2, 0, np.array([width, height]) - side)
        axes.imshow(image)
        axes.set(xlim=(left, left + side), ylim=(top + side, top))
        for row, style in zip(both, ("-", (0, (2, 1))), strict=True):
            axes.add_patch(square_of(row, edgecolor="black", linewidth=3.2))
            axes.add_patch(square_of(row, edgecolor="#ffe14d", linestyle=style, linewidth=1.8))
        name = Path(twins.windows[number].video).name.replace("$", r"\$")
        axes.set_title(f"{name}: {float(twins.mi[patch, 0]):.2f} nats", fontsize=8)
    return figure


def _scattered_pairs(twins: TwinDictionary) -> list[tuple[int, int, int]]:
    """(window, patch, twin): the strongest of each window, then the next of each, and so on.

    Within a window, pairs are at least three patches apart: neighbours show the same thing.
    """
    ranked = []
    for number, window in enumerate(twins.windows):
        taken: list[np.ndarray] = []
        for i, j in strongest_pairs(twins, window):
            patch, twin = (window.patches.start + row for row in (i, j))
            both = twins.patches[[patch, twin]]
            middle = np.array([both["x"].mean(), both["y"].mean()])
            if all(np.linalg.norm(middle - other) >= 3 * both["size"][0] for other in taken):
                ranked.append((len(taken), -float(twins.mi[patch, 0]), number, patch, twin))
                taken.append(middle)
    return [(number, patch, twin) for _, _, number, patch, twin in sorted(ranked)]


def draw_twin_pictures(twins: TwinDictionary, folder: Path) -> list[Path]:
    """`pairs.png`, `crops.png`, and of some videos' richest window two PNG files: twins, tracks."""
    mark_as_made(folder)
    pictures = [
        _save(draw_pairs_in_place(twins), folder / "pairs.png"),
        _save(draw_pairs(twins), folder / "crops.png"),
    ]
    for number in _windows(twins):
        for name, draw in (("twins", draw_twins), ("tracks", draw_tracks)):
            pictures.append(_save(draw(twins, number), folder / f"window-{number}-{name}.png"))
    return pictures


def _windows(twins: TwinDictionary) -> list[int]:
    """The windows with the most twins, at most one from each video."""

    def count(number: int) -> int:
        return int((twins.twins[twins.windows[number].rows, 0] >= 0).sum())

    richest: dict[str, int] = {}
    for number in sorted(range(len(twins.windows)), key=count, reverse=True):
        richest.setdefault(twins.windows[number].video, number)
    return list(richest.values())[:_WINDOWS]


def _save(figure: Figure, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    return file


def write_report(
    demo: DemoResult, twin_pictures: list[Path], scene_twins: TwinDictionary, folder: Path
) -> Path:
    """Draw what is not yet drawn, and write `report.html` into `folder`; returns its path.

    `twin_pictures` are from `draw_twin_pictures`; `scene_twins` shows what the benchmark is like.
    """
    pictures = folder / "pictures"
    (window,) = richest_windows(scene_twins, 1)
    images = {
        "scene": draw_twins(scene_twins, window),
        "arms": draw_arms(demo.scenes),
        "losses": draw_losses(folder / demo.backbone.metrics_csv),
    }
    header, rows, title = arms_table(demo.scenes)
    pairs, crops, *windows = [data_uri(file.read_bytes()) for file in twin_pictures]
    page = render(
        "solo_infoaug.demo",
        "report.html.j2",
        demo=demo,
        pairs=pairs,
        crops=crops,
        windows=[windows[i : i + 2] for i in range(0, len(windows), 2)],
        header=header,
        rows=rows,
        title=title,
        scenes_text=scenes_text(demo.scenes),
        backbone_text=backbone_text(demo.backbone),
        images={
            name: data_uri(_save(figure, pictures / f"{name}.png").read_bytes())
            for name, figure in images.items()
        },
    )
    file = folder / "report.html"
    # a file name need not be valid text
    file.write_text(page, encoding="utf-8", errors="backslashreplace")
    return file
