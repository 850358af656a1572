"""Barlow Twins: the cross-correlation of the two views is the identity."""

from solo_infoaug.twin.spec import MethodSpec

SPEC = MethodSpec(
    title="Barlow Twins",
    paper="https://arxiv.org/abs/2103.03230",
    positive="features of patches and of twins are correlated each with itself, and with no other",
    heads=("projector",),
)
