"""Fixtures that every test module may use.

The process that starts the others imports this module too: what takes long is imported where it is
needed.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from augmentations import augmentation
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import numpy as np
    import torch
    from training_steps import Steps
    from videos import WriteVideo

if sys.dont_write_bytecode:
    # Containers say so (PYTHONDONTWRITEBYTECODE). Then each of these processes, and each program
    # that a test starts, would compile torch and Lightning anew, for ten seconds.
    _BYTECODE = str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode")
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = _BYTECODE
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False

_METHOD_KWARGS: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.2},
    "mocov2plus": {"temperature": 0.2, "queue_size": 32},
    "byol": {"pred_hidden_dim": 16},
    "simsiam": {"pred_hidden_dim": 16, "temperature": 0.2},
    "barlow_twins": {"lamb": 0.0051, "scale_loss": 0.1},
    "vicreg": {"sim_loss_weight": 25.0, "var_loss_weight": 25.0, "cov_loss_weight": 1.0},
    "nnclr": {"temperature": 0.2, "pred_hidden_dim": 16, "queue_size": 32},
    "nnbyol": {"pred_hidden_dim": 16, "queue_size": 32},
    "nnsiam": {"pred_hidden_dim": 16, "queue_size": 32},
    "ressl": {"temperature_q": 0.1, "temperature_k": 0.04, "queue_size": 32},
    "all4one": {"temperature": 0.2, "pred_hidden_dim": 16, "queue_size": 32},
    "mocov3": {"temperature": 0.2, "pred_hidden_dim": 16},
    "supcon": {"temperature": 0.2},
    "vibcreg": {
        "sim_loss_weight": 25.0,
        "var_loss_weight": 25.0,
        "cov_loss_weight": 200.0,
        "iternorm": True,
        "proj_output_dim": 64,
    },
    "wmse": {
        "whitening_iters": 1,
        "whitening_size": 8,
        "whitening_eps": 1e-3,
        "proj_output_dim": 4,
    },
    "dino": {
        "num_prototypes": 12,
        "clip_grad": 3.0,
        "freeze_last_layer": 1,
        "norm_last_layer": True,
        "use_bn_in_head": True,
        "student_temperature": 0.1,
        "teacher_temperature": 0.07,
        "warmup_teacher_temperature": 0.04,
        "warmup_teacher_temperature_epochs": 0,
    },
    "swav": {
        "queue_size": 16,
        "num_prototypes": 12,
        "sk_iters": 3,
        "sk_epsilon": 0.05,
        "temperature": 0.1,
        "epoch_queue_starts": 1,
        "freeze_prototypes_epochs": 1,
    },
    "deepclusterv2": {"num_prototypes": [6, 6], "kmeans_iters": 3, "temperature": 0.1},
    "mae": {
        "mask_ratio": 0.5,
        "norm_pix_loss": True,
        "decoder_embed_dim": 12,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    },
}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process a core, and no more than four: each imports torch anew and takes 1.5 GB."""
    return min(os.cpu_count() or 1, 4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests neither see nor change the user's cache and settings."""
    cache: Path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SOLO_INFOAUG_CACHE", str(cache))
    monkeypatch.delenv("SOLO_INFOAUG_TWINS", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The tests' tensors are small, and pytest-xdist runs as many processes as there are cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    """Models hold on to themselves in circles, and go when Python looks for those."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def host() -> Any:
    """The solo-learn that is here: the PyPI release, or the clone that SOLO_LEARN_HOME names."""
    import solo_infoaug

    return solo_infoaug.register()


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The first card; the test is skipped where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device: run the tests marked gpu on a machine with a card")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def solo_learn_home() -> Path:
    """A clone of the current solo-learn; the test is skipped where there is none."""
    home = os.environ.get("SOLO_LEARN_HOME")
    if not home:
        pytest.skip("SOLO_LEARN_HOME names no clone of the current solo-learn")
    return Path(home)


@pytest.fixture(scope="session")
def twins_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A twin dictionary of 24 patches in two windows, 2 moments each; patch i's twin is i ± 1."""
    import torch

    from solo_infoaug.dictionary import TwinDictionary

    folder = tmp_path_factory.mktemp("dictionary") / "twins"
    pixels = torch.randint(
        0, 256, (24, 2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    twins = torch.arange(24).view(-1, 2).flip(1).reshape(-1, 1)
    TwinDictionary.create(folder, pixels, twins, torch.ones(24, 1), windows=[0] * 12 + [1] * 12)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 small images each."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for i in range(12):
            pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def slim_backbone(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`resnet18` is a narrow one, in this process."""
    from slim_backbone import install

    install(host, monkeypatch)


@pytest.fixture
def make_cfg(slim_backbone: None, image_folder: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """A small solo-learn configuration; keyword `overrides` are Hydra-like `a.b=value` pairs."""

    def make(method: str = "simclr", infoaug: Any = None, **overrides: Any) -> DictConfig:
        cfg = OmegaConf.create(
            {
                "name": "test",
                "method": method,
                "backbone": {"name": "resnet18"},
                "method_kwargs": {
                    "proj_hidden_dim": 16,
                    "proj_output_dim": 8,
                    **_METHOD_KWARGS.get(method, {}),
                },
                "momentum": {"base_tau": 0.9, "final_tau": 1.0},
                "data": {
                    "dataset": "custom",
                    "train_path": str(image_folder),
                    "val_path": None,
                    "format": "image_folder",
                    "num_workers": 0,
                },
                "optimizer": {
                    "name": "sgd",
                    "batch_size": 8,
                    "lr": 1.0,
                    "classifier_lr": 0.1,
                    "weight_decay": 1e-4,
                },
                "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0},
                "checkpoint": {"enabled": True, "dir": str(tmp_path / "runs"), "frequency": 1},
                "auto_resume": {"enabled": False},
                "seed": 3,
                "max_epochs": 2,
                "devices": "1",
                "accelerator": "cpu",
                "precision": 32,
                "strategy": "auto",
                "log_every_n_steps": 1,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "augmentations": [augmentation()],
            }
        )
        if method == "mae":
            cfg.backbone = {"name": "vit_tiny", "kwargs": {"img_size": 16, "patch_size": 8}}
        if infoaug is not None:
            cfg.infoaug = infoaug
        for key, value in overrides.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        return cfg

    return make


@pytest.fixture(scope="session")
def steps() -> type[Steps]:
    """The class `Steps`."""
    from training_steps import Steps

    return Steps


@pytest.fixture
def plain_method(host: Any) -> Callable[[str, DictConfig], Any]:
    """Builds a method as plain solo-learn has it: for the release, its own class and arguments."""

    def build(name: str, cfg: DictConfig) -> Any:
        method = host.methods[name].infoaug_plain
        if host.info.kind == "current":
            return method(cfg)
        from solo_infoaug.host.release_config import method_arguments

        raw = method.release_method
        return raw(**method_arguments(raw, cfg))

    return build


@pytest.fixture(scope="session")
def write_video() -> WriteVideo:
    """Writes uint8 [H, W, 3] frames to a video file."""
    import av

    def write(
        path: Path,
        frames: Iterable[np.ndarray],
        *,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        fps: int = 25,
    ) -> Path:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=fps)
            stream.pix_fmt = pix_fmt
            for place, image in enumerate(frames):
                if place == 0:
                    stream.height, stream.width = image.shape[:2]
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def scene() -> tuple[list[np.ndarray], np.ndarray]:
    """Its frames, and where its patches are; see `two_objects`."""
    from videos import two_objects

    return two_objects()


@pytest.fixture(scope="session")
def video(
    tmp_path_factory: pytest.TempPathFactory,
    write_video: WriteVideo,
    scene: tuple[list[np.ndarray], np.ndarray],
) -> Path:
    """The two objects as an mp4."""
    return write_video(tmp_path_factory.mktemp("videos") / "two.mp4", scene[0])
