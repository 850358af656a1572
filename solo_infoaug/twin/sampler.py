"""The twins of a step: seeds → request → pairs → views.

All draws depend only on seed, rank, epoch and step, so a batch is the same whether it is prepared
ahead or when its step begins. A thread prepares one batch and ends, so there is nothing to stop
after training, an exception or Ctrl-C. A `TwinRequest` holds everything that a batch depends on. If
a step's request is not the one that was guessed, its batch is prepared anew.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
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
from solo_infoaug.twin.run_dictionary import check_dictionary, open_dictionary, open_if_there
from solo_infoaug.views.operations import Params
from solo_infoaug.views.pipeline import Pipeline, apply_views, draw_views, send

THREAD = "infoaug-prefetch"

BEFORE_STEPS = 2**31
"""Stands for a step's number in draws before the first step of an epoch."""

# Settings that `TwinDictionary.sample` takes by the same names.
_SAMPLED = ["batch_size", "positives", "top_k", "without_twin_share", "random_share"]
_SAMPLED += ["distinct_windows"]


# --- seeds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Position:
    """Where training is, without the step."""

    rank: int
    epoch: int
    device: torch.device
    processes: int = 1
    steps: int | None = None
    """Steps of an epoch, if known."""


def seeds(seed: int, position: Position, step: int) -> tuple[int, int]:
    """Seeds of the choice of pairs, and of all other draws of a step."""
    sequence = np.random.SeedSequence([seed, position.rank, position.epoch, step])
    pairs, rest = (n >> 1 for n in sequence.generate_state(2, np.uint64).tolist())
    return pairs, rest


def order(seed: int, position: Position, step: int) -> tuple[int, int]:
    """Seed of an order of batches, and the number in it of this process's batch of a step.

    The order continues over epochs. If the length of epochs is unknown, each has an order of its
    own.
    """
    if position.steps is None:
        seed += 1_000_003 * (position.epoch + 1)
    else:
        step += position.epoch * position.steps
    return seed, step * position.processes + position.rank


# --- one batch -------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwinRequest:
    """Everything that a twin batch depends on. Equal requests give the same batch, bit for bit."""

    pairs_seed: int
    """Seed of the choice of pairs."""

    views_seed: int
    """Seed of the views."""

    device: torch.device
    dictionary: TwinDictionary
    how: Mapping[str, Any]
    """Arguments of `TwinDictionary.sample`."""

    pipelines: Sequence[Pipeline]
    both: bool
    """Make each crop of both patch and twin."""

    seconds: float | None = None
    """In the place of `temporal`, where true and one second would be equal."""


@dataclass(frozen=True)
class TwinBatch:
    """The pairs of a step."""

    index: Tensor
    """int64 [B]: the patches, by their numbers in the dictionary."""

    views: list[Tensor]
    """float32 [B, 3, crop, crop] each: alternately of the patches and of their twins."""

    random: Tensor
    """State of torch's CPU generator after the draws of the views; those of the loss follow."""


