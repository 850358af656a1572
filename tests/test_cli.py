"""The command line as a user meets it: bad input ends in one clear message and a non-zero code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from solo_infoaug.cli import app
from solo_infoaug.errors import InfoAugError


def _command(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and message, as `main()` gives them."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, InfoAugError):
        return 1, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def configs(tmp_path: Path, image_folder: Path) -> Path:
    """A folder with a small solo-learn configuration."""
    from solo_infoaug.paths import config_folder

    folder = tmp_path / "configs"
    folder.mkdir()
    text = (config_folder() / "demo" / "simclr.yaml").read_text()
    (folder / "small.yaml").write_text(
        text.replace("train_path: ???", f"train_path: {image_folder}")
    )
    return folder


def _pretrain(configs: Path, *overrides: str) -> tuple[int, str]:
    return _command("pretrain", "--config-path", configs, "--config-name", "small", *overrides)


def test_no_such_video(tmp_path: Path) -> None:
    code, message = _command("mine", tmp_path / "none.mp4", "-o", tmp_path / "twins")
    assert code != 0
    assert "none.mp4" in message


def test_folder_without_videos(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, message = _command("mine", tmp_path / "empty", "-o", tmp_path / "twins")
    assert code != 0
    assert "empty" in message


def test_text_named_mp4(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video")
    code, message = _command("mine", tmp_path / "text.mp4", "-o", tmp_path / "twins")
    assert code != 0
    assert "text.mp4" in message


def test_k_not_smaller_than_the_tracks(tmp_path: Path) -> None:
    code, message = _command(
        "mine", tmp_path, "-o", tmp_path / "twins", "-s", "k=32", "-s", "min_frames=32"
    )
    assert code != 0
    assert "k" in message
    assert "32" in message


@pytest.mark.parametrize("damage", ["missing", "truncated", "newer", "no json"])
def test_damaged_dictionary(configs: Path, tmp_path: Path, twins_folder: Path, damage: str) -> None:
    import shutil

    folder = tmp_path / "twins"
    if damage != "missing":
        shutil.copytree(twins_folder, folder)
        (manifest,) = folder.glob("*.json")
        if damage == "truncated":
            index = next(folder.rglob("index.safetensors"))
            index.write_bytes(index.read_bytes()[:-40])
        elif damage == "newer":
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 999}))
        else:
            manifest.write_text("{")
    code, message = _pretrain(configs, f"++infoaug.twins={folder}")
    assert code == 1
    assert "twins" in message


def test_typo_in_infoaug(configs: Path) -> None:
    code, message = _pretrain(configs, "++infoaug.wieght=1")
    assert code == 1
    assert "did you mean weight?" in message


def test_queue_that_cannot_hold_twin_batches(configs: Path, twins_folder: Path) -> None:
    code, message = _pretrain(
        configs,
        f"++infoaug.twins={twins_folder}",
        "++infoaug.batch_size=10",
        "method=nnclr",
        "++method_kwargs.pred_hidden_dim=16",
        "++method_kwargs.queue_size=64",
        "optimizer.batch_size=16",
    )
    assert code == 1
    assert "infoaug.batch_size: expected a divisor of method_kwargs.queue_size (64), got 10" in (
        " ".join(message.split())
    )


def test_without_any_dictionary_two_commands_are_named(
    configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from solo_infoaug.errors import VideoError
    from solo_infoaug.mining import samples

    def none() -> list[Path]:
        raise VideoError("no clips")

    monkeypatch.setattr(samples, "sample_clips", none)
    code, message = _pretrain(configs, "++infoaug=true", "optimizer.batch_size=16")
    assert code == 1
    assert "solo-infoaug mine" in message
    assert "pip install" in message


def test_main_prints_the_message_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "solo_infoaug.cli", "show", "none", "-o", "x.html"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ),
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("solo-infoaug: ")
    assert "Traceback" not in done.stderr
