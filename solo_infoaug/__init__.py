"""InfoAug for solo-learn: twin patches from video as positives for self-supervised learning.

Importing this package is cheap: every public name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a checkout `method_patches/` and `configs/` lie beside the package, in a wheel inside it.
# Either way they are `solo_infoaug.method_patches` and `solo_infoaug.configs`.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "method_patches").is_dir():
    __path__.append(str(_checkout))

_LAZY = {
    "EstimateWarning": "solo_infoaug.information",
    "Significance": "solo_infoaug.information",
    "TwinDictionary": "solo_infoaug.dictionary",
    "entropy": "solo_infoaug.information",
    "fmicl_loss": "solo_infoaug.objectives",
    "mine": "solo_infoaug.mining",
    "mutual_information": "solo_infoaug.information",
    "pairwise_mutual_information": "solo_infoaug.information",
    "pairwise_significance": "solo_infoaug.information",
    "register": "solo_infoaug.registration",
    "top_k_partners": "solo_infoaug.information",
}
__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:
    from solo_infoaug.dictionary import TwinDictionary as TwinDictionary


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
