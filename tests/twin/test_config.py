"""`infoaug:` in a configuration: what is refused, what is said, what is written back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError, DictionaryError
from solo_infoaug.twin.config import InfoAugConfig, from_former_keys, read_infoaug, to_former_keys


@pytest.mark.parametrize(
    ("infoaug", "message"),
    [
        ({"wieght": 1.0}, "infoaug.wieght.*did you mean weight"),
        ({"positives": "best"}, "infoaug.positives.*twins, random, random_with_twin, self.*best"),
        ({"weight": -1}, "infoaug.weight.*≥ 0.*-1"),
        ({"weight": "heavy"}, "infoaug.weight"),
        ({"batch_size": 0}, "infoaug.batch_size"),
        ({"top_k": 0}, "infoaug.top_k"),
        ("yes please", "infoaug: expected true, false or a mapping"),
    ],
)
def test_bad_settings_are_named(
    host: Any, make_cfg: Callable[..., Any], infoaug: Any, message: str
) -> None:
    cfg = host.parse_cfg(make_cfg("simclr", infoaug))
    with pytest.raises(ConfigError, match=message):
        host.methods["simclr"](cfg)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"positives": "best"}, "infoaug.positives"),
        ({"weight": "heavy"}, "infoaug.weight"),
        ({"weight": float("nan")}, "infoaug.weight"),
        ({"batch_size": 2.5}, "infoaug.batch_size"),
        ({"top_k": True}, "infoaug.top_k"),
        ({"temporal": "yes"}, "infoaug.temporal"),
        ({"temporal": 0}, "infoaug.temporal: expected true, false or a number of seconds > 0"),
        (
            {"without_twin_share": 1},
            r"infoaug.without_twin_share: expected a number in \[0, 1\), got 1",
        ),
        ({"twins": 3}, "infoaug.twins"),
        ({"augmentations": []}, "infoaug.augmentations"),
        ({"objective": "jensen"}, "infoaug.objective"),
        ({"random_share": 1.5}, r"infoaug.random_share: expected a number in \[0, 1\], got 1.5"),
        ({"distinct_windows": 1}, r"infoaug.distinct_windows: expected true or false, got 1"),
        ({"min_distance": -1}, r"infoaug.min_distance: expected a finite number ≥ 0, got -1"),
    ],
)
def test_settings_are_checked_where_they_are_made(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InfoAugConfig(**setting)


@pytest.mark.parametrize(
    ("infoaug", "message"),
    [
        (
            {"arm": "random_anchor"},
            "infoaug.arm: this key is now infoaug.positives, with the values twins (was mi), "
            "random, random_with_twin (was random_anchor), self; write infoaug.positives: "
            "random_with_twin",
        ),
        (
            {"others": 0.5},
            "infoaug.others: this key is now infoaug.without_twin_share; write "
            "infoaug.without_twin_share: 0.5",
        ),
    ],
)
def test_former_keys_are_answered_with_todays(infoaug: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_infoaug(OmegaConf.create({"infoaug": infoaug}))
    assert str(caught.value) == message


def test_former_keys_and_todays_say_the_same() -> None:
    for former, today in (
        ("mi", "twins"),
        ("random", "random"),
        ("random_anchor", "random_with_twin"),
        ("self", "self"),
    ):
        before = {"weight": 2.0, "arm": former, "others": 0.25}
        after = {"weight": 2.0, "positives": today, "without_twin_share": 0.25}
        assert from_former_keys(before) == after == from_former_keys(after)
        assert to_former_keys(after) == before
    assert to_former_keys({"weight": 2.0}) == {"weight": 2.0}


@pytest.mark.parametrize(
    ("infoaug", "error", "message"),
    [
        ({"top_k": 2}, ConfigError, "infoaug.top_k: expected at most 1"),
        ({"temporal": True}, ConfigError, "infoaug.temporal: .* one moment"),
        ({"temporal": 2}, ConfigError, "infoaug.temporal: no patch .* is linked .* got 2 seconds"),
        (
            {"without_twin_share": 0.5},
            ConfigError,
            "infoaug.without_twin_share: .* no patch without a twin",
        ),
        ({"min_distance": 2}, DictionaryError, "no patch has a twin at a min_distance of 2"),
        ({}, DictionaryError, "no patch in .* has a twin"),
    ],
)
def test_what_the_dictionary_cannot_give_is_refused(
    host: Any,
    make_cfg: Callable[..., Any],
    tmp_path: Path,
    infoaug: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    pixels = torch.zeros(4, 1, 3, 16, 16, dtype=torch.uint8)
    twins = torch.tensor([[1], [0], [3], [2]]) if infoaug else torch.full((4, 1), -1)
    TwinDictionary.create(tmp_path / "twins", pixels, twins, torch.ones(4, 1))
    cfg = host.parse_cfg(make_cfg("simclr", {"twins": str(tmp_path / "twins"), **infoaug}))
    with pytest.raises(error, match=message):
        host.methods["simclr"](cfg)


def test_missing_dictionary_is_an_error_before_training(
    host: Any, make_cfg: Callable[..., Any], tmp_path: Path
) -> None:
    cfg = host.parse_cfg(make_cfg("simclr", {"twins": str(tmp_path / "none")}))
    with pytest.raises(DictionaryError, match=r"infoaug.twins.*solo-infoaug mine"):
        host.methods["simclr"](cfg)


def test_risks_are_said_once_each(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path, steps: type
) -> None:
    def warned(method: str, **overrides: Any) -> list[str]:
        twins = {"twins": str(twins_folder), "batch_size": overrides.pop("pairs", 8)}
        cfg = make_cfg(method, twins, **overrides)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steps(host.methods[method](host.parse_cfg(cfg)), cfg).start()
        return [str(w.message).partition(":")[0] for w in caught if "infoaug" in str(w.message)]

    assert warned("simclr") == []
    assert warned("simclr", pairs=32) == ["infoaug.batch_size"]
    assert warned("simclr", **{"augmentations.0.crop_size": 64}) == ["infoaug.twins"]


def test_queue_longer_than_the_dictionary_is_said(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path, steps: type
) -> None:
    cfg = make_cfg("mocov2plus", {"twins": str(twins_folder)})
    run = steps(host.methods["mocov2plus"](host.parse_cfg(cfg)), cfg)
    with pytest.warns(UserWarning, match=r"queue of 32 and 8 pairs a step, but 24 patches"):
        run.start()


def test_configuration_says_which_dictionary_by_what_rule(
    host: Any,
    make_cfg: Callable[..., Any],
    twins_folder: Path,
    steps: type,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", str(twins_folder))
    cfg = host.parse_cfg(make_cfg("simclr", True))
    steps(host.methods["simclr"](cfg), cfg).start()
    assert cfg.infoaug.chosen_by == "SOLO_INFOAUG_TWINS"
    assert cfg.infoaug.videos == ["patches"]
    assert cfg.infoaug.written in (said := capsys.readouterr().out)
    assert f"24 patches with a twin in {twins_folder} (SOLO_INFOAUG_TWINS; written" in said
    # a saved configuration is read again, and still says it
    again = host.methods["simclr"](cfg)
    assert again.infoaug.chosen_by == "SOLO_INFOAUG_TWINS"


def test_settings_are_written_back_for_args_json(
    host: Any, make_cfg: Callable[..., Any], twins_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", str(twins_folder))
    cfg = host.parse_cfg(make_cfg("simclr", True))
    host.methods["simclr"](cfg)
    assert cfg.infoaug.fingerprint == TwinDictionary.load(twins_folder).fingerprint
    assert cfg.infoaug.twins == str(twins_folder)
    assert cfg.infoaug.batch_size == 8
    off = host.parse_cfg(make_cfg("simclr", False))
    host.methods["simclr"](off)
    assert OmegaConf.select(off, "infoaug") is None
