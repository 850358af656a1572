"""The methods of the solo-learn that is here, for tests of their twin branches."""

from __future__ import annotations

from typing import Any

import torch

from solo_infoaug.host import find_host
from solo_infoaug.twin.spec import find_method, supported_methods

KIND = find_host().kind
METHODS = [name for name in supported_methods() if KIND in find_method(name).hosts]
MOMENTUM = [name for name in METHODS if find_method(name).momentum_heads]


def trained(parameters: Any) -> dict[str, torch.nn.Parameter]:
    """Those of named parameters that are trained."""
    return {name: p for name, p in parameters if p.requires_grad}
