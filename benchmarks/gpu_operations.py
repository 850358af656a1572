"""How many operations a step asks PyTorch for, by what they are for: the part `operations`.

Where a card waits for Python this is what a step's time follows, and it can be counted on any
machine. Views of memory and bare memory are not counted: a card is not asked for those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

NO_LAUNCH = frozenset(
    {"view", "_unsafe_view", "t", "transpose", "expand", "split", "split_with_sizes", "unbind"}
    | {"select", "slice", "detach", "unsqueeze", "squeeze", "permute", "alias", "as_strided"}
    | {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
)
COLUMNS = ["method", "way", "forward and losses", "backward", "optimizer", "moving average",
           "operations a step", "of plain, doubled", "twins' views"]  # fmt: skip


def operations(work: Callable[[], Any]) -> tuple[int, Any]:
    """What `work` asks for that is more than memory, nearly a card's launches; and its result."""
    from torch.utils._python_dispatch import TorchDispatchMode

    asked = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal asked
            asked += function.overloadpacket.__name__ not in NO_LAUNCH
            return function(*args, **(kwargs or {}))

    with Watch():
        result = work()
    return asked, result


def of_step(stepper: Any) -> tuple[list[int], int | None]:
    """Operations of a step: forward, backward, optimizer, moving average; and twins' views."""
    branch, views = getattr(stepper.module, "twin_branch", None), None
    if branch is not None:
        made = branch.batch
        views, twins = operations(lambda: made(stepper.done))
        branch.batch = lambda _: twins
    try:
        forward, loss = operations(stepper.loss)
        stepper.optimizer.zero_grad()
        backward, _ = operations(loss.backward)
        optimizer, _ = operations(stepper.optimizer.step)
        average, _ = operations(stepper.average)
    finally:
        if branch is not None:
            branch.batch = made
    stepper.done += 1
    return [forward, backward, optimizer, average], views


def table(report: Any, make: Callable[..., Any], methods: tuple[str, ...], clock: Any) -> None:
    """Rows of all methods and ways; `make(method, way)` gives a stepper."""
    report.head("5. Operations of a step", COLUMNS)
    for method in methods:
        doubled = 0
        for way in ("plain", "plain, doubled", "InfoAug", "InfoAug, one pass"):
            if clock.over():
                report.skipped(f"{method}, {way}")
                continue
            stepper = make(method, way)
            stepper.step()  # what is made once
            parts, views = of_step(stepper)
            doubled = sum(parts) if way == "plain, doubled" else doubled
            share = round(sum(parts) / doubled, 2) if doubled else None
            report.row(method, way, *parts, sum(parts), share, views)
    report.say(
        "\nCounted by torch's dispatch mode, ResNet-18 for 32 pixels, 16-mixed, SGD by foreach as "
        "on a card by default; less views of memory and bare memory. What makes the twins' views "
        "is apart: on a card with Triton it is some 17 launches a view (2)."
    )
