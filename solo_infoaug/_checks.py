"""Checks of settings, with one wording."""

from __future__ import annotations

from solo_infoaug.errors import ConfigError


def require(good: object, key: str, expected: str, value: object) -> None:
    """Raise a ConfigError unless `good`: it names the key, what was expected, and the value."""
    if not good:
        raise ConfigError(f"{key}: expected {expected}, got {value!r}")


def is_number(value: object, minimum: float = float("-inf")) -> bool:
    """Whether `value` is a number of at least `minimum`; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= minimum


def is_whole(value: object, minimum: float = float("-inf")) -> bool:
    """Whether `value` is a whole number of at least `minimum`; true and false are not."""
    return isinstance(value, int) and is_number(value, minimum)
