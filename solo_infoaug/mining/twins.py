"""From trajectories to twins."""

from __future__ import annotations

import numpy as np
import torch

from solo_infoaug.information import entropy, pairwise_mutual_information


def trajectories(
    tracks: np.ndarray, seen: np.ndarray, representation: str
) -> tuple[np.ndarray, np.ndarray]:
    """What enters the estimator, float64 [P, T', d], and where it is known, bool [P, T'].

    Args:
        tracks: [T, P, D] in pixels.
        seen: bool [T, P].
        representation: "position" (pixels, T' = T, d = D), "velocity" (pixels a frame, T' = T − 1,
            d = D) or "both" (positions beside velocities, each scaled to spread 1 over the shot,
            T' = T − 1, d = 2D).
    """
    paths, known = tracks.astype(np.float64).swapaxes(0, 1), seen.T
    if representation != "position":
        steps, both = np.diff(paths, axis=1), known[:, 1:] & known[:, :-1]
        if representation == "both":
            places = paths[:, 1:] - paths[:, :1]
            units = [max(float(part[both].std()), 1e-9) for part in (places, steps)]
            steps = np.concatenate([places / units[0], steps / units[1]], axis=2)
        paths, known = steps, both
    return np.ascontiguousarray(paths), np.ascontiguousarray(known)


def information(
    paths: np.ndarray, known: np.ndarray, estimator: str = "3kl", k: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """MI of all pairs, float32 [P, P] with NaN on the diagonal, and entropies, float32 [P]; nats.

    Args:
        paths: [P, T, d].
        known: bool [P, T]; a pair uses the samples that both have.
    """
    x = torch.from_numpy(paths)
    mask = None if known.all() else torch.from_numpy(known)
    mi = pairwise_mutual_information(x, estimator=estimator, k=k, mask=mask)
    pairs = mi.float().numpy().copy()
    np.fill_diagonal(pairs, np.nan)
    return pairs, entropy(x, k=k, mask=mask).float().numpy()


def motion_noise(motion: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """How much each patch's velocity varies, float64 [P]: RMS about its mean, pixels a frame.

    A patch that rests, or moves on evenly, varies by the tracker's noise alone and carries no
    information.

    Args:
        motion: [T, P, D] in pixels.
        seen: bool [T, P].
    """
    steps = np.diff(motion.astype(np.float64), axis=0)
    known = (seen[1:] & seen[:-1])[..., None]
    count = np.maximum(known.sum(axis=0), 1)
    mean = (steps * known).sum(axis=0) / count
    return np.sqrt((((steps - mean) * known) ** 2).sum(axis=(0, 2)) / count[:, 0])


def best_partners(
    mi: np.ndarray, allowed: np.ndarray, top_k: int = 5, min_mi: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The partners of highest MI of each patch.

    Args:
        mi: [P, P] nats, NaN where there is no estimate.
        allowed: bool [P, P], which pairs may be twins.
        top_k: K.
        min_mi: a twin needs more (nats).

    Returns:
        int64 [P, K], best first, -1 where there is none, and their MI float32 [P, K], 0 there.
    """
    count = len(mi)
    score = np.where(allowed & ~np.eye(count, dtype=bool) & (mi > min_mi), mi, -np.inf)
    best = np.argsort(-score, axis=1, kind="stable")[:, :top_k]
    value = np.take_along_axis(score, best, axis=1)
    twins = np.full((count, top_k), -1, np.int64)
    found = np.zeros((count, top_k), np.float32)
    good = np.isfinite(value)
    twins[:, : best.shape[1]][good] = best[good]
    found[:, : best.shape[1]][good] = value[good]
    return twins, found


def apart(centres: np.ndarray, size: float) -> np.ndarray:
    """bool [P, P]: pairs of square patches that share no pixel of the first frame."""
    distance = np.abs(centres[:, None] - centres[None]).max(axis=2)
    return distance >= size - 0.5