@dataclass(frozen=True)
class PreparedTwins:
    """A twin batch without its views, which the device makes when the step begins."""

    patch: Tensor
    """uint8 [B, 3, H, W], on the device; as are the following."""

    twin: Tensor
    index: Tensor
    drawn: list[Params]
    random: Tensor
    """As in `TwinBatch`, on the CPU."""

    there: torch.cuda.Event | None
    """The end of the copy to the device, if another stream makes it."""

    def taken(self) -> PreparedTwins:
        """The same batch, ready for the current stream."""
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

    It uses no state that threads share, neither torch's generators nor its default dtype.
    """
    generator = torch.Generator().manual_seed(request.pairs_seed)
    reach = {} if request.seconds is None else {"temporal": request.seconds}
    how = {**request.how, **reach}
    patch, twin, index = request.dictionary.sample(generator=generator, **how)
    count, _, height, width = patch.shape
    random = torch.Generator().manual_seed(request.views_seed)
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
                # a new thread starts on the first GPU, where a return to it would take memory
                torch.cuda.set_device(self.stream.device)
            self.twins = prepare(self.request, self.stream)
        except BaseException as error:  # raised in the step that takes this batch
            self.error = error


class Prefetch:
    """Prepares one batch ahead. Copies, also by pickle, start without one."""

    def __init__(self) -> None:
        self._ahead: _Preparation | None = None
        self._stream: torch.cuda.Stream | None = None

    def __reduce__(self) -> tuple[type[Prefetch], tuple[()]]:
        return Prefetch, ()

    @property
    def pending(self) -> bool:
        """Whether a batch is prepared or being prepared."""
        return self._ahead is not None

    def start(self, request: TwinRequest) -> None:
        """Begin to prepare a batch; an earlier one is discarded."""
        self.clear()
        if request.device.type == "cuda" and (
            self._stream is None or self._stream.device != request.device
        ):
            self._stream = torch.cuda.Stream(request.device)
        ahead = _Preparation(request, self._stream)
        ahead.start()
        self._ahead = ahead

    def take(self, request: TwinRequest) -> PreparedTwins:
        """The batch, from what was prepared ahead if that fits the request, else prepared now.

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
        """Discard what was prepared, and wait for the thread to end."""
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
    """None for a finished run whose dictionary is gone."""

    def __init__(
        self, settings: InfoAugConfig, pipelines: Sequence[Pipeline], *, seed: int, both_views: bool
    ) -> None:
        """Open the dictionary, and note in `settings` which one it is.

        Raises:
            DictionaryError: there is no dictionary, or no patch in it has a twin.
            ConfigError: a setting needs more than the dictionary keeps, or there is no batch size.
        """
        if settings.batch_size is None:
            raise ConfigError("infoaug.batch_size: expected the number of pairs per step, got None")
        self.settings, self.pipelines = settings, pipelines
        self.seed, self.both_views = seed, both_views
        self.dictionary = open_if_there(settings)
        if self.dictionary is not None:
            check_dictionary(self.dictionary, settings)
        self.prefetch = Prefetch()

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the dictionary, which is opened again from its place."""
        return {name: value for name, value in vars(self).items() if name != "dictionary"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.dictionary = open_if_there(self.settings)

    def opened(self) -> TwinDictionary:
        """The dictionary, for training; a DictionaryError if it cannot be opened."""
        if self.dictionary is None:
            self.dictionary = open_dictionary(self.settings)
            check_dictionary(self.dictionary, self.settings)
        return self.dictionary

    def request(self, step: int, position: Position) -> TwinRequest:
        """The request for the batch of a step."""
        dictionary = self.opened()
        how = {name: getattr(self.settings, name) for name in _SAMPLED}
        how["order"] = order(self.seed, position, step) if dictionary.stream else None
        temporal = self.settings.temporal
        how["temporal"] = bool(temporal)
        return TwinRequest(
            *seeds(self.seed, position, step),
            device=position.device,
            dictionary=dictionary,
            how=how,
            pipelines=self.pipelines,
            both=self.both_views,
            seconds=None if isinstance(temporal, bool) else float(temporal),
        )

    def batch(self, step: int, position: Position) -> TwinBatch:
        """The pairs of a step, prepared ahead or now."""
        request = self.request(step, position)
        return self.prefetch.take(request).shown(request)

    def prepare(self, step: int, position: Position) -> None:
        """Begin to prepare the batch of a step."""
        self.prefetch.start(self.request(step, position))

    @contextmanager
    def randomness(
        self, step: int, position: Position, after: Tensor | None = None
    ) -> Iterator[None]:
        """Inside, torch's draws depend only on seed, rank, epoch and step.

        A resumed run therefore draws the same as an uninterrupted one, and the view branch the same
        as a run without InfoAug. If there have been draws already, `after` is the state of the CPU
        generator to start from.
        """
        with fork_rng(seeds(self.seed, position, step)[1], position.device):
            if after is not None:
                torch.default_generator.set_state(after)
            yield
