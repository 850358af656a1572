"""The demo's report: self-contained, and it says what was measured."""

from __future__ import annotations

import re
from pathlib import Path

from solo_infoaug.demo import ArmResult, DemoResult
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.report import write_report


def test_report_is_one_page_with_its_pictures(tmp_path: Path, twins_folder: Path) -> None:
    twins = TwinDictionary.load(twins_folder)
    (tmp_path / "metrics.csv").write_text(
        "step,train_nce_loss_step,twin_loss_step\n0,3.5,3.9\n1,,\n2,3.1,3.6\n"
    )
    arms = [
        ArmResult("untrained", 51.25, 70.5, 4.0),
        ArmResult("baseline", 61.25, 80.5, 14.0, 12.0, "a.ckpt", "metrics.csv"),
        ArmResult("InfoAug", 62.25, 81.5, 15.0, 24.0, "b.ckpt", "metrics.csv"),
    ]
    demo = DemoResult(
        videos=["one.mp4", "<two>.mp4"],
        patches=len(twins),
        patches_with_twin=len(twins.anchors),
        held_out_patches=50,
        reidentification_chance=2.0,
        steps=60,
        batch_size=32,
        arms=arms,
        seconds={"mining twins": 3.25},
    )
    page = write_report(demo, twins, tmp_path).read_text(encoding="utf-8")
    for number in ("61.2", "62.2", "81.5", "15.0", "3.2"):
        assert number in page
    assert "&lt;two&gt;.mp4" in page
    assert "No arm reaches the untrained network" not in page
    arms[0].digits_knn = 99.0
    worse = write_report(demo, twins, tmp_path).read_text(encoding="utf-8")
    assert "No arm reaches the untrained network" in worse
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) == 1 + 3 * min(len(twins.windows), 6)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == len(sources)
