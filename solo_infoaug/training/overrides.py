"""Overrides in Hydra's grammar, and what is said of those that are none."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from solo_infoaug.errors import ConfigError


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Read overrides one by one.

    Raises:
        ConfigError: one that Hydra cannot read; the message names it, and says how it is quoted.
    """
    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException as error:
            key, equals, value = override.partition("=")
            quoted = f'{key}="{value}"'
            why = str(error).splitlines()[0]
            if equals and _reads(parser, quoted):
                hint = f"quote the value, and all of it for the shell: '{quoted}'"
            else:
                hint = "expected key=value, +key=value or ~key"
            raise ConfigError(f"override {override!r}: {hint} (Hydra says: {why})") from error
    return parsed


def _reads(parser: OverridesParser, override: str) -> bool:
    try:
        parser.parse_override(override)
    except HydraException:
        return False
    return True
