"""The entry point that a solo-learn with the hook for plugins loads, in every program of its."""

from __future__ import annotations

from typing import Any


def plugin() -> Any:
    """InfoAug as a plugin; one that does nothing where solo-learn has plugins but no extra losses.

    There `register()` replaces the methods, as in a solo-learn without plugins.
    """
    from solo.utils import plugins

    if not hasattr(plugins, "ExtraLoss"):
        return plugins.Plugin()
    from solo_infoaug.twin.hook import InfoAugPlugin

    return InfoAugPlugin()
