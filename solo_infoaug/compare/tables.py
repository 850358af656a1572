"""From the results of runs to tables: mean ± std, paired differences with intervals, bold bests."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from solo_infoaug.compare.arms import ARMS
from solo_infoaug.compare.grid import reduced

METRICS = {
    "linear_across": "linear probe across parts",
    "knn_across": "k-NN across parts",
    "linear": "linear probe",
    "knn": "k-NN",
    "seen_auc": "videos trained on: same object, AUC",
    "seen_things": "videos trained on: one object against different objects, AUC",
    "seen_same_frame": "videos trained on: nearest patch on the same object, same frame",
    "seen_later_frame": "videos trained on: nearest patch on the same object, later frame",
    "unseen_auc": "held-out videos: same object, AUC",
    "unseen_things": "held-out videos: one object against different objects, AUC",
    "unseen_same_frame": "held-out videos: nearest patch on the same object, same frame",
    "unseen_later_frame": "held-out videos: nearest patch on the same object, later frame",
    "unseen_j": "held-out videos: label propagation, J",
    "unseen_f": "held-out videos: label propagation, F",
    "unseen_jf": "held-out videos: label propagation, mean of J and F",
    "online": "online accuracy",
}
"""Names for people, in the order of the tables."""

_DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "tiny_imagenet": "Tiny ImageNet",
}


def metric_names(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Names for people of all metrics of the results, in the order of the tables.

    Behind `METRICS`, without `online`, come those of the data sets in `evaluate.also`.
    """
    found = list(dict.fromkeys(metric for result in results for metric in result["metrics"]))
    names = {metric: name for metric, name in METRICS.items() if metric in found}
    last = {"online": names.pop("online")} if "online" in names else {}
    for metric in found:
        if metric not in METRICS:
            kind, _, data = metric.partition("_")
            probe = METRICS.get(kind)
            names[metric] = f"{_DATASETS.get(data, data)}, {probe}" if probe else metric
    return {**names, **last}


_OVER_METHODS = "mean over methods"

_REFERENCES = [key for key, arm in ARMS.items() if arm.reference]


@dataclass(frozen=True)
class Difference:
    """A paired difference: its mean, half the width of its 95 % interval, and how many pairs."""

    mean: float
    half_width: float
    """Infinite for a single pair."""
    pairs: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        if not math.isfinite(self.half_width):
            return f"{self.mean:+.1f}"
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{self.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n − 1); the latter is NaN for one value."""
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values, mean) if len(values) > 1 else math.nan


def paired_difference(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Difference | None:
    """Mean of `ours − theirs` over the keys that both have, with Student's 95 % interval.

    Its half-width is t(0.975, n − 1) · s / √n, s the sample standard deviation of the differences.
    None where no key is in both.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    mean, std = mean_and_std([ours[seed] - theirs[seed] for seed in seeds])
    if len(seeds) < 2:
        return Difference(mean, math.inf, 1)
    quantile = float(stats.t.ppf(0.975, len(seeds) - 1))
    return Difference(mean, quantile * std / math.sqrt(len(seeds)), len(seeds))


