"""Video object segmentation: the first frame's mask is propagated by features.

The protocol of Jabri et al. 2020 (arXiv 2006.14613) and of DINO (Caron et al. 2021): each place of
a frame's feature map takes the labels of its k nearest neighbours among the places near it in the
first frame and in the last few frames, weighted by exp(cosine / temperature). Labels stay soft on
the feature map. At the frame's size (bilinear), the largest one is the object. J is the
intersection over the union, F that of DAVIS: precision and recall of boundaries, to within 0.8 per
cent of the diagonal.
Every frame except the first counts. Means are over the frames of an object, then over objects.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FeatureMap = Callable[[Tensor], Tensor]
"""uint8 [3, H, W] → [C, h, w]."""


@dataclass(frozen=True)
class Propagation:
    """Settings of the propagation; the defaults are DINO's."""

    k: int = 5
    frames: int = 7
    """Number of frames before the current one that are used, in addition to the first."""
    radius: int = 12
    """Places of the feature map in either direction."""
    temperature: float = 0.1


def _near(height: int, width: int, radius: int, device: torch.device) -> Tensor:
    """bool [hw, hw]: whether two places are within `radius` of each other along both axes."""
    y, x = (
        n.flatten()
        for n in torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
    )
    return ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)


def hand_on(
    features: Tensor, context: Sequence[tuple[Tensor, Tensor]], near: Tensor, how: Propagation
) -> Tensor:
    """The labels [L, h, w] of a frame of `features` [C, h, w], of unit length at each place.

    `context` are features and labels of the frames to take labels from; `near` bool [hw, hw] are
    the places that may be compared.
    """
    asking = features.flatten(1).T
    cosines, labels = [], []
    for known, soft in context:
        cosine = (asking @ known.flatten(1)).masked_fill_(~near, -math.inf)
        best, place = cosine.topk(min(how.k, cosine.shape[1]))
        cosines.append(best)
        labels.append(soft.flatten(1).T[place])
    best, chosen = torch.cat(cosines, 1).topk(min(how.k, sum(c.shape[1] for c in cosines)))
    weights = (best / how.temperature).softmax(1)
    taken = torch.cat(labels, 1)
    taken = taken.gather(1, chosen.unsqueeze(-1).expand(-1, -1, taken.shape[-1]))
    return (weights.unsqueeze(-1) * taken).sum(1).T.reshape(-1, *features.shape[1:])


@torch.no_grad()
def propagate(
    frames: Iterable[np.ndarray], first: np.ndarray, features: FeatureMap, how: Propagation
) -> list[np.ndarray]:
    """A mask [H, W] of each frame uint8 [H, W, 3] from that of the first, which is among them.

    A mask has the number of the object that a pixel shows, 0 for background.
    """
    ids = np.union1d([0], np.unique(first))
    start: tuple[Tensor, Tensor] | None = None
    last: deque[tuple[Tensor, Tensor]] = deque(maxlen=how.frames)
    near, masks = torch.empty(0), []
    for frame in frames:
        found = features(torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1))
        known = F.normalize(found, dim=0)
        if start is None:
            near = _near(known.shape[1], known.shape[2], how.radius, known.device)
            shown = torch.from_numpy(np.stack([first == number for number in ids]))
            shown = shown.to(known)
            start = known, F.interpolate(shown[None], known.shape[1:], mode="area")[0]
            masks.append(first)
            continue
        soft = hand_on(known, [start, *last], near, how)
        if how.frames:
            last.append((known, soft))
        whole = F.interpolate(soft[None], first.shape, mode="bilinear")[0]
        masks.append(ids[whole.argmax(0).cpu().numpy()])
    return masks


def region_similarity(mask: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union of two bool [H, W]; 1 if both are empty."""
    union = np.logical_or(mask, truth).sum()
    return float(np.logical_and(mask, truth).sum() / union) if union else 1.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels of a bool [H, W] that differ from the next one to the right, below, or both."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    edge: np.ndarray = (
        (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    )
    return edge


def boundary_accuracy(mask: np.ndarray, truth: np.ndarray, tolerance: float = 0.008) -> float:
    """F: harmonic mean of precision and recall of the boundaries of two bool [H, W].

    A boundary pixel is right within ⌈`tolerance` · diagonal⌉ pixels of the other boundary. The
    result is 1 if neither mask has a boundary, and 0 if only one has.
    """
    ours, theirs = boundary(mask), boundary(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    radius = math.ceil(tolerance * math.hypot(*mask.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (y**2 + x**2 <= radius**2).astype(np.uint8)
    near_ours, near_theirs = (cv2.dilate(e.astype(np.uint8), disk) > 0 for e in (ours, theirs))
    precision, recall = near_theirs[ours].mean(), near_ours[theirs].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def score(masks: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> dict[int, dict[str, float]]:
    """J and F (per cent) of each object in the first true mask: means over the other frames."""
    measures = {"j": region_similarity, "f": boundary_accuracy}
    pairs = list(zip(masks, truth, strict=True))[1:]
    return {
        int(number): {
            name: 100 * float(np.mean([measure(a == number, b == number) for a, b in pairs]))
            for name, measure in measures.items()
        }
        for number in np.unique(truth[0])
        if number
    }
