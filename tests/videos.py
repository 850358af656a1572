"""Pictures of two textured objects that move, from which the tests write small videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

WriteVideo = Callable[..., Path]


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [H, W, 3]: blurred noise that can be tracked."""
    import cv2

    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (height, width, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)


def path_of(frames: int, seed: int, step: float = 1.5, reach: float = 18.0) -> np.ndarray:
    """float64 [T, 2]: a smooth random motion that stays within `reach` pixels of its start."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, step, (frames, 2))
    path = np.zeros((frames, 2))
    for t in range(1, frames):
        path[t] = np.clip(path[t - 1] + steps[t], -reach, reach)
    return path


def two_objects(frames: int = 64, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Two textured squares that move independently over a still background.

    Returns frames uint8 [160, 256, 3] and the boxes of the objects in the first frame,
    [2, 4] (x0, y0, x1, y1).
    """
    import cv2

    background = texture(160, 256, seed)
    objects = [texture(80, 80, seed + 1 + i) for i in range(2)]
    starts = np.array([[24.0, 40.0], [152.0, 40.0]])
    paths = [path_of(frames, seed + 10 + i) for i in range(2)]
    images = []
    for t in range(frames):
        image = background.copy()
        for square, start, path in zip(objects, starts, paths, strict=True):
            x, y = start + path[t]
            shift = np.array([[1, 0, x], [0, 1, y]], np.float64)
            moved = cv2.warpAffine(square, shift, (256, 160))
            mask = cv2.warpAffine(np.full((80, 80), 255, np.uint8), shift, (256, 160))
            alpha = mask[..., None] / 255.0
            image = (alpha * moved + (1 - alpha) * image).round().astype(np.uint8)
        images.append(image)
    boxes = np.concatenate([starts, starts + 80], axis=1)
    return images, boxes
