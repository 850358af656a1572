"""Errors that a user can act on. The command line prints their message, without a traceback."""

from __future__ import annotations


class InfoAugError(Exception):
    """The user can fix it; the message says what was expected, what came, and what to do."""


class ConfigError(InfoAugError, ValueError):
    """A configuration key is unknown, or its value cannot be used."""


class VideoError(InfoAugError):
    """A video cannot be found, opened or decoded, or yields no usable track."""


class DictionaryError(InfoAugError):
    """A twin dictionary is missing, damaged, or of a format that this version cannot read."""


class OutputError(InfoAugError):
    """The output cannot be written to the requested place."""


class DataError(InfoAugError):
    """An image of the run's data cannot be read."""


class HostError(InfoAugError):
    """No usable solo-learn, or a method of it that cannot be extended."""


class UpstreamError(InfoAugError):
    """The patches for solo-learn cannot be applied to this clone."""
