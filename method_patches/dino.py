"""DINO: a student predicts a centred and sharpened momentum teacher."""

from omegaconf import DictConfig

from solo_infoaug.twin.spec import MethodSpec


def clip_once(cfg: DictConfig) -> None:
    """The view branch clips the backbone's gradients, which are those of both losses by then."""
    cfg.method_kwargs.clip_grad = 0


SPEC = MethodSpec(
    title="DINO",
    paper="https://arxiv.org/abs/2104.14294",
    positive="the student on the patch predicts the teacher on the twin, both ways",
    heads=("head",),
    momentum_heads=("momentum_head",),
    state=("dino_loss_func.center",),
    hooks=("on_train_epoch_start", "on_after_backward"),
    configure=clip_once,
)
