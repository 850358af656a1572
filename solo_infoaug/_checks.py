"""Settings, checked one by one with one wording."""

from __future__ import annotations

from solo_infoaug.errors import ConfigError


def require(good: object, key: str, expected: str, value: object) -> None:
    """Raise a ConfigError of `key` unless `good`: what was expected, and the value that came."""
    if not good:
        raise ConfigError(f"{key}: expected {expected}, got {value!r}")


def is_number(value: object, minimum: float = float("-inf")) -> bool:
    """A number of at least `minimum`; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= minimum


def is_whole(value: object, minimum: float = float("-inf")) -> bool:
    """A whole number of at least `minimum`; true and false are none."""
    return isinstance(value, int) and is_number(value, minimum)
