"""The next twin batch, drawn, read, pinned and copied to the device while a step runs.

What is drawn depends on seed, rank, epoch and step alone, so a batch is the same whether it is
prepared ahead or when its step begins. It is prepared ahead by a thread that does this and ends:
there is nothing to stop after training, an exception or Ctrl-C. Whatever the batch depends on is in
its `TwinRequest`; a step that asks for another one than was guessed gets its own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.views.operations import Drawn
from solo_infoaug.views.pipeline import Pipeline, draw_views, sent

THREAD = "infoaug-prefetch"


@dataclass(frozen=True)
class TwinRequest:
    """All that a twin batch depends on. Two that are equal give the same batch, bit for bit."""

    pairs: int
    """Seed of the choice of pairs."""

    views: int
    """Seed of the views."""

    device: torch.device
    dictionary: TwinDictionary
    batch_size: int
    arm: str
    top_k: int
    temporal: bool
    others: float
    pipelines: Sequence[Pipeline]
    both: bool
    """Every crop is made of the patch and of the twin."""

    seconds: float | None = None
    """How far away in time both may be shown in other windows, if at all."""


@dataclass(frozen=True)
class PreparedTwins:
    """A twin batch but for its views, which the device makes when the step begins."""

    patch: Tensor
    """uint8 [B, 3, H, W], on the device; likewise the following."""

    twin: Tensor
    index: Tensor
    drawn: list[Drawn]
    random: Tensor
    """State of torch's CPU generator after the draws of the views."""

    there: torch.cuda.Event | None
    """When the copy to the device is complete, if another stream than the current one makes it."""

    def taken(self) -> PreparedTwins:
        """The same, for the current stream."""
        if self.there is not None:
            stream = torch.cuda.current_stream(self.patch.device)
            stream.wait_event(self.there)
            # one piece of memory holds all of it, and must outlive this stream's use of it
            self.patch.record_stream(stream)
        return self


def prepare(request: TwinRequest, stream: torch.cuda.Stream | None = None) -> PreparedTwins:
    """Draw and read a twin batch, and send it to its device, by `stream` or the current one.

    Touches no state that threads share: neither torch's generators nor its default dtype.
    """
    patch, twin, index = request.dictionary.sample(
        request.batch_size,
        torch.Generator().manual_seed(request.pairs),
        arm=request.arm,
        top_k=request.top_k,
        temporal=request.temporal if request.seconds is None else request.seconds,
        others=request.others,
    )
    count, _, height, width = patch.shape
    random = torch.Generator().manual_seed(request.views)
    drawn = draw_views(request.pipelines, count, height, width, random, both=request.both)
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        parts = (tensor for one in drawn for tensor in one)
        patch, twin, index, *flat = sent([patch, twin, index, *parts], request.device)
        there = stream.record_event() if stream is not None else None
    left = iter(flat)
    drawn = [tuple(next(left) for _ in one) for one in drawn]
    return PreparedTwins(patch, twin, index, drawn, random.get_state(), there)


class _Preparation(threading.Thread):
    """Prepares one batch."""

    def __init__(self, request: TwinRequest, stream: torch.cuda.Stream | None) -> None:
        super().__init__(name=THREAD)
        self.request, self.stream = request, stream
        self.error: BaseException | None = None
        self.twins: PreparedTwins | None = None

    def run(self) -> None:
        try:
            if self.stream is not None:
                # a new thread's is the first card: to come back to it would take memory there
                torch.cuda.set_device(self.stream.device)
            self.twins = prepare(self.request, self.stream)
        except BaseException as error:  # it belongs to the step that asks for this batch
            self.error = error


class Prefetch:
    """Prepares one batch ahead. A copy, and what pickle makes of it, starts with none."""

    def __init__(self) -> None:
        self._ahead: _Preparation | None = None
        self._stream: torch.cuda.Stream | None = None

    def __reduce__(self) -> tuple[type[Prefetch], tuple[()]]:
        return Prefetch, ()

    def start(self, request: TwinRequest) -> None:
        """Begin to prepare a batch, in the place of what was prepared before."""
        self.clear()
        if request.device.type == "cuda" and (
            self._stream is None or self._stream.device != request.device
        ):
            self._stream = torch.cuda.Stream(request.device)
        ahead = _Preparation(request, self._stream)
        ahead.start()
        self._ahead = ahead

    def take(self, request: TwinRequest) -> PreparedTwins:
        """The batch: the one that was prepared ahead if it is that, else prepared now.

        Raises:
            DictionaryError: the dictionary cannot be read.
        """
        ahead = self._ended()
        if ahead is None or ahead.request != request:
            return prepare(request)
        if ahead.error is not None:
            raise ahead.error
        assert ahead.twins is not None
        return ahead.twins.taken()

    def clear(self) -> None:
        """Forget what was prepared; afterwards no thread is left."""
        self._ended()

    def _ended(self) -> _Preparation | None:
        ahead = self._ahead
        if ahead is not None:
            ahead.join()
        self._ahead = None
        return ahead
