"""InfoAug for solo-learn: twin patches from video as positives for self-supervised learning.

Importing this package is cheap: every public name is loaded on first use. The names are those of
`__init__.pyi`, which editors and type checkers read as well.
"""

from pathlib import Path

import lazy_loader

__version__ = "0.1.0"

# `method_patches/` and `configs/` are next to the package in a checkout, and inside it in a wheel.
# Either way they are `solo_infoaug.method_patches` and `solo_infoaug.configs`.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "method_patches").is_dir():
    __path__.append(str(_checkout))

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
