"""Which dictionary `infoaug: true` means: one that the user chose, or none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from solo_infoaug.cache import cache_dir, last_dictionary, remember_dictionary
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.locate import choose_dictionary
from solo_infoaug.errors import DictionaryError


def _remember(folder: Path) -> None:
    remember_dictionary(folder, TwinDictionary.load(folder).fingerprint)


@pytest.fixture
def folders(tmp_path: Path, twins_folder: Path) -> dict[str, Path]:
    named = {name: tmp_path / name for name in ("key", "variable", "last")}
    for folder in named.values():
        shutil.copytree(twins_folder, folder)
    return named


def test_key_before_variable_before_last(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _remember(folders["last"])
    assert choose_dictionary().path == folders["last"].resolve()
    assert "solo-infoaug mine made it last" in choose_dictionary().rule
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", str(folders["variable"]))
    assert choose_dictionary().path == folders["variable"]
    assert choose_dictionary().rule == "SOLO_INFOAUG_TWINS"
    assert choose_dictionary(str(folders["key"])).path == folders["key"]
    assert choose_dictionary(str(folders["key"])).rule == "infoaug.twins"


def test_named_but_missing_is_an_error_and_no_fallback(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _remember(folders["last"])
    with pytest.raises(DictionaryError, match=r"infoaug\.twins: .*not there.*solo-infoaug mine"):
        choose_dictionary("nowhere")
    monkeypatch.setenv("SOLO_INFOAUG_TWINS", "nowhere")
    with pytest.raises(DictionaryError, match="SOLO_INFOAUG_TWINS"):
        choose_dictionary()


def test_relative_path_is_shown_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DictionaryError, match=f"looked for {tmp_path / 'twins'}"):
        choose_dictionary("twins")


def test_remembered_that_has_gone_is_an_error(folders: dict[str, Path]) -> None:
    _remember(folders["last"])
    shutil.rmtree(folders["last"])
    with pytest.raises(DictionaryError, match=r"last.*is gone.*infoaug\.twins=TWINS"):
        choose_dictionary()


def test_remembered_that_was_mined_over_is_an_error(folders: dict[str, Path]) -> None:
    """A program that mines into the same folder does not choose for the user."""
    _remember(folders["last"])
    choice = choose_dictionary()
    choice.check(TwinDictionary.load(folders["last"]).fingerprint)
    with pytest.raises(DictionaryError, match="not the one that solo-infoaug mine made"):
        choice.check("another fingerprint")


def test_remembered_of_another_version_is_said(folders: dict[str, Path]) -> None:
    _remember(folders["last"])
    (note,) = cache_dir().iterdir()
    note.write_text(json.dumps({**json.loads(note.read_text()), "version": "0.0.1"}))
    with pytest.warns(UserWarning, match=r"was mined by solo-infoaug 0\.0\.1"):
        choose_dictionary().check(TwinDictionary.load(folders["last"]).fingerprint)


def test_note_that_cannot_be_read_is_an_error(folders: dict[str, Path]) -> None:
    _remember(folders["last"])
    (note,) = cache_dir().iterdir()
    note.write_text("{")
    with pytest.raises(DictionaryError, match=str(note)):
        choose_dictionary()


def test_library_never_remembers(tmp_path: Path) -> None:
    """Nothing that a program mines, makes, merges or shows is trained on unless it is named."""
    from solo_infoaug.mining.pipeline import mine

    # what it would call, and no other module of the library
    assert "remember_dictionary" not in mine.__globals__
    assert last_dictionary() is None
    assert not any(os.scandir(cache_dir()))


def test_nothing_chosen_says_what_to_do() -> None:
    """Not even the sample clips are trained on unasked, though they are here."""
    with pytest.raises(DictionaryError, match=r"no twin dictionary was chosen.*infoaug\.twins="):
        choose_dictionary()
