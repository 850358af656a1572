"""The module where pickle finds the classes of `register()` in any process: `registered.simclr`.

Loading a whole pickled model, or one sent to a spawned process, thus registers InfoAug.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from solo_infoaug.twin.registration import register

    # not for the names that Python looks up in every module
    methods = {} if name.startswith("__") else register().methods
    if name not in methods:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return methods[name]
