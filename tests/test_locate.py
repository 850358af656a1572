"""Which dictionary `infoaug: true` means, in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from solo_infoaug.cache import cache_dir, last_dictionary, remember_dictionary
from solo_infoaug.errors import DictionaryError, VideoError
from solo_infoaug.locate import find_dictionary


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    named = {name: tmp_path / name for name in ("key", "variable", "last")}
    for folder in named.values():
        folder.mkdir()
    return named


def test_key_before_variable_before_last(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_dictionary(folders["last"])
    assert find_dictionary() == folders["last"].resolve()
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", str(folders["variable"]))
    assert find_dictionary() == folders["variable"]
    assert find_dictionary(str(folders["key"])) == folders["key"]


def test_named_but_missing_is_an_error_and_no_fallback(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_dictionary(folders["last"])
    with pytest.raises(DictionaryError, match=r"infoaug\.twins: .*not there.*solo-infoaug mine"):
        find_dictionary("nowhere")
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", "nowhere")
    with pytest.raises(DictionaryError, match="SOLO_INFOAUG_TWINS"):
        find_dictionary()


def test_last_that_has_gone_is_forgotten(folders: dict[str, Path]) -> None:
    remember_dictionary(folders["last"])
    folders["last"].rmdir()
    assert last_dictionary() is None


def test_starter_is_mined_once_with_a_warning(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from solo_infoaug import mining

    calls = []

    def mine(clips: list[Path], out: Path, config: object) -> None:
        calls.append(list(clips))
        out.mkdir(exist_ok=True)

    monkeypatch.setattr(mining, "mine", mine)
    with pytest.warns(UserWarning, match="Mine your own: solo-infoaug mine"):
        assert find_dictionary() == cache_dir() / "starter"
    assert len(calls[0]) == 3


def test_nothing_at_all_names_two_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_infoaug.mining import samples

    def none() -> list[Path]:
        raise VideoError("no clips")

    monkeypatch.setattr(samples, "sample_clips", none)
    with pytest.raises(DictionaryError, match=r"solo-infoaug mine .*pip install"):
        find_dictionary()
