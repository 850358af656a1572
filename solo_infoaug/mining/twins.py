"""The twins of a window's patches, by one signal or by two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from solo_infoaug.mining.background import Patches
from solo_infoaug.mining.candidates import BORDER, STATIC, TWIN, find_candidates
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.pairing import Partners, find_partners


@dataclass(frozen=True)
class Twins:
    """`reason` uint8 [P], the result for each patch; `moving` int64 [M], the patches that passed
    the gate, and their `partners`. `record` has the thresholds."""

    reason: np.ndarray
    moving: np.ndarray
    partners: Partners
    record: dict[str, Any]


def find_twins(patches: Patches, config: MineConfig) -> Twins:
    """Twins by the signal that `config` names; with "both", by colour where motion finds none."""
    if config.signal != "both":
        return _by(config.signal, patches, config)
    return _joined(_by("motion", patches, config), _by("colour", patches, config))


def _by(signal: str, patches: Patches, config: MineConfig) -> Twins:
    found = find_candidates(patches, config, signal)
    partners = find_partners(
        found.samples, found.known, found.allowed, config, found.min_mi, found.depth
    )
    found.reason[found.moving[partners.twins[:, 0] >= 0]] = TWIN
    return Twins(found.reason, found.moving, partners, found.record)


def _joined(first: Twins, second: Twins) -> Twins:
    """The twins of `first`, and those of `second` of the patches that have none there.

    Motion and colour together, as one signal, find fewer twins than motion alone: neighbours that
    move as one differ in colour.
    """
    moving = np.union1d(first.moving, second.moving)
    one, other = (_among(moving, found) for found in (first, second))
    # Without a twin by either, what was estimated by the first stays
    by_first = np.isin(moving, first.moving) & (other.twins[:, 0] < 0)
    by_first |= one.twins[:, 0] >= 0
    rows = by_first[:, None]
    partners = Partners(
        twins=np.where(rows, one.twins, other.twins),
        mi=np.where(rows, one.mi, other.mi),
        p_value=np.where(rows, one.p_value, other.p_value),
        entropies=np.where(by_first, one.entropies, other.entropies),
        pairs=np.where(rows, one.pairs, other.pairs),
        null=np.concatenate([one.null, other.null]),
    )
    # Where the gate let only the second pass, its result says more
    told = np.isin(first.reason, (STATIC, BORDER)) & (second.reason != STATIC)
    told |= second.reason == TWIN
    reason = np.where(told & (first.reason != TWIN), second.reason, first.reason)
    return Twins(reason, moving, partners, {**first.record, **second.record})


def _among(moving: np.ndarray, found: Twins) -> Partners:
    """The partners of `found`, numbered among `moving` [M], which holds those of `found`."""
    rows, old, count = np.searchsorted(moving, found.moving), found.partners, len(moving)
    top_k = old.twins.shape[1]
    twins, mi = np.full((count, top_k), -1), np.zeros((count, top_k), np.float32)
    p_value, entropies = np.ones_like(mi), np.full(count, -np.inf, np.float32)
    pairs = np.full((count, count), np.nan, np.float32)
    twins[rows] = np.where(old.twins >= 0, np.append(rows, -1)[old.twins], -1)
    mi[rows], p_value[rows], entropies[rows] = old.mi, old.p_value, old.entropies
    pairs[np.ix_(rows, rows)] = old.pairs
    return Partners(twins, mi, p_value, entropies, pairs, old.null)
