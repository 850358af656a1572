"""The output of a grid: `results.csv`, `tables.md`, `tables.tex` and `report.html`."""

from __future__ import annotations

import csv
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from solo_infoaug._files import expanded
from solo_infoaug.compare.arms import ARMS
from solo_infoaug.compare.grid import Run
from solo_infoaug.compare.tables import (
    Column,
    Values,
    collect,
    mean_and_std,
    methods_and_columns,
    metric_names,
    results_csv,
    tables,
)
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import DictionaryError
from solo_infoaug.training.config import parse_overrides
from solo_infoaug.viewer.html import embedded, render
from solo_infoaug.viewer.pictures import draw_pairs, draw_twins, richest_windows


def write_results(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write all that is known of the finished runs into the folder `out`; returns the files."""
    results = [result for run in runs if (result := run.result) is not None]
    files = {"results.csv": results_csv(results)}
    out.mkdir(parents=True, exist_ok=True)
    if results:
        made = tables(results)
        files["tables.md"] = "\n".join(table.markdown() for table in made)
        files["tables.tex"] = "\n".join(table.latex() for table in made)
        files["report.html"] = _page(runs, results)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in files]


def _page(runs: Sequence[Run], results: Sequence[Mapping[str, Any]]) -> str:
    sets, made, videos = [], tables(results), count_videos(results)
    for data in dict.fromkeys(result["data"] for result in results):
        figures: list[dict[str, str | None]] = []
        for metric, name in metric_names(results).items():
            if values := collect(results, data, metric):
                ablation = draw_ablation(values, name, videos)
                swept = None if ablation is None else embedded(ablation)
                bars = embedded(draw_bars(values, name))
                figures.append({"title": name, "bars": bars, "ablation": swept})
        of_set = [run for run in runs if run.cell.data == data and run.result is not None]
        # what InfoAug trained with: some of its twins, and their quality if it is known
        truth, twins = None, []
        for run in [run for run in of_set if run.cell.arm == "infoaug"][:1]:
            dictionary = TwinDictionary.load(run.config.infoaug.twins)
            if dictionary.stream is None:  # frames and tracks stay in the bucket
                window = richest_windows(dictionary, 1)[0]
                twins = [draw_pairs(dictionary), draw_twins(dictionary, window)]
            if data == "scenes":
                marker = dictionary.path.parent / "scenes.json"
                truth = json.loads(marker.read_text(encoding="utf-8"))["truth"]
        sets.append(
            {
                "name": data,
                "tables": [table for table in made if table.title.startswith(f"{data}:")],
                "figures": figures,
                "curves": embedded(draw_curves(of_set)),
                "truth": truth,
                "twins": [embedded(figure) for figure in twins],
            }
        )
    return render(
        "solo_infoaug.compare",
        "results.html.j2",
        sets=sets,
        runs=len(runs),
        results=results,
        failed=[(r.title, r.files.reason()) for r in runs if r.state == "failed"],
        seeds=sorted({result["seed"] for result in results}),
        devices=sorted({f"{r['device']}, {r['threads']} threads" for r in results}),
        versions=sorted({json.dumps(result["versions"]) for result in results}),
    )


def count_videos(results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Override `infoaug.twins=…` → number of videos mined; for the dictionaries that are here."""
    counts = {}
    for override in {override for result in results for override in result["variant"]}:
        (parsed,) = parse_overrides([override])
        if parsed.key_or_group == "infoaug.twins":
            with suppress(DictionaryError):
                dictionary = TwinDictionary.load(expanded(str(parsed.value())))
                twinless = dictionary.info.get("twinless") or {}
                counts[override] = len(dictionary.videos) + len(twinless)
    return counts


def _swept(column: Column, videos: Mapping[str, int]) -> tuple[str, float] | None:
    """The one swept number of a column, its key and value; of dictionaries the videos' number."""
    with suppress(ValueError):
        (override,) = column.variant
        if override in videos:
            return "number of videos", float(videos[override])
        key, _, value = override.lstrip("+").partition("=")
        return key, float(value)
    return None


def _shade(column: Column, columns: Sequence[Column]) -> tuple[float, float, float, float]:
    """The colour of the column's arm, more opaque for later swept values."""
    same = [other for other in columns if other.arm == column.arm]
    return to_rgba(ARMS[column.arm].colour, (1 + same.index(column)) / len(same))


def _axis_label(metric: str) -> str:
    return textwrap.fill(f"{metric} (per cent)", 28)  # longer lines would be cut off


def draw_bars(values: Values, metric: str) -> Figure:
    """Bars of the mean and standard deviation over the seeds, for every method and column."""
    methods, columns = methods_and_columns(values)
    figure = Figure(figsize=(max(6.0, 1.5 * len(methods) + 1.5), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for j, column in enumerate(columns):
        places, heights, errors = [], [], []
        for i, method in enumerate(methods):
            if (method, column) in values:
                mean, std = mean_and_std(list(values[method, column].values()))
                places.append(i + (j - (len(columns) - 1) / 2) * width)
                heights.append(mean)
                errors.append(std)
        colour = _shade(column, columns)
        spread = None if np.isnan(errors).all() else errors
        axes.bar(places, heights, width, yerr=spread, color=colour, label=column.label)
    axes.set_xticks(range(len(methods)), methods, rotation=20, ha="right")
    axes.set(ylabel=_axis_label(metric))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def draw_ablation(
    values: Values, metric: str, videos: Mapping[str, int] | None = None
) -> Figure | None:
    """Accuracy over a swept number, one line for each method and arm; None if none was swept.

    `videos`: from `count_videos`; swept dictionaries are drawn over their number of videos.
    """
    lines: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for (method, column), seeds in values.items():
        swept = _swept(column, videos or {})
        if swept is not None:
            mean, std = mean_and_std(list(seeds.values()))
            lines.setdefault((method, column.arm, swept[0]), []).append((swept[1], mean, std))
    if not lines:
        return None
    keys = list(dict.fromkeys(key for _, _, key in lines))
    figure = Figure(figsize=(6 * len(keys), 3.6), layout="constrained")
    styles = dict(zip(dict.fromkeys(method for method, _, _ in lines), "os^DvPX", strict=False))
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        ticks = sorted({x for (_, _, of), line in lines.items() if of == key for x, _, _ in line})
        for (method, arm, of), points in lines.items():
            if of == key:
                x, mean, std = np.array(sorted(points)).T
                look = {"color": ARMS[arm].colour, "marker": styles.get(method, ".")}
                axes.errorbar(x, mean, std, capsize=3, label=f"{method}, {arm}", **look)
        for (method, column), seeds in values.items():
            if column.arm == "baseline" and not column.variant:
                level = mean_and_std(list(seeds.values()))[0]
                look = {"color": ARMS["baseline"].colour, "marker": styles.get(method, ".")}
                levels = [level] * len(ticks)
                axes.plot(ticks, levels, linestyle=":", label=f"{method}, baseline", **look)
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel=key, ylabel=_axis_label(metric))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def draw_curves(runs: Sequence[Run]) -> Figure:
    """Loss of the view branch and of the twin branch over the steps, mean over the seeds."""
    methods = list(dict.fromkeys(run.cell.method for run in runs))
    columns = list(dict.fromkeys(Column(run.cell.arm, run.cell.variant) for run in runs))
    figure = Figure(figsize=(2.6 * max(2, len(methods)), 4.6), layout="constrained")
    grid = figure.subplots(2, max(1, len(methods)), squeeze=False)
    for i, method in enumerate(methods):
        for row, branch in enumerate(("view", "twin")):
            axes = grid[row][i]
            for column in columns:
                curves = [
                    read_losses(run.files.metrics)[f"{branch} branch"]
                    for run in runs
                    if (run.cell.method, Column(run.cell.arm, run.cell.variant)) == (method, column)
                ]
                if curves := [(steps, losses) for steps, losses in curves if steps]:
                    length = min(len(steps) for steps, _ in curves)
                    mean = np.mean([losses[:length] for _, losses in curves], axis=0)
                    colour = _shade(column, columns)
                    axes.plot(curves[0][0][:length], mean, color=colour, lw=1.2)
            axes.set_title(f"{method}, {branch} branch", fontsize=9)
            axes.grid(alpha=0.3)
    return figure


def read_losses(metrics: Path) -> dict[str, tuple[list[int], list[float]]]:
    """`view branch` and `twin branch` → steps and losses, from Lightning's metrics.csv."""
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # the method's own loss; solo-learn also logs that of the online classifier
    names = [n for n in rows[0] if re.fullmatch("train_(?!.*class).*_loss_step", n)] if rows else []
    losses = {}
    for branch, columns in (("view branch", names[:1]), ("twin branch", ["twin_loss_step"])):
        points = [(int(r["step"]), float(r[n])) for r in rows for n in columns if r.get(n)]
        losses[branch] = [step for step, _ in points], [value for _, value in points]
    return losses
