"""Depth: a third coordinate for the tracks, from a monocular depth model."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np
import torch

from solo_infoaug.errors import ConfigError
from solo_infoaug.mining.gate import sample

DEFAULT_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
# Iterations of the robust fit that aligns a frame's depth with the first one's.
_ITERATIONS = 10


def depth_along(
    frames: list[np.ndarray], points: np.ndarray, visible: np.ndarray, model: str, device: str
) -> np.ndarray:
    """Relative depth at points of a window, aligned over time.

    Monocular depth is known up to scale and shift, and these flicker from frame to frame: without
    alignment, all tracks would share that flicker.

    `frames` are T images, uint8 [h, w, 3]; `points` [T, N, 2] are (x, y) in their pixels, `visible`
    bool [T, N]. `model` is a name on the Hugging Face hub or a local folder.

    Returns:
        float64 [T, N], in pixels: the range of depths in the first frame is the length of the
        frame's shorter side. Larger is nearer for models of inverse depth, as the default is.

    Raises:
        ConfigError: transformers is not installed, or the model cannot be loaded.
    """
    estimate = _estimator(model, device)
    depths = np.empty(points.shape[:2])
    spread = 1.0
    for t, frame in enumerate(frames):
        depth = estimate(frame)
        if t == 0:
            low, high = np.percentile(depth, [2, 98])
            spread = max(float(high - low), 1e-6)
        depths[t] = sample(depth, points[t, :, None].astype(np.float32))[:, 0]
    return align(depths, visible) / spread * min(frames[0].shape[:2])


def align(depths: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Undo each frame's own scale and shift of depth: fit every frame to the first, robustly.

    Depths are float64 [T, N]. The fit uses points that are `visible` bool [T, N] in a frame and in
    the first one.
    """
    aligned = depths.astype(np.float64).copy()
    for t in range(1, len(depths)):
        both = visible[t] & visible[0]
        if both.sum() < 8:
            aligned[t] = aligned[t - 1]
            continue
        scale, shift = _fit_line(depths[t, both], aligned[0, both])
        aligned[t] = scale * depths[t] + shift
    return aligned


def _fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Scale and shift that map most of x to y: iteratively reweighted least squares, Huber."""
    design = np.stack([x, np.ones_like(x)], axis=1)
    weight = np.ones_like(x)
    solution = np.array([1.0, 0.0])
    for _ in range(_ITERATIONS):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]
        residual = np.abs(design @ solution - y)
        limit = max(1.5 * float(np.median(residual)), 1e-12)
        weight = np.minimum(1.0, limit / np.maximum(residual, 1e-12))
    return float(solution[0]), float(solution[1])


@functools.cache
def _estimator(model: str, device: str) -> Any:
    """A function from an image uint8 [h, w, 3] to its depth float32 [h, w]."""
    try:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    except ImportError as error:
        raise ConfigError(
            'depth needs transformers; install it with: pip install "solo-infoaug[depth]"'
        ) from error
    try:
        processor = AutoImageProcessor.from_pretrained(model)
        network = AutoModelForDepthEstimation.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"depth: model {model!r} cannot be loaded: {error}; give the name of a "
            "depth-estimation model on the Hugging Face hub, or a local folder"
        ) from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device).eval()

    @torch.inference_mode()
    def estimate(frame: np.ndarray) -> np.ndarray:
        inputs = processor(images=frame, return_tensors="pt").to(device)
        predicted = network(**inputs).predicted_depth.float().cpu().numpy()[0]
        return cv2.resize(predicted, frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    return estimate
