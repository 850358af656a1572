"""Hydra imports this file in every Hydra program; it does something in solo-learn's alone.

Only what Hydra itself has loaded may be imported at the top: other programs pay for it.
"""

from __future__ import annotations

import sys
import warnings

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

_KEYS = ("infoaug", "fmicl")


class SoloInfoAugPlugin(SearchPathPlugin):
    """Registers InfoAug in the solo-learn that the running program has imported, if it has."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra before it composes a configuration; the search path stays as it is.

        A program whose `solo` is something else, or broken, goes on with a warning; one that asks
        for InfoAug on its command line does not.
        """
        if "solo.methods" not in sys.modules:
            return
        try:
            from solo_infoaug.host import find_host

            find_host()  # cheap, unlike registering
            from solo_infoaug import register

            register()
        except Exception as error:
            if any(argument.lstrip("+").startswith(_KEYS) for argument in sys.argv[1:]):
                raise
            warnings.warn(
                "solo-infoaug could not be registered, so `infoaug` and `fmicl` have no effect in "
                f"this program's configuration ({type(error).__name__}: {error})",
                stacklevel=2,
            )
