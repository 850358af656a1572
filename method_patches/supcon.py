"""SupCon: InfoNCE whose positives share a label. A patch is a label of its own."""

from solo_infoaug.twin.spec import MethodSpec

SPEC = MethodSpec(
    title="SupCon",
    paper="https://arxiv.org/abs/2004.11362",
    positive="patch and twin have one label, the patch's number; all views with it attract",
    heads=("projector",),
    hosts=("current",),
)
