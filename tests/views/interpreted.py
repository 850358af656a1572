"""What `test_views.py` runs under Triton's interpreter; not a test by itself.

Prints a line of JSON: for each case the share of values by which the kernels' images differ from
plain torch's by more than rounding, and whether other images were left alone.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined

import torch
from torch import Tensor

from solo_infoaug.views import functional, kernels
from solo_infoaug.views import operations as views

SHAPE = (5, 3, 19, 23)


def differing(got: Tensor, expected: Tensor) -> float:
    """The share of values that differ by more than rounding, 1 where the images are not alike."""
    if got.shape != expected.shape or not got.isfinite().all():
        return 1.0
    return float(((got - expected).abs() > 2e-5).float().mean())


def main() -> None:
    random = torch.Generator().manual_seed(0)
    # real images have neighbours alike; noise has every hue
    image = torch.rand(SHAPE, generator=random)
    image[1] = image[1].mean()
    image[2, 1] = image[2, 0]
    found = {}
    for size in (8, 19, 40):
        for scale in (None, (0.1, 1.0)):
            crop = views.ResizedCrop(size, scale)
            boxes = crop.draw(SHAPE, random)["boxes"]
            got = kernels.resized_crop(image, boxes, size)
            found[f"crop to {size}, {scale}"] = differing(
                got, functional.resized_crop(image, boxes, size)
            )
    operations = {
        "jitter": views.ColorJitter(0.8, (0.4, 0.4, 0.2, 0.1)),
        "hue": views.ColorJitter(1.0, (0.0, 0.0, 0.0, 0.5)),
        "contrast": views.ColorJitter(1.0, (0.0, 0.9, 0.0, 0.0)),
        "no jitter": views.ColorJitter(1.0, (0.0, 0.0, 0.0, 0.0)),
        "grayscale": views.Grayscale(p=0.5),
        "blur": views.GaussianBlur(p=0.5),
        "solarize": views.Solarize(p=0.5),
        "flip": views.HorizontalFlip(p=0.5),
    }
    for name, operation in operations.items():
        params = operation.draw(SHAPE, random)
        assert len(params["chosen"]) > 0
        got = image.clone()
        own = (params[name] for name in ("chosen", *operation.takes))
        getattr(kernels, operation.kernel)(got, *own)
        found[name] = differing(got, operation.change_(image.clone(), params))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
