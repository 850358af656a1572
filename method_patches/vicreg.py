"""VICReg: variance, invariance, covariance."""

from solo_infoaug.twin.spec import MethodSpec

SPEC = MethodSpec(
    title="VICReg",
    paper="https://arxiv.org/abs/2105.04906",
    positive="patch and twin are close; variance and covariance over patches, and over twins",
    heads=("projector",),
)
