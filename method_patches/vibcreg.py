"""VIbCReg: VICReg with a normalised covariance."""

from solo_infoaug.twin.spec import MethodSpec

SPEC = MethodSpec(
    title="VIbCReg",
    paper="https://arxiv.org/abs/2109.00783",
    positive="patch and twin are close; variance and covariance over patches, and over twins",
    heads=("projector",),
    hosts=("current",),
)
