"""What the tests of the twin branch share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def build(
    host: Any, make_cfg: Callable[..., Any], steps: Any, twins_folder: Path
) -> Callable[..., Any]:
    """A registered method, InfoAug on, ready to step."""

    def make(method: str, infoaug: Any = None, **overrides: Any) -> Any:
        default = {"twins": str(twins_folder)}
        settings = default if infoaug is None else infoaug
        cfg = host.parse_cfg(make_cfg(method, settings, **overrides))
        torch.manual_seed(0)
        return steps(host.methods[method](cfg), cfg)

    return make


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each convolution is given while gradients are recorded."""
    seen: list[int] = []
    forward = torch.nn.Conv2d._conv_forward

    def watched(layer: Any, images: torch.Tensor, *given: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append(len(images))
        return forward(layer, images, *given)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", watched)
    return seen


@pytest.fixture
def compiler() -> Iterator[None]:
    """As if nothing had been compiled, afterwards too: then views pass the backbone together."""
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
