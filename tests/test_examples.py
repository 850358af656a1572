"""The examples run, and what they show is so."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from solo_infoaug import MineConfig
from solo_infoaug.mining import sample_clips

EXAMPLES = Path(__file__).parent.parent / "examples"


def _main(name: str) -> Callable[..., Any]:
    main: Callable[..., Any] = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    return main


def test_every_example_is_listed_and_run_here() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"plain_pytorch", "new_method", "time_series", "video_to_timm"}
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"({name}.py)" in readme for name in names)


def test_time_series() -> None:
    mi, p_value = _main("time_series")()
    assert mi[0, 1] == pytest.approx(0.511, abs=0.1)
    others = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert all(abs(float(mi[i, j])) < 0.1 for i, j in others)
    assert p_value[0, 1] == pytest.approx(1 / 200)


def test_plain_pytorch() -> None:
    losses = _main("plain_pytorch")(steps=15)
    assert sum(losses[-5:]) < sum(losses[:5])


def test_video_to_timm(host: Any, tmp_path: Path) -> None:
    settings = MineConfig(start_fraction=0.2, stop_fraction=0.35)
    fast = ("max_epochs=1", "limit_train_batches=2", "++enable_progress_bar=false")
    model = _main("video_to_timm")(sample_clips()[0], tmp_path, *fast, settings=settings)
    (checkpoint,) = (tmp_path / "runs").rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    trained = next(value for name, value in state.items() if name.endswith("layer4.1.conv2.weight"))
    assert torch.equal(model.get_parameter("layer4.1.conv2.weight"), trained)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 512)


def test_new_method(image_folder: Path, twins_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, for it adds to solo-learn's methods."""
    done = subprocess.run(
        [
            sys.executable,
            str(EXAMPLES / "new_method.py"),
            str(twins_folder),
            str(image_folder),
            "optimizer.batch_size=8",
            "max_epochs=1",
            "checkpoint.enabled=false",
            "augmentations.0.crop_size=16",
            "++enable_progress_bar=false",
        ],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.splitlines()[-1]
    for branch in ("train", "twin"):
        assert f"'{branch}_align_uniform_loss" in printed
