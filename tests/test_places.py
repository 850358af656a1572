"""Without a home, a cache or a folder for compiled code, commands work or say what is missing."""

from __future__ import annotations

from pathlib import Path

import numba
import platformdirs
import pytest

from solo_infoaug._compile import compiled, let_others_compile
from solo_infoaug._files import expanded
from solo_infoaug.cache import cache_dir, last_dictionary, remember_dictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.training.config import parse_overrides, quoted


def _nowhere(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def user_cache_dir(name: str) -> str:
        if how == "an error":
            raise RuntimeError("could not determine the home directory")
        return f"~/.cache/{name}"

    monkeypatch.delenv("SOLO_INFOAUG_CACHE", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_dir", user_cache_dir)


@pytest.mark.parametrize("how", ["an error", "a name as it was"])
def test_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    _nowhere(monkeypatch, how)
    monkeypatch.chdir(tmp_path)
    assert last_dictionary() is None
    for call in (cache_dir, lambda: remember_dictionary(tmp_path, "0")):
        with pytest.raises(OSError, match="no home directory; set SOLO_INFOAUG_CACHE"):
            call()
    assert not list(tmp_path.iterdir())  # no folder called ~


def test_a_user_that_nobody_knows_is_a_name_like_any_other() -> None:
    assert expanded("~nobody-has-this-name/twins") == Path("~nobody-has-this-name/twins")
    assert expanded("~/twins") == Path.home() / "twins"


def test_what_cannot_be_kept_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    for locators in ("", "ZipCacheLocator"):  # the second finds no place for a file of ours
        monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", locators)
        function = compiled(fastmath=True)(_square)
        assert function(3.0) == 9.0


def _square(x):
    return x * x


def test_a_full_disk_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import FunctionCache

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FunctionCache, "save_overload", full)
    assert compiled()(_cube)(2.0) == 8.0


def _cube(x):
    return x * x * x


def test_packages_that_insist_on_a_cache_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    let_others_compile("no_such_package")
    let_others_compile("json")
    import os

    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "ZipCacheLocator")
    monkeypatch.setattr(numba.config, "reload_config", lambda: None)
    let_others_compile("json")
    folder = os.environ["NUMBA_CACHE_DIR"]
    assert Path(folder).is_dir()
    monkeypatch.delenv("NUMBA_CACHE_DIR")


@pytest.mark.parametrize(
    "name", ["a b", "a\\b", 'a"b', "a'b", 'a\\"b', "a\\", "[1],{y}=z:w", "a#%$"]
)
def test_any_path_can_be_an_override(name: str) -> None:
    assert parse_overrides([f"key={quoted(Path('/') / name)}"])[0].value() == f"/{name}"


def test_a_path_that_reads_as_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"/a\$\{b\}: expected a path without \$\{"):
        quoted("/a${b}")
