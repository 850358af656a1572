"""Tables of settings, read from their dataclasses: names, types, defaults, docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Collection
from itertools import groupby
from operator import attrgetter
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a dataclass of settings."""

    name: str
    type: str
    default: str
    """The default as written in YAML."""
    text: str
    """The docstring under the field, on one line."""
    group: str = ""
    """The group that the field's metadata name; its name may be written in front of the field's."""


def settings(config: type, leave_out: Collection[str] = ()) -> list[Setting]:
    """The fields of the dataclass `config`, in their order.

    Docstrings of fields are read from the source, because Python does not keep them.
    """
    texts = _field_docstrings(config)
    return [
        Setting(
            field.name,
            str(field.type),
            _yaml(field.default),
            texts.get(field.name, ""),
            str(field.metadata.get("group", "")),
        )
        for field in dataclasses.fields(config)
        if field.name not in leave_out
    ]


def _field_docstrings(config: type) -> dict[str, str]:
    (class_,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(class_, ast.ClassDef)
    texts = {}
    for field, below in zip(class_.body, class_.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _yaml(value: Any) -> str:
    return value if value and isinstance(value, str) else json.dumps(value)


def markdown_table(config: type, leave_out: Collection[str] = ()) -> str:
    """The settings as a table in Markdown, and each group as a table of its own below it."""
    tables = []
    for group, inside in groupby(settings(config, leave_out), attrgetter("group")):
        rows = ["| key | type | default | |", "|---|---|---|---|"]
        for s in inside:
            type_ = s.type.replace("|", r"\|")
            rows.append(f"| `{s.name}` | `{type_}` | `{s.default}` | {s.text} |")
        heading = f"**`{group}.*`**\n\n" if group else ""
        tables.append(heading + "\n".join(rows))
    return "\n\n".join(tables)


def terminal_table(config: type) -> Table:
    """The settings as a table for a terminal, with a line above each group."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("setting", "type", "default"):
        table.add_column(column, no_wrap=True)
    table.add_column("", overflow="fold")
    for group, inside in groupby(settings(config), attrgetter("group")):
        if group:
            table.add_section()
            table.add_row(f"[bold]{escape(group)}.*[/]")
        for s in inside:
            table.add_row(*map(escape, (s.name, s.type, s.default, s.text)))
    return table
