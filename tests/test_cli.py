"""The command line as a user meets it: bad input ends in one clear message and a non-zero code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from formats import as_folders
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
    from solo_infoaug.resources import config_folder

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
        "mine",
        tmp_path,
        "-o",
        tmp_path / "twins",
        "-s",
        "k=32",
        "-s",
        "min_frames=32",
        "-s",
        "window=32",
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


def test_without_any_dictionary_two_commands_are_named(configs: Path) -> None:
    code, message = _pretrain(configs, "++infoaug=true", "optimizer.batch_size=16")
    assert code == 1
    assert "solo-infoaug mine" in message
    assert "pip install" in message


def test_mine_remembers_and_says_so(
    twins_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from solo_infoaug import mining
    from solo_infoaug.cache import last_dictionary
    from solo_infoaug.dictionary import TwinDictionary

    dictionary = TwinDictionary.load(twins_folder)
    dictionary.info["failed"] = {}
    monkeypatch.setattr(mining, "mine", lambda *args, **kwargs: dictionary)
    code, message = _command("mine", tmp_path, "-o", twins_folder)
    assert code == 0
    assert "`infoaug: true` without `twins` means this dictionary now" in message
    remembered = last_dictionary()
    assert remembered is not None
    assert remembered.path == str(twins_folder.resolve())
    assert remembered.fingerprint == dictionary.fingerprint
    # what was mined is there, whether it can be noted or not
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOLO_INFOAUG_CACHE", str(tmp_path / "file" / "cache"))
    code, message = _command("mine", tmp_path, "-o", twins_folder)
    assert code == 0
    assert f"infoaug.twins={dictionary.path}" in message


def test_arguments_of_mine_are_videos_or_settings(
    tmp_path: Path, twins_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from solo_infoaug import mining
    from solo_infoaug.dictionary import TwinDictionary

    dictionary = TwinDictionary.load(twins_folder)
    dictionary.info["failed"] = {}
    calls = []
    monkeypatch.setattr(
        mining,
        "mine",
        lambda videos, out, config, **_: calls.append((videos, config)) or dictionary,
    )
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "date=2020", "k=4"):
        Path(name).touch()
    Path("mine.yaml").write_text("window: 32\nstride: 20\ngate: {max_drift: 0.1}\n")
    videos = ["clip.mp4", "date=2020", "./k=4", "s3://bucket/k=4", "a/k=4"]
    code, message = _command(
        "mine", *videos, "gate.max_drift=0.2", "-o", "out", "top_k=3",
        *("--settings", "mine.yaml", "-s", "k=4", "-s", "window=48"),
    )  # fmt: skip
    assert code == 0, message
    config = mining.MineConfig(max_drift=0.2, top_k=3, k=4, window=48, stride=20)
    assert calls == [(videos, config)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["k=4"], r"^k=4: is a setting and also a file here; write \./k=4 for the file, -s k=4 "),
        (["clip.mp4", "windw=4"], r"^windw=4: neither a setting .* nor a file here.*mean window\?"),
        (["clip.mp4", "gate.max_drfit=.2"], r"^gate.max_drfit=.2: .*; did you mean max_drift\?$"),
        (["clip.mp4", "date=2020"], r"^date=2020: .*; write \./date=2020 for a pattern of files$"),
        (["clip.mp4", "others=4"], "^others: is now called extra_patches"),
        (["clip.mp4", "fdr=high"], "^fdr: expected float, got 'high'"),
        (["fdr=0.1"], "^videos: expected at least one video or folder, got settings alone"),
    ],
)
def test_arguments_of_mine_that_are_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "k=4"):
        Path(name).touch()
    code, said = _command("mine", *arguments, "-o", "out")
    assert code == 1
    assert re.search(message, said), said


@pytest.mark.parametrize(
    "command",
    [
        ("show", "TWINS", "-o", "OUT/x.html"),
        ("show", "TWINS", "-o", "OUT/x.png"),
        ("patches", "TWINS", "-o", "OUT/patches"),
        ("merge", "TWINS", "-o", "OUT/merged"),
        ("filter", "TWINS", "-o", "OUT/filtered"),
        ("split", "TWINS", "-o", "OUT/split", "--by", "shot"),
        ("mine", "TWINS/dictionary.json", "-o", "OUT/mined", "--overwrite"),
        ("demo", "--out", "OUT/demo"),
        ("compare", "out=OUT/compare", "methods=simclr"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("out", ["file", "system"])
def test_outputs_that_cannot_be_written_are_named(
    command: tuple[str, ...], out: str, twins_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" if out == "file" else Path("/proc")
    if not place.exists():
        pytest.skip("no /proc here")
    code, message = _command(
        *(part.replace("TWINS", str(twins_folder)).replace("OUT", str(place)) for part in command)
    )
    assert code == 1
    assert f"out: {place}" in message
    assert "cannot be written" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_demo_takes_videos_of_ones_own(tmp_path: Path) -> None:
    code, message = _command("demo", tmp_path / "mine.mp4", "--out", tmp_path / "demo")
    assert code == 1
    assert str(tmp_path / "mine.mp4") in message
    assert not (tmp_path / "demo" / "scenes").exists()


def test_file_that_is_a_folder(twins_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    code, message = _command("show", twins_folder, "-o", tmp_path / "x.png")
    assert code == 1
    assert "x.png, which is a folder" in message
    assert not any((tmp_path / "x.png").iterdir())


def test_failed_merge_leaves_nothing(twins_folder: Path, tmp_path: Path) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(twins_folder, damaged)
    next(as_folders(damaged).rglob("0000.jpg")).write_bytes(b"")
    code, message = _command("filter", damaged, "-o", tmp_path / "out")
    assert code == 1
    assert "0000.jpg" in message
    assert not any((tmp_path / "out" / name).exists() for name in ("parts", "packs"))


def test_video_option_is_for_movies(twins_folder: Path, tmp_path: Path) -> None:
    code, message = _command(
        "show", twins_folder, "-o", tmp_path / "x.html", "--video", twins_folder
    )
    assert code == 1
    assert "--video" in message


def test_override_with_an_equals_sign_is_named_and_quoted(configs: Path) -> None:
    path = "runs/demo-ab12cd34-ep=0.ckpt"
    code, message = _pretrain(configs, f"+resume_from_checkpoint={path}")
    assert code == 1
    assert "override '+resume_from_checkpoint=" in message
    assert f"""'+resume_from_checkpoint="{path}"'""" in message
    # and what it advises works: the file is looked for
    code, message = _pretrain(configs, f'+resume_from_checkpoint="{path}"')
    assert code == 1
    assert f"resume_from_checkpoint: expected a .ckpt file, got {path}" in message


def test_grid_is_checked_before_its_data_is_made(tmp_path: Path) -> None:
    out = tmp_path / "grid"
    for wrong in ("infoaug.wieght=1", "optimizer.lr=abc", "keep_checkpoints=perhaps"):
        code, message = _command("compare", f"out={out}", "methods=simclr", f"++{wrong}")
        assert code == 1
        assert wrong.partition("=")[0] in message
        assert not (out / "data").exists()


@pytest.mark.parametrize(
    ("variable", "value", "row"),
    [
        ("SOLO_INFOAUG_TWINS", "nowhere", "twin dictionary"),
        ("SOLO_INFOAUG_TWINS", "", "twin dictionary"),
        ("SOLO_INFOAUG_CACHE", "file/cache", "cache"),
    ],
)
def test_doctor_says_ok_only_of_what_it_opened(
    variable: str, value: str, row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / value))
    _, message = _command("doctor")
    (line,) = (line for line in message.splitlines() if line[3:].startswith(row))
    assert not line.startswith("ok")


def test_doctor_describes_the_dictionary(
    twins_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", str(twins_folder))
    code, message = _command("doctor")
    assert code == 0
    assert "24 with a twin" in message


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


def test_names_that_are_not_text_and_look_like_markup(tmp_path: Path) -> None:
    import torch

    from solo_infoaug.dictionary import TwinDictionary

    folder = tmp_path / "[/red]"
    name = os.fsdecode(b"[/red]$\\frac$\xff.mp4")
    pixels = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    TwinDictionary.create(folder, pixels, torch.tensor([[1], [0]]), torch.ones(2, 1), name=name)
    for out in ("x.html", "x.png", "x.mp4"):
        code, message = _command("show", folder, "-o", tmp_path / out)
        assert (code, message) == (0, f"wrote {tmp_path / out}\n")
    code, message = _command("patches", folder, "-o", tmp_path / "patches")
    assert code == 0, message
    strange = os.fsdecode(bytes(tmp_path) + b"/\xff")
    code, message = _command("merge", folder, "-o", strange)
    assert code == 1
    assert "is not UTF-8" in message
    # the message itself can be printed
    done = subprocess.run(
        [sys.executable, "-m", "solo_infoaug.cli", "info", strange],
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"solo-infoaug: the dictionary: ")
    assert b"Traceback" not in done.stderr


def test_what_a_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from solo_infoaug.cli import main

    for command in (["info", "n" * 300], ["mine", "n" * 300, "-o", "x"], ["evaluate", "n" * 300]):
        monkeypatch.setattr(sys, "argv", ["solo-infoaug", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        assert "File name too long; make room, or choose another place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (["--data", "davis", "--path", "x", "--k", "7"], "--k"),
        (["--data", "davis", "--path", "x", "--train-path", "y"], "--train-path"),
        (["--data", "digits", "--stride", "16"], "--stride"),
        (["--data", "digits", "--path", "x"], "--path"),
    ],
)
def test_options_of_another_evaluation_are_refused(options: list[str], option: str) -> None:
    code, message = _command("evaluate", "none.ckpt", *options)
    assert code == 1
    assert message.startswith(f"{option}: expected none with --data {options[1]}")
