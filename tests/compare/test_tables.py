"""The mathematics of the tables against values computed by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from solo_infoaug.compare.results import count_videos, draw_ablation
from solo_infoaug.compare.tables import (
    Column,
    collect,
    differences,
    mean_and_std,
    paired_difference,
    results_csv,
    tables,
)
from solo_infoaug.dictionary import TwinDictionary


def _result(
    method: str, arm: str, seed: int, linear: float, variant: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "method": method,
        "arm": arm,
        "data": "scenes",
        "seed": seed,
        "variant": list(variant),
        "metrics": {"linear": linear},
        "hash": "0",
        "fingerprint": None,
        "epochs": 1,
        "steps": 2,
        "images": 3,
        "seconds": 4.0,
        "images_per_second": 0.75,
        "total_seconds": 5.0,
        "memory_mib": 6.0,
        "gpu_memory_mib": None,
        "device": "cpu",
        "threads": 1,
    }


RESULTS = [
    *(_result("simclr", "baseline", s, v) for s, v in enumerate((50.0, 52.0, 54.0))),
    *(_result("simclr", "random", s, v) for s, v in enumerate((50.0, 50.0, 50.0))),
    *(_result("simclr", "infoaug", s, v) for s, v in enumerate((55.0, 58.0, 58.0))),
    *(_result("byol", "baseline", s, v) for s, v in enumerate((60.0, 62.0, 61.0))),
    *(_result("byol", "infoaug", s, v) for s, v in enumerate((60.0, 61.0, 62.0))),
]


def test_mean_and_sample_deviation() -> None:
    assert mean_and_std([50.0, 52.0, 54.0]) == pytest.approx((52.0, 2.0))
    mean, std = mean_and_std([7.0])
    assert mean == 7.0
    assert math.isnan(std)


def test_paired_interval_by_hand() -> None:
    # differences 5, 6, 4: mean 5, s = 1, t(0.975, 2) = 4.302653
    found = paired_difference({0: 55, 1: 58, 2: 58}, {0: 50, 1: 52, 2: 54})
    assert found is not None
    assert found.mean == pytest.approx(5.0)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.significant
    assert str(found) == "+5.0 [+2.5, +7.5]"


def test_only_common_seeds_are_paired() -> None:
    # of seeds 1 and 2: differences 1 and 3, mean 2, s = √2, t(0.975, 1) = 12.706205
    found = paired_difference({0: 99, 1: 2, 2: 5}, {1: 1, 2: 2, 3: 99})
    assert found is not None
    assert (found.mean, found.pairs) == (pytest.approx(2.0), 2)
    assert found.half_width == pytest.approx(12.706205, rel=1e-6)
    assert not found.significant
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    single = paired_difference({0: 3.0}, {0: 1.0})
    assert single is not None
    assert str(single) == "+2.0"
    assert not single.significant


def test_best_of_each_row_is_bold_and_differences_are_starred() -> None:
    accuracies, paired = tables(RESULTS)
    assert accuracies.header == ["method", "baseline, same steps", "random patch", "InfoAug"]
    text = accuracies.markdown()
    assert "| simclr | 52.0 ± 2.0 | 50.0 ± 0.0 | **57.0 ± 1.7** |" in text
    # a tie is shown as one
    assert "| byol | **61.0 ± 1.0** |  | **61.0 ± 1.0** |" in text
    assert r"simclr & 52.0 $\pm$ 2.0 & 50.0 $\pm$ 0.0 & \textbf{57.0 $\pm$ 1.7} \\" in (
        accuracies.latex()
    )
    assert paired.rows[0] == ["simclr", "+5.0 [+2.5, +7.5]*", "+7.0 [+2.7, +11.3]*"]
    # differences 0, −1, 1
    assert paired.rows[1] == ["byol", "+0.0 [-2.5, +2.5]", ""]
    # over the methods: 5 and 0, mean 2.5, s / √2 = 2.5, t(0.975, 1) = 12.706205
    assert paired.rows[2] == ["mean over methods", "+2.5 [-29.3, +34.3]", ""]
    assert [row[0] for row in accuracies.rows] == ["simclr", "byol"]


def test_the_last_row_is_the_mean_over_methods_with_its_interval() -> None:
    """With one seed, the only interval that there is."""
    values = {"simclr": (50.0, 51.0), "byol": (60.0, 62.0), "vicreg": (40.0, 43.0)}
    accuracies, paired = tables(
        [
            _result(method, arm, 0, value)
            for method, pair in values.items()
            for arm, value in zip(("baseline", "infoaug"), pair, strict=True)
        ]
    )
    assert accuracies.rows[-1] == ["mean over methods", "50.0", "52.0"]
    assert (3, 2) not in accuracies.best
    # differences 1, 2, 3: s = 1, t(0.975, 2) / √3 = 2.484138
    assert [row[1] for row in paired.rows] == ["+1.0", "+2.0", "+3.0", "+2.0 [-0.5, +4.5]"]
    assert paired.title.endswith(
        "; 95 % t-interval in the last row over methods; * where it excludes 0"
    )
    (_, alone) = tables([_result("byol", arm, 0, 1.0) for arm in ("baseline", "infoaug")])
    assert [row[0] for row in alone.rows] == ["byol"]
    assert "interval" not in alone.title
    both = [_result(m, "infoaug", 0, 1.0) for m in ("byol", "byol+fmicl=js")]
    assert [row[0] for row in tables(both)[0].rows] == ["byol", "byol+fmicl=js"]


def test_videos_are_paired_by_seed_and_video_and_untrained_models_are_rows() -> None:
    def result(arm: str, seed: int, one: float, two: float) -> dict[str, Any]:
        of = {"seen_auc": {"one": one, "two": two}}
        return {
            **_result("byol", arm, seed, 0.0),
            "metrics": {"seen_auc": (one + two) / 2},
            "sequences": of,
            "references": {"mean colour": {"seen_auc": 40.0}},
        }

    accuracies, paired = tables(
        [
            result("baseline", 0, 50.0, 90.0),
            result("baseline", 1, 60.0, 80.0),
            result("infoaug", 0, 51.0, 92.0),
            result("infoaug", 1, 63.0, 84.0),
        ]
    )
    assert accuracies.rows == [
        ["byol", "70.0 ± 0.0", "72.5 ± 1.4"],
        ["mean colour", "40.0 ± 0.0", ""],
    ]
    # differences 1, 2, 3, 4: mean 2.5, s = 1.290994, t(0.975, 3) = 3.182446
    half = 3.182446 * 1.290994 / 2
    assert paired.rows == [["byol", f"+2.5 [+{2.5 - half:.1f}, +{2.5 + half:.1f}]*"]]
    assert "seeds and videos" in paired.title


def test_untrained_models_have_a_row_for_each_value_that_changes_them() -> None:
    def table(untrained: dict[str, float]) -> list[list[str]]:
        return tables(
            [
                {
                    **_result("byol", "baseline", 0, 50.0, (override,)),
                    "references": {"untrained network": {"linear": value}},
                }
                for override, value in untrained.items()
            ]
        )[0].rows[1:]

    assert table({"evaluate.k=20": 30.0, "evaluate.k=200": 10.0}) == [
        ["untrained network, evaluate.k=20", "30.0", ""],
        ["untrained network, evaluate.k=200", "10.0", ""],
    ]
    assert table({"optimizer.lr=1": 30.0, "optimizer.lr=2": 30.0}) == [
        ["untrained network", "30.0", ""]
    ]


def test_metrics_of_further_data_sets_follow_with_readable_names() -> None:
    more = {"linear_cifar100": 7.0, "knn_flowers": 8.0, "online": 9.0, "speed": 1.0}
    results = [
        {**_result("byol", "baseline", 0, 1.0), "metrics": {"online": 9.0, "linear": 1.0}},
        {**_result("byol", "infoaug", 0, 1.0), "metrics": {**more, "linear": 1.0}},
    ]
    titles = [table.title for table in tables(results) if "differences" not in table.title]
    assert titles == [
        "scenes: linear probe (per cent)",
        "scenes: CIFAR-100, linear probe (per cent)",
        "scenes: flowers, k-NN (per cent)",
        "scenes: speed (per cent)",
        "scenes: online accuracy (per cent)",
    ]
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert [row["linear_cifar100"] for row in rows] == ["", "7.0"]


def test_latex_escapes_names() -> None:
    (accuracies,) = tables([_result("barlow_twins", "infoaug", 0, 1.0)])
    assert r"barlow\_twins & \textbf{1.0} \\" in accuracies.latex()


def test_swept_columns_are_compared_with_the_baseline_without_them() -> None:
    weights = [
        _result("simclr", "infoaug", seed, 52.0 + 10 * weight, (f"infoaug.weight={weight}",))
        for seed in (0, 1)
        for weight in (0.1, 1)
    ]
    same = [_result("simclr", "random", s, 51.0, ("infoaug.weight=1",)) for s in (0, 1)]
    values = collect([*RESULTS[:3], *weights, *same], "scenes", "linear")
    found = differences(values, "simclr", Column("infoaug", ("infoaug.weight=1",)))
    assert found["baseline"].mean == pytest.approx(62 - 51)
    assert found["random"].mean == pytest.approx(62 - 51)
    low = differences(values, "simclr", Column("infoaug", ("infoaug.weight=0.1",)))
    assert set(low) == {"baseline"}
    labels = [column.label for _, column in values]
    assert "InfoAug, weight=0.1" in labels


def test_a_swept_dictionary_is_compared_with_the_same_one_where_the_baseline_has_it() -> None:
    two, four = ("infoaug.twins=two",), ("infoaug.twins=four",)
    results = [
        *(_result("simclr", "baseline", s, 50.0, two) for s in (0, 1)),
        *(_result("simclr", "baseline", s, 54.0, four) for s in (0, 1)),
        *(_result("simclr", "infoaug", s, 57.0, four) for s in (0, 1)),
        *(_result("byol", "baseline", s, 40.0) for s in (0, 1)),
        *(_result("byol", "infoaug", s, 41.0, four) for s in (0, 1)),
    ]
    values = collect(results, "scenes", "linear")
    found = {m: differences(values, m, Column("infoaug", four)) for m in ("simclr", "byol")}
    assert found["simclr"]["baseline"].mean == pytest.approx(3)
    assert found["byol"]["baseline"].mean == pytest.approx(1)


def test_accuracy_over_the_number_of_videos(tmp_path: Path) -> None:
    results = []
    for name, count in (("two words", 2), ("four", 4)):
        pixels = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
        twins = torch.tensor([[1], [0]])
        made = TwinDictionary.create(tmp_path / name, pixels, twins, torch.ones(2, 1))
        manifest = made.path / "dictionary.json"
        info = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**info, "twinless": dict.fromkeys("abcd"[1:count], "")}))
        variant = (f"infoaug.twins='{tmp_path / name}'",)
        results += [_result("simclr", arm, 0, 10.0 * count, variant) for arm in ("infoaug", "self")]
    results.append(_result("simclr", "infoaug", 0, 1.0, ("infoaug.twins=gone",)))
    videos = count_videos(results)
    assert sorted(videos.values()) == [2, 4]
    figure = draw_ablation(collect(results, "scenes", "linear"), "linear probe", videos)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xlabel() == "number of videos"
    lines = [container[0] for container in axes.containers]
    assert [list(map(float, line.get_xdata())) for line in lines] == [[2.0, 4.0]] * 2
    assert [list(map(float, line.get_ydata())) for line in lines] == [[20.0, 40.0]] * 2
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "simclr, infoaug",
        "simclr, self",
    }


def test_csv_has_a_row_a_run_whatever_the_order() -> None:
    text = results_csv(RESULTS)
    assert text == results_csv(RESULTS[::-1])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(RESULTS)
    assert {(r["method"], r["arm"], r["seed"]): float(r["linear"]) for r in rows}[
        "simclr", "infoaug", "1"
    ] == 58.0
    assert rows[0]["gpu_memory_mib"] == ""
