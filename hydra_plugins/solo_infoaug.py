"""Hydra imports this file in every Hydra program; it does something in solo-learn's alone.

Only what Hydra itself has loaded may be imported at the top: other programs pay for it.
"""

from __future__ import annotations

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class SoloInfoAugPlugin(SearchPathPlugin):
    """Registers InfoAug in the solo-learn that the running program has imported, if it has."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra before it composes a configuration; the search path stays as it is."""
        if "solo.methods" in sys.modules:
            from solo_infoaug import register

            register()
