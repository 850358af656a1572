"""The demo: terminal and page say the same, and only what was measured."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.colors import to_hex
from safetensors.torch import load_file

from solo_infoaug import MineConfig
from solo_infoaug.compare.arms import ARMS
from solo_infoaug.compare.results import read_losses
from solo_infoaug.demo import run_demo
from solo_infoaug.demo.report import (
    ArmResult,
    BackboneResult,
    DemoResult,
    ScenesResult,
    arms_table,
    backbone_text,
    draw_arms,
    draw_twin_pictures,
    scenes_text,
    twins_text,
    write_report,
)
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.mining import sample_clips

TINY_SCENES = (
    "scenes.videos=1",
    "scenes.frames=48",
    "scenes.train_stills=6",
    "scenes.labelled_stills=4",
    "scenes.test_stills=4",
    "optimizer.batch_size=16",
    "max_epochs=1",
    "hydra/launcher=basic",
)


def _scenes(infoaug: float = 89.04) -> ScenesResult:
    arms = [
        ArmResult("baseline", 7.26, 93.0),
        ArmResult("random", 25.51, 85.2),
        ArmResult("infoaug", infoaug, 95.8),
    ]
    return ScenesResult(videos=12, chance=25.0, steps=140, arms=arms)


def test_text_says_what_is_shown_and_what_not() -> None:
    _, shows, not_shown = scenes_text(_scenes())
    for number in ("89.0", "7.3", "25.5", "25.0"):
        assert number in shows
    assert "this takes the right twins" in shows
    assert "140 steps" in not_shown
    assert "12 videos that were made so" in not_shown
    # nine points above random patches are not clearly more
    assert "no gain" in scenes_text(_scenes(34.5))[1]
    assert "no gain" in scenes_text(_scenes(20.0))[1]


def test_videos_without_twins_are_named(twins_folder: Path) -> None:
    twins = TwinDictionary.load(twins_folder)
    assert "None" not in twins_text(twins)
    twins.info["failed"] = {"/a/still.mp4": "/a/still.mp4: no patch found a twin: nothing moves"}
    assert "None in still.mp4 (no patch found a twin: nothing moves)." in twins_text(twins)


def test_arms_have_their_colours_and_numbers() -> None:
    axes = draw_arms(_scenes()).axes[0]
    for (key, across, usual), bars in zip(
        [(row.arm, row.across, row.usual) for row in _scenes().arms], axes.containers, strict=False
    ):
        assert bars.get_label() == ARMS[key].label
        assert [bar.get_height() for bar in bars] == [across, usual]
        assert {to_hex(bar.get_facecolor()) for bar in bars} == {ARMS[key].colour}
    assert list(axes.lines[0].get_ydata()) == [25.0, 25.0]


def test_page_holds_its_pictures_and_begins_with_pairs(tmp_path: Path, twins_folder: Path) -> None:
    twins = TwinDictionary.load(twins_folder)
    (tmp_path / "metrics.csv").write_text(
        "step,train_nce_loss_step,twin_loss_step\n0,3.5,3.9\n1,,\n2,3.1,3.6\n"
    )
    assert read_losses(tmp_path / "metrics.csv")["twin branch"] == ([0, 2], [3.9, 3.6])
    losses = {"view branch": (3.5, 3.1), "twin branch": (3.9, 4.25)}
    demo = DemoResult(
        twins=twins_text(twins),
        videos=[("video", "twins"), ("<two>.mp4", "3")],
        scenes=_scenes(),
        backbone=BackboneResult("resnet18", "backbone.safetensors", 48, 60, "metrics.csv", losses),
        seconds={"mining": 3.25},
    )
    pictures = draw_twin_pictures(twins, tmp_path / "pictures")
    assert [file.name for file in pictures][:2] == ["pairs.png", "crops.png"]
    page = write_report(demo, pictures, twins, tmp_path).read_text(encoding="utf-8")
    assert "&lt;two&gt;.mp4" in page
    assert "twin branch 3.90 → 4.25" in page
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(sources) == len(pictures) + 3 == len(list((tmp_path / "pictures").glob("*.png")))
    assert page.index(sources[0]) < page.index("<p>") < page.index("<table")
    assert 'alt="patches and their twins"' in page[: page.index("<p>")]


@pytest.mark.slow
def test_terminal_and_page_say_the_same(
    slim_backbone: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    demo = run_demo(
        tmp_path / "demo",
        [sample_clips()[0]],
        epochs=1,
        config=MineConfig(start_fraction=0.2, stop_fraction=0.35),
        scenes=TINY_SCENES,
        overrides=["limit_train_batches=2", "++enable_progress_bar=false"],
    )
    printed = capsys.readouterr().out
    page = unescape((tmp_path / "demo" / "report.html").read_text(encoding="utf-8"))
    header, rows, _ = arms_table(demo.scenes)
    assert header[0] == "arm"
    for row in [*rows, *demo.videos]:
        assert any(all(cell in line for cell in row) for line in printed.splitlines())
        assert re.search(r"\s*".join(rf"<t[dh]>{re.escape(cell)}</t[dh]>" for cell in row), page), (
            row
        )
    for text in (demo.twins, *scenes_text(demo.scenes), backbone_text(demo.backbone)):
        assert text in printed
        assert text in page

    # the numbers are those of the comparison's own results
    runs = [
        json.loads(f.read_text()) for f in (tmp_path / "demo").glob("scenes/runs/*/result.json")
    ]
    measured: dict[str, Any] = {run["arm"]: run["metrics"] for run in runs}
    assert set(measured) == {"baseline", "random", "infoaug"}
    for arm in demo.scenes.arms:
        assert arm.across == measured[arm.arm]["linear_across"]
        assert arm.usual == measured[arm.arm]["linear"]

    (checkpoint,) = (tmp_path / "demo" / "runs").rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    exported = load_file(tmp_path / "demo" / "backbone.safetensors")
    trained = next(value for name, value in state.items() if name.endswith("layer4.1.conv2.weight"))
    assert torch.equal(exported["layer4.1.conv2.weight"], trained)
    assert demo.backbone.steps == 2
