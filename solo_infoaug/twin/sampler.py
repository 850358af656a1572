"""What a twin branch sees at a step: seeds → request → pairs → views.

What is drawn depends on seed, rank, epoch and step alone, so a batch is the same whether it is
prepared ahead or when its step begins. It is prepared ahead by a thread that does this and ends:
there is nothing to stop after training, an exception or Ctrl-C. Whatever the batch depends on is in
its `TwinRequest`; a step that asks for another one than was guessed gets its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.twin.config import InfoAugConfig
from solo_infoaug.twin.randomness import fork_rng
from solo_infoaug.twin.twins import check_dictionary, open_dictionary, open_if_there
from solo_infoaug.views.operations import Params
from solo_infoaug.views.pipeline import Pipeline, apply_views, draw_views, send

THREAD = "infoaug-prefetch"

BEFORE_STEPS = 2**31
"""In the place of a step's number, for what is drawn before an epoch's first one."""


# --- seeds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Position:
    """Where training is, but for the step."""

    rank: int
    epoch: int
    device: torch.device
    processes: int = 1
    steps: int | None = None
    """In an epoch, where its end is known."""


def seeds(seed: int, position: Position, step: int) -> tuple[int, int]:
    """Seeds of the choice of pairs, and of all else that is drawn at a step."""
    sequence = np.random.SeedSequence([seed, position.rank, position.epoch, step])
    pairs, rest = (n >> 1 for n in sequence.generate_state(2, np.uint64).tolist())
    return pairs, rest


def order(seed: int, position: Position, step: int) -> tuple[int, int]:
    """Seed of an order of batches, and which of all processes' in it that of a step is.

    The order goes on over epochs; those without a known end have one each.
    """
    if position.steps is None:
        seed += 1_000_003 * (position.epoch + 1)
    else:
        step += position.epoch * position.steps
    return seed, step * position.processes + position.rank


# --- one batch -------------------------------------------------------------------------------


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

    order: tuple[int, int] | None = None
    """Of a dictionary at a URL: see `TwinDictionary.sample`."""


@dataclass(frozen=True)
class TwinBatch:
    """The pairs of a step."""

    index: Tensor
    """int64 [B]: the patches, by their numbers in the dictionary."""

    views: list[Tensor]
    """float32 [B, 3, crop, crop] each: of the patches and of their twins by turns."""

    random: Tensor
    """State of torch's CPU generator after the draws of the views, where the loss's begin."""


@dataclass(frozen=True)
class PreparedTwins:
    """A twin batch but for its views, which the device makes when the step begins."""

    patch: Tensor
    """uint8 [B, 3, H, W], on the device; as are the following."""

    twin: Tensor
    index: Tensor
    drawn: list[Params]
    random: Tensor
    """As in `TwinBatch`, on the CPU."""

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

    def shown(self, request: TwinRequest) -> TwinBatch:
        """With its views."""
        views = apply_views(request.pipelines, self.patch, self.twin, self.drawn, both=request.both)
        return TwinBatch(self.index, views, self.random)


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
        order=request.order,
    )
    count, _, height, width = patch.shape
    random = torch.Generator().manual_seed(request.views)
    drawn = draw_views(request.pipelines, count, height, width, random, both=request.both)
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        drawn, (patch, twin, index) = send(drawn, request.device, patch, twin, index)
        there = stream.record_event() if stream is not None else None
    return PreparedTwins(patch, twin, index, drawn, random.get_state(), there)


# --- the next batch, ahead -------------------------------------------------------------------


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

    @property
    def pending(self) -> bool:
        """Whether a batch is prepared, or in the making."""
        return self._ahead is not None

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


# --- a run's batches -------------------------------------------------------------------------


class TwinSampler:
    """The twin batches of a run, by its settings, seed and position."""

    dictionary: TwinDictionary | None
    """None where a finished run is read whose dictionary is gone."""

    def __init__(
        self, settings: InfoAugConfig, pipelines: Sequence[Pipeline], *, seed: int, both_views: bool
    ) -> None:
        """Opens the dictionary, and notes in `settings` what it is.

        Raises:
            DictionaryError: a run that never had a dictionary has none now, or no patch a twin.
            ConfigError: more is asked for than the dictionary keeps, or no batch size is given.
        """
        if settings.batch_size is None:
            raise ConfigError("infoaug.batch_size: expected the pairs a step, got None")
        self.settings, self.pipelines = settings, pipelines
        self.seed, self.both_views = seed, both_views
        self.dictionary = open_if_there(settings)
        if self.dictionary is not None:
            check_dictionary(self.dictionary, settings)
        self.prefetch = Prefetch()

    def __getstate__(self) -> dict[str, Any]:
        """All but the dictionary, which is opened again where it lies."""
        return {name: value for name, value in vars(self).items() if name != "dictionary"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.dictionary = open_if_there(self.settings)

    def opened(self) -> TwinDictionary:
        """The dictionary, for training.

        Raises:
            DictionaryError: it cannot be opened.
        """
        if self.dictionary is None:
            self.dictionary = open_dictionary(self.settings)
            check_dictionary(self.dictionary, self.settings)
        return self.dictionary

    def request(self, step: int, position: Position) -> TwinRequest:
        """What the batch of a step is made of."""
        settings, temporal = self.settings, self.settings.temporal
        assert settings.batch_size is not None
        dictionary = self.opened()
        return TwinRequest(
            *seeds(self.seed, position, step),
            device=position.device,
            dictionary=dictionary,
            batch_size=settings.batch_size,
            arm=settings.arm,
            top_k=settings.top_k,
            temporal=bool(temporal),
            seconds=None if isinstance(temporal, bool) else float(temporal),
            others=settings.others,
            pipelines=self.pipelines,
            both=self.both_views,
            order=order(self.seed, position, step) if dictionary.stream else None,
        )

    def batch(self, step: int, position: Position) -> TwinBatch:
        """The pairs of a step; those that were prepared ahead if it is them."""
        request = self.request(step, position)
        return self.prefetch.take(request).shown(request)

    def prepare(self, step: int, position: Position) -> None:
        """Begin to prepare the batch of a step."""
        self.prefetch.start(self.request(step, position))

    @contextmanager
    def randomness(
        self, step: int, position: Position, after: Tensor | None = None
    ) -> Iterator[None]:
        """Inside, torch draws by seed, rank, epoch and step alone.

        So a resumed run draws what an uninterrupted one would, and the view branch draws what a
        run without InfoAug does.

        Args:
            step: or `BEFORE_STEPS`.
            position: of the run.
            after: the CPU generator's state to begin with, if something has been drawn already.
        """
        with fork_rng(seeds(self.seed, position, step)[1], position.device):
            if after is not None:
                torch.default_generator.set_state(after)
            yield
