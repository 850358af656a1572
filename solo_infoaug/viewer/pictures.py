"""Pictures of what was mined, as matplotlib figures.

Functions that draw a window raise a ConfigError if there is no such window. All raise a
DictionaryError if the files are damaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from solo_infoaug._checks import require
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.reading import WindowRecord
from solo_infoaug.mining.candidates import REASONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# At most this many pairs are drawn on one frame; more cannot be told apart.
_PAIRS = 30
_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
_WITH, _WITHOUT = "#ffb000", "#9ad0ff"
# In the order of `REASONS`.
_REASON_COLOURS = ("#ffb000", "#d62728", "#4c78a8", "#b279a2", "#dddddd", "#54a24b", "#333333")


def draw_twins(dictionary: TwinDictionary, window: int, pairs: int = _PAIRS) -> Figure:
    """The strongest twins on the frame of a window, joined by lines in the colour of their MI.

    Each patch is drawn once. At most `pairs` pairs are drawn, strongest first.
    """
    record = _window(dictionary, window)
    image = record.image
    figure, (axes,) = _frame_axes(image)
    rows = dictionary.patches[record.rows]
    twins = dictionary.twins[record.rows, 0].numpy()
    mi = dictionary.mi[record.rows, 0].numpy()
    others = rows[twins < 0]
    centres = np.stack([others["x"], others["y"]], axis=1)[:, None]
    corners = centres + 0.5 * others["size"][:, None, None] * _CORNERS
    look: dict[str, Any] = {"facecolors": "none", "edgecolors": "white", "alpha": 0.35}
    axes.add_collection(PolyCollection(list(corners), linewidths=0.6, **look), autolim=False)
    chosen = strongest_pairs(dictionary, record, pairs)
    colours = matplotlib.colormaps["plasma"]
    top = max((float(mi[i]) for i, _ in chosen), default=1.0)
    norm = matplotlib.colors.Normalize(0.0, top)
    for i, j in chosen:
        colour = colours(norm(mi[i]))
        both = rows[[i, j]]
        for row in both:
            axes.add_patch(square_of(row, edgecolor=colour, linewidth=1.8))
        axes.plot(both["x"], both["y"], color=colour, linewidth=1.4)
    if chosen:
        scale = matplotlib.cm.ScalarMappable(norm, colours)
        figure.colorbar(scale, ax=axes, label="mutual information (nats)", shrink=0.8, pad=0.01)
    count = int((twins >= 0).sum())
    title = f"{_name(record)}: {count} of {len(rows)} patches have a twin"
    title += f"; the {len(chosen)} strongest pairs" if count > 2 * len(chosen) else ""
    axes.set_title(title, fontsize=10)
    return figure


def strongest_pairs(
    dictionary: TwinDictionary, window: WindowRecord, count: int = _PAIRS
) -> list[tuple[int, int]]:
    """Up to `count` pairs of a patch and its twin, of highest MI; no patch comes twice.

    Patches count within the window.
    """
    twins = dictionary.twins[window.rows, 0].numpy()
    mi = dictionary.mi[window.rows, 0].numpy()
    chosen: list[tuple[int, int]] = []
    used: set[int] = set()
    for i in np.argsort(-mi, kind="stable"):
        j = int(twins[i]) - window.patches.start
        if twins[i] >= 0 and i not in used and j not in used and len(chosen) < count:
            chosen.append((int(i), j))
            used |= {int(i), j}
    return chosen


def richest_windows(dictionary: TwinDictionary, count: int) -> list[int]:
    """The `count` windows with the most patches that have a twin, in order of the dictionary."""
    of_anchor = torch.from_numpy(dictionary.patches["window"])[dictionary.anchors].long()
    twins = torch.bincount(of_anchor, minlength=len(dictionary.windows))
    order = sorted(range(len(twins)), key=lambda window: (-int(twins[window]), window))
    return sorted(order[:count])


def draw_tracks(dictionary: TwinDictionary, window: int) -> Figure:
    """The patches' tracks over the frame of a window, a dot where they end.

    A second picture shows the tracks without the background's motion.
    """
    record = _window(dictionary, window)
    arrays = record.arrays
    shown = [("as seen", arrays["tracks"])]
    if "motion" in arrays:
        patches = dictionary.patches[record.rows]
        rest = np.stack([patches["x"], patches["y"]], axis=1)
        own = arrays["motion"].swapaxes(0, 1).cumsum(axis=0)
        own = np.concatenate([np.zeros_like(own[:1]), own])
        shown.append(("without the background's motion", rest + own - own[len(own) // 2]))
    figure, panels = _frame_axes(record.image, len(shown))
    visible = arrays.get("visible", arrays.get("seen"))
    has_twin = dictionary.twins[record.rows, 0].numpy() >= 0
    for axes, (title, tracks) in zip(panels, shown, strict=True):
        for chosen, colour in ((~has_twin, _WITHOUT), (has_twin, _WITH)):
            paths = [
                tracks[:, p] if visible is None else tracks[visible[:, p], p]
                for p in np.flatnonzero(chosen)
            ]
            paths = [path for path in paths if len(path)]
            lines = LineCollection(paths, colors=colour, linewidths=1.0, alpha=0.8)
            axes.add_collection(lines, autolim=False)
            ends = np.array([path[-1] for path in paths]).reshape(-1, 2)
            axes.plot(*ends.T, "o", color=colour, ms=2.5)
        axes.plot([], [], color=_WITH, label="with a twin")
        axes.plot([], [], color=_WITHOUT, label="without")
        axes.legend(loc="lower right", fontsize=7, framealpha=0.7)
        what = f"{tracks.shape[1]} tracks of {len(tracks)} frames, {title}"
        axes.set_title(f"{_name(record)}: {what}", fontsize=10)
    return figure


def draw_reasons(dictionary: TwinDictionary, window: int) -> Figure:
    """Whether each patch of a window has a twin, or why not."""
    record = _window(dictionary, window)
    arrays = record.arrays
    figure, (axes,) = _frame_axes(record.image)
    centres, reason = arrays.get("centres"), arrays.get("reason")
    side = float(record.record.get("patch", 0))
    if centres is not None and reason is not None:
        for number, name in enumerate(REASONS):
            chosen = centres[reason == number]
            corners = chosen[:, None] + 0.47 * side * _CORNERS
            # as one: thousands of squares by themselves take seconds
            squares = PolyCollection(list(corners), color=_REASON_COLOURS[number], alpha=0.45)
            axes.add_collection(squares, autolim=False)
            axes.plot([], [], "s", color=_REASON_COLOURS[number], label=f"{name}: {len(chosen)}")
        axes.legend(loc="lower right", fontsize=8, framealpha=0.85)
    axes.set_title(f"{_name(record)}: twins, and why patches have none", fontsize=10)
    return figure


def draw_mi_histogram(dictionary: TwinDictionary, window: int) -> Figure:
    """The MI of all pairs and of the twins of a window, next to that of time-shifted surrogates."""
    record = _window(dictionary, window)
    arrays = record.arrays
    rows = record.rows
    pairs = arrays["mi"][np.triu_indices(len(arrays["mi"]), 1)]
    shown = {
        "time-shifted surrogates": (arrays.get("null", np.zeros(0)), "#999999"),
        "all pairs": (pairs[np.isfinite(pairs)], "#3b7dd8"),
        "twins": (dictionary.mi[rows, 0][dictionary.twins[rows, 0] >= 0].numpy(), _WITH),
    }
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    finite = np.concatenate([values.ravel() for values, _ in shown.values()])
    edges = np.linspace(finite.min(initial=0.0), finite.max(initial=0.1), 40)
    for name, (values, colour) in shown.items():
        if len(values):
            look: dict[str, Any] = {"density": True, "alpha": 0.55, "color": colour, "label": name}
            axes.hist(values.ravel(), list(edges), **look)
    axes.set(xlabel="mutual information (nats)", ylabel="density")
    axes.set_title(_name(record), fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return figure


def draw_mi_matrix(dictionary: TwinDictionary, window: int) -> Figure:
    """The MI of all pairs of a window's patches; grey where it was not estimated."""
    record = _window(dictionary, window)
    mi = record.arrays["mi"]
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#dddddd")
    finite = mi[np.isfinite(mi)]
    top = max(float(np.percentile(finite, 99.5)), 1e-6) if len(finite) else 1.0
    shown = axes.imshow(np.ma.masked_invalid(mi), cmap=colours, vmin=0.0, vmax=top)
    figure.colorbar(shown, ax=axes, label="mutual information (nats)")
    axes.set(xlabel="patch", ylabel="patch")
    axes.set_title(_name(record), fontsize=10)
    return figure


