"""A small grid on the image folder and the dictionary of the other tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def overrides(
    slim_backbone: None, image_folder: Path, twins_folder: Path, tmp_path: Path
) -> Callable[..., list[str]]:
    """Overrides of a grid that trains one epoch of three steps a run; more of them may follow."""

    def build(*more: str) -> list[str]:
        return [
            f"out='{tmp_path / 'grid'}'",
            "methods=[simclr]",
            "arms=[baseline,random,infoaug]",
            "data=custom",
            "seeds=[0]",
            f"data.train_path='{image_folder}'",
            f"evaluate.val_path='{image_folder}'",
            "data.num_workers=0",
            f"infoaug.twins='{twins_folder}'",
            "max_epochs=1",
            "optimizer.batch_size=8",
            "augmentations.0.crop_size=16",
            "method_kwargs.proj_hidden_dim=16",
            "method_kwargs.proj_output_dim=8",
            *more,
        ]

    return build
