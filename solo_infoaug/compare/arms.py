"""The arms of a comparison: one table for the grid, the tables and every figure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison."""

    label: str
    """Name in tables and figures."""
    colour: str
    """Colour in every figure."""
    partner: str | None = None
    """`infoaug.positives`; None trains without a twin branch."""
    reference: bool = False
    """Whether the other arms are compared with this one."""


ARMS = {
    "baseline": Arm("baseline, same steps", "#9aa5b1", reference=True),
    "baseline_images": Arm("baseline, same images", "#5f6c7b", reference=True),
    "random": Arm("random patch", "#d9a441", "random", reference=True),
    "random_anchor": Arm("random patch with a twin", "#c4672d", "random_with_twin", reference=True),
    "self": Arm("the patch itself", "#8e6bbf", "self"),
    "infoaug": Arm("InfoAug", "#2a7de1", "twins"),
    "oracle": Arm("true twins", "#3a9d5d", "twins"),
}
"""Key → arm, in the order of tables and legends."""