@dataclass(frozen=True)
class Column:
    """An arm, and its values of swept overrides."""

    arm: str
    variant: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For people."""
        parts = [variant.lstrip("+").removeprefix("infoaug.") for variant in self.variant]
        return ", ".join([ARMS[self.arm].label, *parts])


Values = dict[tuple[str, Column], dict[Any, float]]
"""(method, column) → seed and video → accuracy, of one data set and metric."""


def collect(
    results: Iterable[Mapping[str, Any]], data: str, metric: str, by_video: bool = False
) -> Values:
    """One metric on one data set: by seed and "", or with `by_video` by seed and video if known."""
    values: Values = {}
    for result in results:
        if result["data"] == data and metric in result["metrics"]:
            cell = str(result["method"]), Column(result["arm"], tuple(result["variant"]))
            of_videos = {"": result["metrics"][metric]}
            if by_video:
                of_videos = result.get("sequences", {}).get(metric, of_videos)
            for video, value in of_videos.items():
                values.setdefault(cell, {})[int(result["seed"]), video] = float(value)
    return values


def collect_references(
    results: Iterable[Mapping[str, Any]], data: str, metric: str
) -> dict[str, list[float]]:
    """Values of models that were not trained: name → one value for each seed.

    Where a swept override changes them, such as `evaluate.k`, its values follow the name.
    """
    found: dict[str, dict[tuple[str, ...], dict[int, float]]] = {}
    for result in results:
        for name, metrics in result.get("references", {}).items():
            if result["data"] == data and metric in metrics:
                of_variant = found.setdefault(name, {}).setdefault(tuple(result["variant"]), {})
                of_variant[int(result["seed"])] = float(metrics[metric])
    rows: dict[str, list[float]] = {}
    for name, variants in found.items():
        shared = {seed: value for seeds in variants.values() for seed, value in seeds.items()}
        same = all(  # up to rounding: machines differ
            abs(value - shared[seed]) < 0.1
            for seeds in variants.values()
            for seed, value in seeds.items()
        )
        of_rows = {(): shared} if same else variants
        rows |= {", ".join([name, *v]): list(seeds.values()) for v, seeds in of_rows.items()}
    return rows


def reference_of(values: Values, method: str, column: Column, arm: str) -> Column:
    """The column of `arm` with the same swept values, with which `column` is compared.

    With the same dictionary as well if that is what the arm's images come from.
    """
    same = Column(arm, reduced(column.variant, arm, patches=True))
    return same if (method, same) in values else Column(arm, reduced(column.variant, arm))


def differences(values: Values, method: str, column: Column) -> dict[str, Difference]:
    """Paired differences of a column to each reference that there is."""
    return {
        arm: gap
        for arm in _REFERENCES
        if arm != column.arm
        if (method, reference := reference_of(values, method, column, arm)) in values
        if (gap := paired_difference(values[method, column], values[method, reference]))
    }


@dataclass(frozen=True)
class Table:
    """A table: rows of texts, and which of them are the best of their row."""

    title: str
    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]

    def markdown(self) -> str:
        """In Markdown, the best in bold."""
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.header) + " |"]
        lines.append("|" + "|".join(["---"] + ["---:"] * (len(self.header) - 1)) + "|")
        for i, row in enumerate(self.rows):
            cells = [f"**{text}**" if (i, j) in self.best else text for j, text in enumerate(row)]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """In LaTeX with booktabs, the best in bold."""
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(self.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(_tex, self.header)) + r" \\", r"\midrule"]
        for i, row in enumerate(self.rows):
            cells = [
                rf"\textbf{{{_tex(text)}}}" if (i, j) in self.best else _tex(text)
                for j, text in enumerate(row)
            ]
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


_TEX = str.maketrans(
    {"\\": r"\textbackslash ", "_": r"\_", "%": r"\%", "&": r"\&", "±": r"$\pm$", "−": "$-$"}
)


def _tex(text: str) -> str:
    return text.translate(_TEX)


def tables(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """For each data set and metric, the accuracies and then the differences of InfoAug."""
    made = []
    for data in dict.fromkeys(result["data"] for result in results):
        for metric, name in metric_names(results).items():
            if values := collect(results, data, metric):
                references = collect_references(results, data, metric)
                pairs = collect(results, data, metric, by_video=True)
                made += [_accuracies(values, f"{data}: {name} (per cent)", references)]
                made += _differences(pairs, f"{data}: {name}, paired differences (points)")
    return made


def methods_and_columns(values: Values) -> tuple[list[str], list[Column]]:
    """The rows and the columns of a table, columns in the order of the arms."""
    methods = list(dict.fromkeys(method for method, _ in values))
    columns = list(dict.fromkeys(column for _, column in values))
    order = list(ARMS)
    return methods, sorted(columns, key=lambda column: order.index(column.arm))


def _several(methods: Sequence[str]) -> bool:
    """Whether there is a mean over the methods: not over one method with overrides of its own."""
    return 1 < len(methods) == len({method.partition("+")[0] for method in methods})


def _accuracies(values: Values, title: str, references: Mapping[str, list[float]]) -> Table:
    methods, columns = methods_and_columns(values)
    rows, best = [], set()
    means_of: list[dict[int, float]] = []
    for i, method in enumerate(methods):
        known = [list(values.get((method, column), {}).values()) for column in columns]
        rows.append([method, *(_mean_std(seeds) if seeds else "" for seeds in known)])
        means = {j: mean_and_std(seeds)[0] for j, seeds in enumerate(known, start=1) if seeds}
        best |= {(i, j) for j, mean in means.items() if mean == max(means.values())}
        means_of.append(means)
    # a mean over other methods in another column would compare nothing
    if _several(methods) and all(len(means) == len(columns) for means in means_of):
        over = zip(*(means.values() for means in means_of), strict=True)
        rows.append([_OVER_METHODS, *(f"{mean_and_std(values)[0]:.1f}" for values in over)])
    # untrained models have no arm, so their values are in the first column
    for name, seeds in references.items():
        rows.append([name, _mean_std(seeds), *[""] * (len(columns) - 1)])
    return Table(title, ["method", *(column.label for column in columns)], rows, best)


def _mean_std(values: Sequence[float]) -> str:
    mean, std = mean_and_std(values)
    return f"{mean:.1f}" if math.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def _over_methods(gaps: Sequence[Difference | None]) -> Difference | None:
    """The mean of the methods' mean differences, with its interval over the methods.

    None unless all methods have one.
    """
    means = {i: gap.mean for i, gap in enumerate(gaps) if gap is not None}
    return paired_difference(means, dict.fromkeys(means, 0.0)) if len(means) == len(gaps) else None


def _starred(gap: Difference | None) -> str:
    return "" if gap is None else str(gap) + ("*" if gap.significant else "")


def _differences(values: Values, title: str) -> list[Table]:
    """None of them where nothing is compared with anything."""
    methods, columns = methods_and_columns(values)
    ours = [column for column in columns if not ARMS[column.arm].reference]
    pairs = [
        (column, arm)
        for column in ours
        for arm in _REFERENCES
        if any((m, reference_of(values, m, column, arm)) in values for m in methods)
    ]
    if not pairs:
        return []
    gaps = {
        (method, column): differences(values, method, column)
        for method in methods
        for column in ours
        if (method, column) in values
    }
    rows = []
    for method in methods:
        known = [gaps.get((method, column), {}).get(arm) for column, arm in pairs]
        rows.append([method, *map(_starred, known)])
    if _several(methods):
        of_methods = [
            [gaps.get((m, column), {}).get(arm) for m in methods] for column, arm in pairs
        ]
        rows.append([_OVER_METHODS, *(_starred(_over_methods(known)) for known in of_methods)])
    header = [f"{column.label} − {ARMS[arm].label}" for column, arm in pairs]
    videos = any(key[1] for keys in values.values() for key in keys)
    over = []
    if any(gap.pairs > 1 for of in gaps.values() for gap in of.values()):
        over.append("over seeds and videos" if videos else "over seeds")
    if _several(methods):
        over.append("in the last row over methods")
    note = f"; 95 % t-interval {', '.join(over)}; * where it excludes 0" if over else ""
    return [Table(title + note, ["method", *header], rows, set())]


_FIRST = ["data", "method", "arm", "variant", "seed"]
_LAST = ["epochs", "steps", "images", "seconds", "images_per_second", "total_seconds", "memory_mib"]
_LAST += ["gpu_memory_mib", "device", "threads", "fingerprint", "hash"]


def results_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """One row for each run, sorted, with accuracies in full precision."""
    metrics = list(metric_names(results))
    text = io.StringIO()
    columns = [*_FIRST, *metrics, *_LAST]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    rows = [{**r, **r["metrics"], "variant": " ".join(r["variant"])} for r in results]
    writer.writerows(sorted(rows, key=lambda row: [str(row[key]) for key in _FIRST]))
    return text.getvalue()
