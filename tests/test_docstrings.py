"""The examples in the docstrings of the public names are run, in the order of their names here.

They see a folder with a dictionary (`twins/`), images (`images/`), the package's configurations
(`configs/`) and, for those that read a checkpoint, what the example of `pretrain` has trained
(`trained/`).
"""

from __future__ import annotations

import doctest
import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest

import solo_infoaug
from solo_infoaug import TwinDictionary, information
from solo_infoaug.resources import config_folder

ELSEWHERE = {"mine"}
"""Its input is a video: examples/video_to_timm.py."""

_PUBLIC = [
    getattr(solo_infoaug, name) for name in vars(solo_infoaug)["__all__"] if name != "__version__"
]
_PUBLIC += [value for name, value in vars(information).items() if not name.startswith("_")]
FUNCTIONS = {
    value.__name__: value
    for value in _PUBLIC
    if inspect.isfunction(value) and value.__name__ not in ELSEWHERE
}
TRAINED = ("evaluate", "export")
READERS = {name: value for name, value in FUNCTIONS.items() if name not in (*TRAINED, "pretrain")}


@pytest.fixture
def folder(
    twins_folder: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory of an example."""
    shutil.copytree(twins_folder, tmp_path / "twins")
    (tmp_path / "images").symlink_to(image_folder)
    (tmp_path / "configs").symlink_to(config_folder())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(example: Any) -> dict[str, Any]:
    """Run a docstring as its module would see it; returns the names that it has made."""
    (test,) = doctest.DocTestFinder(recurse=False).find(
        example, example.__name__, globs=dict(inspect.unwrap(example).__globals__)
    )
    assert test.examples, f"the docstring of {test.name} has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed = runner.run(test, out=said.append, clear_globs=False).failed
    assert not failed, "".join(said)
    return test.globs


def test_every_public_function_has_an_example() -> None:
    assert {"entropy", "fmicl_loss", "pretrain", "export_patches"} <= FUNCTIONS.keys()
    missing = [name for name, value in FUNCTIONS.items() if ">>> " not in (value.__doc__ or "")]
    assert missing == []


@pytest.mark.parametrize("name", sorted(READERS))
def test_example(name: str, folder: Path, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solo_infoaug.twin.spec._added", {})
    _run(READERS[name])


def test_example_of_a_sample(folder: Path) -> None:
    _run(TwinDictionary.sample)


def test_examples_of_a_run(folder: Path, slim_backbone: None) -> None:
    result = _run(FUNCTIONS["pretrain"])["result"]
    shutil.copytree(result.folder, folder / "trained", dirs_exist_ok=True)
    shutil.copy(result.checkpoint, folder / "trained" / "last.ckpt")
    for name in TRAINED:
        _run(FUNCTIONS[name])


def test_a_wrong_value_is_noticed() -> None:
    def wrong() -> None:
        """An example.

        >>> 1 + 1
        3
        """

    with pytest.raises(AssertionError, match=r"Expected:\s+3\s+Got:\s+2"):
        _run(wrong)
