"""W-MSE: distance of whitened features."""

from typing import Any

from solo_infoaug.errors import ConfigError
from solo_infoaug.twin.spec import MethodSpec


def whitens_whole_slices(method: Any, batch_size: int, processes: int) -> None:
    """W-MSE whitens the batch in slices of `whitening_size`; all of them must be full."""
    size = int(method.whitening_size)
    if batch_size % size:
        raise ConfigError(
            f"infoaug.batch_size: expected a multiple of method_kwargs.whitening_size ({size}), "
            f"got {batch_size}"
        )


SPEC = MethodSpec(
    title="W-MSE",
    paper="https://arxiv.org/abs/2007.06346",
    positive="patch and twin are close after whitening; more crops take turns and all pairs count",
    heads=("projector",),
    check=whitens_whole_slices,
)
