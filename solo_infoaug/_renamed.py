"""Settings of the miner that were renamed, in dictionaries that were mined before that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMER = {
    "moments": "temporal_crops",
    "others": "extra_patches",
    "max_roundtrip": "max_forward_backward_error",
}
"""Former name → name."""


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a dictionary was mined with, by their names of today."""
    return {FORMER.get(name, name): value for name, value in settings.items()}


def first_named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings by the first names they had: hashes of them outlive a renaming."""
    first = {name: former for former, name in FORMER.items()}
    return {first.get(name, name): value for name, value in settings.items()}
