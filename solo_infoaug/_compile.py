"""Functions that numba compiles, kept on disk if possible."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, TypeVar

from numba import config, njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """numba's `njit` without the global lock; `options` are further options of `njit`.

    The result is kept next to the module, or in the user's cache. If neither can be written
    (packages of another user, no home, a full disk), each process compiles again, in some seconds.
    """

    def decorate(function: F) -> F:
        try:
            dispatcher = njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # numba found no folder to write to
            return njit(nogil=True, **options)(function)
        _survive(dispatcher)
        return dispatcher

    return decorate


def let_others_compile(package: str) -> None:
    """Make a package importable that insists on numba's cache on disk.

    If numba finds no folder for that, it gets a temporary one, for this process and its children.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return
    scope: dict[str, Any] = {}
    # numba looks next to the file of the function
    exec(compile("def nothing(): pass", spec.origin, "exec"), scope)
    try:
        njit(cache=True)(scope["nothing"])
    except RuntimeError:
        folder = tempfile.mkdtemp(prefix="solo-infoaug-numba-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["NUMBA_CACHE_DIR"] = folder
        config.reload_config()


def _survive(dispatcher: Any) -> None:
    """Ignore a cache that can no longer be written or read, though it was writable at first."""
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
