"""Registration: in `METHODS`, each method of solo-learn is replaced by its extension.

A solo-learn with the hook for plugins (`upstream/`) needs no replacing: see `hook.py`.
"""

from __future__ import annotations

from solo_infoaug.host import Host, load_host
from solo_infoaug.twin.attach import InfoAugMethod, extend
from solo_infoaug.twin.config import SHOULD_MATCH


def register() -> Host:
    """Teach the installed solo-learn the keys `infoaug` and `fmicl`. Calling it again changes
    nothing.

    Returns:
        The host: solo-learn under the names that this package uses.

    Raises:
        HostError: there is no usable solo-learn.

    Examples:
        >>> host = register()
        >>> host.methods["simclr"].__name__
        'SimCLR'
    """
    host = load_host()
    if host.plugins is not None:
        from solo_infoaug.twin.hook import NAME, InfoAugPlugin

        # as a rule solo-learn has loaded it already, by its entry point
        host.plugins.setdefault(NAME, InfoAugPlugin())
        return host
    # all or none
    extended = {
        name: extend(name, method, host)
        for name, method in host.methods.items()
        if name not in ("base", "linear") and not issubclass(method, InfoAugMethod)
    }
    host.methods.update(extended)
    host.should_match.extend(key for key in SHOULD_MATCH if key not in host.should_match)
    return host
