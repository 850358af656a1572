"""Where pickle finds the classes that `register()` makes, in any process: `registered.simclr`.

Loading a model that was pickled whole, or sent to a spawned process, so registers InfoAug there.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from solo_infoaug.twin.registration import register

    # not for what Python itself asks of every module
    methods = {} if name.startswith("__") else register().methods
    if name not in methods:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return methods[name]
