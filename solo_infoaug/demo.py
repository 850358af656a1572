"""`solo-infoaug demo`: from real video to three backbones and a report, on two CPU cores.

Twins are mined from the first part of each sample clip's shots; the rest of the shots is held out
and asks whether a backbone finds the same patch again at a later moment.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.evaluation import (
    Backbone,
    build_backbone,
    digits,
    extract_features,
    knn_accuracy,
    linear_accuracy,
    load_backbone,
    reidentification_recall,
)
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.mining.export import export_patches
from solo_infoaug.mining.samples import sample_clips
from solo_infoaug.paths import config_folder
from solo_infoaug.training import load_config, pretrain

HELD_OUT = 0.3
"""The last part of each shot, which mining does not see."""

ARMS: dict[str, Any] = {
    "baseline": False,
    "random twins": {"arm": "random"},
    "InfoAug": {"arm": "mi"},
}


@dataclass
class ArmResult:
    """One row of the demo's table. Accuracies and recall in per cent, time in seconds."""

    name: str
    digits_knn: float
    digits_linear: float
    reidentification: float
    seconds: float = 0.0
    checkpoint: str | None = None
    metrics_csv: str | None = None


@dataclass
class DemoResult:
    """All that the report shows; `results.json` holds it."""

    videos: list[str]
    patches: int
    patches_with_twin: int
    held_out_patches: int
    reidentification_chance: float
    steps: int
    batch_size: int
    arms: list[ArmResult] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate_backbone(name: str, backbone: Backbone, held_out: TwinDictionary) -> ArmResult:
    """Digits by k-NN and probe, and re-identification of the held-out patches.

    Args:
        name: of the arm.
        backbone: trained or not.
        held_out: patches with at least two moments; the first asks, the last is searched.
    """
    train, test = digits()
    halves = [(extract_features(backbone, x), y) for x, y in (train, test)]
    first, last = (
        extract_features(backbone, held_out.pixels[:, moment].contiguous()) for moment in (0, -1)
    )
    return ArmResult(
        name=name,
        digits_knn=knn_accuracy(halves[0], halves[1]),
        digits_linear=linear_accuracy(halves[0], halves[1]),
        reidentification=reidentification_recall(first, last),
    )


def _untrained(backbone: Backbone, seed: int) -> Backbone:
    """The same backbone with the weights that training started from or ones like them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_backbone(backbone.cfg)
    return replace(backbone, module=module.eval().requires_grad_(False))


def run_demo(out: str | Path, epochs: int | None = None, seed: int = 5) -> DemoResult:
    """Mine, pretrain three times, evaluate, report.

    Args:
        out: the folder for everything that the demo makes; a finished mining in it is reused.
        epochs: of pretraining; default that of the demo's configuration.
        seed: of mining, initial weights, data order and twins; the same for all arms.

    Raises:
        VideoError: the sample clips are not installed.
    """
    from solo_infoaug.report import write_report

    # The layers are small: a second thread gains little, and waits for whatever else is running.
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        console.rule(f"[bold]{name}")
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 1)

    clips = sample_clips()
    with stage("held-out stretch"):
        # no twin is asked for here: every patch that can be followed may be found again
        later = MineConfig(
            start_fraction=1 - HELD_OUT,
            moments=2,
            patch_fraction=0.1,
            grid_step=1.0,
            camera="none",
            parallax=0,
            min_motion=0.0,
            motion_over_noise=0.0,
            max_error_ratio=1.0,
            min_support=0,
            max_difference=4.0,
            fdr=1.0,
            seed=seed,
        )
        held_out = mine(clips, folder / "held-out", later)
    with stage("mining twins"):
        twins = mine(clips, folder / "twins", MineConfig(stop_fraction=1 - HELD_OUT, seed=seed))
    with stage("patches"):
        images = folder / "patches"
        shutil.rmtree(images, ignore_errors=True)
        console.print(f"{export_patches(twins, images)} images → {images}", markup=False)

    arms: list[ArmResult] = []
    steps = batch_size = 0
    for name, infoaug in ARMS.items():
        with stage(f"pretraining: {name}"):
            overrides = [
                f"name={name.replace(' ', '-').lower()}",
                f"data.train_path={json.dumps(str(images))}",
                f"checkpoint.dir={json.dumps(str(folder / 'runs'))}",
                f"seed={seed}",
            ]
            if epochs is not None:
                overrides.append(f"max_epochs={epochs}")
            cfg = load_config(config_folder() / "demo", "simclr", overrides)
            if infoaug:
                cfg.infoaug = OmegaConf.create({**infoaug, "twins": str(folder / "twins")})
            result = pretrain(cfg)
            assert result.checkpoint is not None
            assert result.folder is not None
        steps = int(result.model._trainer.global_step)
        batch_size = int(cfg.optimizer.batch_size)
        with stage(f"evaluating: {name}"):
            backbone = load_backbone(result.checkpoint)
            if not arms:
                arms.append(evaluate_backbone("untrained", _untrained(backbone, seed), held_out))
            row = evaluate_backbone(name, backbone, held_out)
            row.seconds = seconds[f"pretraining: {name}"]
            row.checkpoint = str(result.checkpoint.relative_to(folder))
            row.metrics_csv = str((result.folder / "metrics.csv").relative_to(folder))
            arms.append(row)

    demo = DemoResult(
        videos=[clip.name for clip in clips],
        patches=len(twins),
        patches_with_twin=len(twins.anchors),
        held_out_patches=len(held_out),
        reidentification_chance=100 / len(held_out),
        steps=steps,
        batch_size=batch_size,
        arms=arms,
        seconds=seconds,
    )
    with stage("report"):
        page = write_report(demo, twins, folder)
    seconds["total"] = round(sum(seconds.values()), 1)
    (folder / "results.json").write_text(json.dumps(asdict(demo), indent=2), encoding="utf-8")
    console.print(_table(demo))
    console.print(f"Report: {page}\nTotal: {seconds['total']:.0f} s", markup=False)
    return demo


def _table(demo: DemoResult) -> Table:
    table = Table(title="Three arms, the same budget and seed (per cent)")
    for column in ("arm", "digits k-NN", "digits linear", "re-identification", "seconds"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for row in demo.arms:
        table.add_row(
            row.name,
            f"{row.digits_knn:.1f}",
            f"{row.digits_linear:.1f}",
            f"{row.reidentification:.1f}",
            f"{row.seconds:.0f}" if row.seconds else "",
        )
    table.add_row("chance", "10.0", "10.0", f"{demo.reidentification_chance:.1f}", "")
    return table
