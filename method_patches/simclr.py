"""SimCLR: InfoNCE over all views of the batch."""

from solo_infoaug.patch import MethodPatch

PATCH = MethodPatch(
    title="SimCLR",
    paper="https://arxiv.org/abs/2002.05709",
    positive="patch and twin attract; the other patches and twins of the batch repel",
    heads=("projector",),
)
