"""The patches for solo-learn: the command that applies them, and InfoAug through their hook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from solo_infoaug.contribute import patch_files
from solo_infoaug.patch import patched_methods

SEVEN = ["simclr", "mocov2plus", "byol", "simsiam", "barlow_twins", "vicreg", "nnclr"]


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"]
    return subprocess.run(
        ["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


# --- the hook --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def patched(solo_learn_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the current solo-learn with the series applied."""
    clone = tmp_path_factory.mktemp("upstream") / "solo-learn"
    _git(Path.cwd(), "clone", "-q", str(solo_learn_home), str(clone))
    _git(clone, "am", *map(str, patch_files()))
    return clone


Train = Callable[[Path, dict[str, DictConfig]], dict[str, Any]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Trains runs in a process of its own, on the solo-learn in a folder."""

    def run(home: Path, runs: dict[str, DictConfig]) -> dict[str, Any]:
        given, out = tmp_path / "runs.json", tmp_path / "out.json"
        given.write_text(json.dumps([[n, OmegaConf.to_container(c)] for n, c in runs.items()]))
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("hooked.py")), str(given), str(out)],
            capture_output=True,
            text=True,
            env={**os.environ, "SOLO_LEARN_HOME": str(home)},
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        results: dict[str, Any] = json.loads(out.read_text())
        return results

    return run


def _logged(step: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in step.items() if name != "total"}


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.current_host
def test_all_methods_train_through_the_hook(
    patched: Path,
    solo_learn_home: Path,
    train: Train,
    make_cfg: Callable[..., DictConfig],
    twins_folder: Path,
) -> None:
    """And the seven main ones as they do where `METHODS` is replaced, bit for bit."""
    infoaug = {"twins": str(twins_folder), "weight": 0.5}
    runs = {name: make_cfg(name, infoaug) for name in patched_methods()}
    hooked = train(patched, runs)
    assert not hooked["replaced"]
    today = train(solo_learn_home, {name: runs[name] for name in SEVEN})
    assert today["replaced"]
    for name in runs:
        steps = hooked[name]["steps"]
        assert len(steps) == 6
        assert "twin_loss" in steps[-1]
        assert any(key.startswith("twin.") for key in hooked[name]["state"])
    for name in SEVEN:
        ours, theirs = hooked[name], today[name]
        assert ours["kind"].startswith("solo.methods")
        assert [_logged(step) for step in ours["steps"]] == [
            _logged(step) for step in theirs["steps"]
        ]
        # the sum of the three losses is formed in another order, which moves its last bit alone
        for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
            assert float.fromhex(mine["total"]) == pytest.approx(
                float.fromhex(other["total"]), rel=1e-6
            )
        different = {key for key in ours["state"] if ours["state"][key] != theirs["state"][key]}
        # the momentum backbone sees the twins before the views: what its norms keep of them, and
        # training never reads
        assert all(
            key.startswith("momentum_backbone.") and "running" in key for key in different
        ), different
        assert ours["state"].keys() == theirs["state"].keys()