def draw_pairs(dictionary: TwinDictionary, count: int = 24) -> Figure:
    """A contact sheet of strong pairs: each patch above its twin, their MI above both.

    The strongest pair of each window comes first, then the second of each; no patch comes twice. If
    a crop shows more than the patch, a square marks the patch.
    """
    ranked = [
        (index, -float(dictionary.mi[window.patches.start + i, 0]), window.patches.start + i)
        for window in dictionary.windows
        for index, (i, _) in enumerate(strongest_pairs(dictionary, window, count))
    ]
    chosen = [row for _, _, row in sorted(ranked)[:count]]
    columns = max(1, min(12, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(0.85 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for index, patch in enumerate(chosen):
        row, column = divmod(index, columns)
        twin = dictionary.twins[patch, 0]
        pair = dictionary.crops(torch.stack([torch.tensor(patch), twin]))
        for offset in (0, 1):
            axes = grid[2 * row + offset, column]
            axes.imshow(pair[offset].permute(1, 2, 0).numpy())
            if dictionary.context[patch] > 1:
                axes.add_patch(_patch_in_crop(pair.shape[-1], float(dictionary.context[patch])))
        grid[2 * row, column].set_title(f"{float(dictionary.mi[patch, 0]):.2f}", fontsize=8)
    figure.suptitle("patches (above) and their twins (below); MI in nats", fontsize=9)
    return figure


def _patch_in_crop(side: int, context: float) -> Rectangle:
    """The outline of a patch in the middle of its crop, whose first pixel is at −0.5."""
    inner = side / context
    corner = (side - inner) / 2 - 0.5
    return Rectangle((corner, corner), inner, inner, fill=False, edgecolor=_WITH, linewidth=0.8)


def _window(dictionary: TwinDictionary, window: int) -> WindowRecord:
    count = len(dictionary.windows)
    require(0 <= window < count, "window", f"0 to {count - 1}, the dictionary's windows", window)
    return dictionary.windows[window]


def _name(record: WindowRecord) -> str:
    # a dollar sign would begin a formula
    return f"{record.video}, window {record.index}".replace("$", r"\$")


def _frame_axes(image: np.ndarray, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """`panels` axes side by side, or one above the other for wide frames, showing `image`."""
    height, width = image.shape[:2]
    long = 9.0 if panels == 1 else 7.0
    size = (long, long * height / width + 0.4) if width >= height else (long * width / height, long)
    figure = Figure(figsize=(size[0] * panels, size[1]), layout="constrained")
    made = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in made:
        # Dimmed, so that lines stand out
        axes.imshow((image * 0.8).astype(np.uint8))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
    return figure, made


def square_of(row: np.void, **style: Any) -> Rectangle:
    """The outline of a patch, a row of the dictionary's."""
    half = row["size"] / 2
    return Rectangle((row["x"] - half, row["y"] - half), 2 * half, 2 * half, fill=False, **style)
