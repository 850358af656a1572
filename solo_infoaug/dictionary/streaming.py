"""Draws from packs that are fetched from a bucket, some at a time."""

from __future__ import annotations

import numpy as np
import torch

from solo_infoaug.dictionary.bucket import Bucket
from solo_infoaug.dictionary.index import Index
from solo_infoaug.dictionary.pixels import PixelFiles
from solo_infoaug.dictionary.sampling import draw
from solo_infoaug.dictionary.shuffling import PackOrder, Visit
from solo_infoaug.errors import DictionaryError


class Stream:
    """The packs of a dictionary in a bucket: the current ones and the next ones.

    If all packs fit, they are fetched once and used like a local folder. Otherwise half of the room
    is for the packs of the current visit and half for those of the next, which are fetched
    meanwhile.

    Raises:
        ConfigError: there is no room for two packs.
    """

    def __init__(
        self, bucket: Bucket, index: Index, pixels: PixelFiles, cache_gb: float, repeats: int
    ) -> None:
        self.url, self.cache_gb, self.repeats = bucket.url, cache_gb, repeats
        sizes = index["pack_bytes"].tolist()
        room = bucket.hold(bucket.info["packs"], sizes)
        self.partial = sum(sizes) > room
        """Whether not all packs have room."""
        first, pack = (index[name].numpy() for name in ("block_first", "block_file"))
        anchors, without = (index[name].numpy() for name in ("anchors", "without_twin"))
        half = room // 2
        self._order = PackOrder(sizes, anchors, first, pack, half, repeats)
        self._without_twin = PackOrder(sizes, without, first, pack, half, repeats)
        self._bucket, self._pixels = bucket, pixels
        self._here: Visit | None = None
        self._count = 0

    def draw(
        self, order: tuple[int, int] | None, count: int, lone: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches with a twin, int64 [count], and patches without one, int64 [lone].

        The latter are from the same packs, by `generator`; for `order` see `TwinDictionary.sample`.

        Raises:
            DictionaryError: the current packs hold no patch without a twin.
        """
        seed, turn = order if order is not None else (0, self._count)
        self._count = turn + 1
        pieces = self._order.draws(seed, turn * count, count)
        latest = pieces[-1][0]
        if latest != self._here:
            self._here = latest
            _, _, following = self._order.visit(seed, turn * count + count - 1)
            kept = {pack for visit, _ in pieces for pack in visit.packs}
            self._pixels.keep(kept)
            self._bucket.fetch_ahead([*latest.packs, *following.packs])
        index = torch.from_numpy(np.concatenate([rows for _, rows in pieces]))
        if not lone:
            return index, index[:0]
        rows = self._without_twin.rows_of(latest)
        if not len(rows):
            raise DictionaryError(
                f"{self.url}: in some packs every patch has a twin; use without_twin_share=0"
            )
        return index, torch.from_numpy(rows)[draw(len(rows), lone, generator)]
