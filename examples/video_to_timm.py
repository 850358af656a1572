"""From a folder of videos to a backbone in timm, without any other images.

    uv run python examples/video_to_timm.py my_videos/ work/ max_epochs=100 limit_train_batches=1.0

Without arguments a few seconds of a sample clip go the same way.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

from solo_infoaug import MineConfig, export, export_patches, load_config, mine, pretrain
from solo_infoaug.mining import sample_clips
from solo_infoaug.resources import config_folder


def main(
    videos: Path, work: Path, *overrides: str, settings: MineConfig | None = None
) -> torch.nn.Module:
    """Mine, pretrain with twins, export, load; `overrides` are of the pretraining, as Hydra's."""
    twins = mine(videos, work / "twins", settings)
    export_patches(twins, work / "patches")  # the view branch trains on the patches as well
    cfg = load_config(
        config_folder() / "demo",
        "simclr",
        [
            f"data.train_path='{work / 'patches'}'",
            f"checkpoint.dir='{work / 'runs'}'",
            f"++infoaug.twins='{work / 'twins'}'",
            *overrides,
        ],
    )
    checkpoint = pretrain(cfg).checkpoint
    assert checkpoint is not None
    file = work / "backbone.safetensors"
    export(checkpoint, file)
    model = timm.create_model("resnet18", num_classes=0)
    model.load_state_dict(load_file(file))
    print(f"{file}: {sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M weights")
    return model


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            few = MineConfig(start_fraction=0.2, stop_fraction=0.35)
            main(sample_clips()[0], Path(folder), "limit_train_batches=3", settings=few)
