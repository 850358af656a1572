"""The entry point that a solo-learn with the hook for plugins loads, in each of its programs."""

from __future__ import annotations

from typing import Any


def plugin() -> Any:
    """InfoAug as a plugin; an empty one if solo-learn has plugins but no extra losses.

    In that case `register()` replaces the methods, as in a solo-learn without plugins.
    """
    from solo.utils import plugins

    if not hasattr(plugins, "ExtraLoss"):
        return plugins.Plugin()
    from solo_infoaug.twin.hook import InfoAugPlugin

    return InfoAugPlugin()
