"""An entry of solo-learn's `augmentations`, for tests."""

from __future__ import annotations

from typing import Any


def augmentation(**changes: Any) -> dict[str, Any]:
    """Two crops of 16 pixels by all operations but equalization, and `changes`."""
    return {
        "rrc": {"enabled": True, "crop_min_scale": 0.3, "crop_max_scale": 1.0},
        "color_jitter": {
            "prob": 0.8,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.2,
            "hue": 0.1,
        },
        "grayscale": {"prob": 0.2},
        "gaussian_blur": {"prob": 0.5},
        "solarization": {"prob": 0.1},
        "equalization": {"prob": 0.0},
        "horizontal_flip": {"prob": 0.5},
        "crop_size": 16,
        "num_crops": 2,
        **changes,
    }
