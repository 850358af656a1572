"""Every setting is documented under its field, and shown from there."""

from __future__ import annotations

import dataclasses

import pytest
from typer.testing import CliRunner

from solo_infoaug import FMICLConfig, InfoAugConfig, MineConfig
from solo_infoaug.cli import app
from solo_infoaug.settings import markdown_table, settings


@pytest.mark.parametrize("config", [MineConfig, InfoAugConfig, FMICLConfig])
def test_every_field_has_a_docstring(config: type) -> None:
    found = settings(config)
    assert [s.name for s in found] == [field.name for field in dataclasses.fields(config)]
    assert [s.name for s in found if not s.text.endswith(".")] == []


@dataclasses.dataclass
class _Example:
    a: int | None = None
    """First,
    on two lines."""

    b: str = ""
    c: bool = True
    """Third."""


def test_a_table_says_what_the_source_says() -> None:
    assert markdown_table(_Example, leave_out=("b",)).splitlines()[2:] == [
        r"| `a` | `int \| None` | `null` | First, on two lines. |",
        "| `c` | `bool` | `true` | Third. |",
    ]
    assert [s.text for s in settings(_Example)] == ["First, on two lines.", "", "Third."]


@dataclasses.dataclass
class _Grouped:
    a: int = 1
    """First."""

    b: int = dataclasses.field(default=2, metadata={"group": "gate"})
    """Second."""


def test_groups_have_tables_of_their_own() -> None:
    head = "| key | type | default | |\n|---|---|---|---|"
    assert markdown_table(_Grouped) == (
        f"{head}\n| `a` | `int` | `1` | First. |\n\n"
        f"**`gate.*`**\n\n{head}\n| `b` | `int` | `2` | Second. |"
    )


def test_the_command_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["mine", "--list-settings"])
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line for line in done.output.splitlines() if line.strip()}
    for setting in settings(MineConfig):
        assert setting.default in rows[setting.name]
        assert setting.text[:40] in rows[setting.name]
        assert not setting.group or f"{setting.group}.*" in rows
