"""Functions that numba compiles, kept on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """numba's `njit` without the global lock; `options` are further ones of it.

    The result is kept beside the module, or in the user's cache. Where neither can be written
    (packages of another user, no home, a full disk), each process compiles anew, in some seconds.
    """

    def decorate(function: F) -> F:
        try:
            dispatcher = njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # numba found no folder that it may write to
            return njit(nogil=True, **options)(function)  # type: ignore[no-any-return]
        _survive(dispatcher)
        return dispatcher  # type: ignore[no-any-return]

    return decorate


def _survive(dispatcher: Any) -> None:
    """A result that cannot be stored or read (the folder was writable when numba looked) is not."""
    cache = getattr(dispatcher, "_cache", None)
    for name in ("load_overload", "save_overload"):
        if hasattr(cache, name):
            setattr(cache, name, _or_none(getattr(cache, name)))


def _or_none(call: Callable[..., Any]) -> Callable[..., Any]:
    def attempt(*arguments: Any) -> Any:
        with suppress(OSError):
            return call(*arguments)
        return None

    return attempt
