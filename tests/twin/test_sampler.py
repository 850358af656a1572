"""What a step sees; twins that are prepared while one runs: the same bits, nothing left behind."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from augmentations import augmentation
from formats import as_folders
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from solo_infoaug.dictionary import TwinDictionary, pixels, writing
from solo_infoaug.errors import DictionaryError
from solo_infoaug.training import TrainingResult, pretrain
from solo_infoaug.twin import sampler
from solo_infoaug.twin.component import TwinBranch
from solo_infoaug.twin.sampler import THREAD, Position, PreparedTwins, TwinRequest, order


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert not _threads()


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, TwinRequest]]:
    """Every batch that is prepared: ahead, or when its step begins; and which it is."""
    made: list[tuple[bool, TwinRequest]] = []
    plain = sampler.prepare

    def watched(request: TwinRequest, stream: Any = None) -> PreparedTwins:
        made.append((threading.current_thread().name == THREAD, request))
        return plain(request, stream)

    monkeypatch.setattr(sampler, "prepare", watched)
    return made


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switches the preparing ahead on or off, whatever the device."""
    return lambda on: monkeypatch.setattr(TwinBranch, "prefetch", on)


@pytest.fixture
def build(
    host: Any, make_cfg: Callable[..., Any], steps: Any, twins_folder: Path
) -> Callable[..., Any]:
    """A method that prepares ahead, ready to step."""

    def make(method: str = "simclr", prefetched: bool = True, **infoaug: Any) -> Any:
        cfg = host.parse_cfg(make_cfg(method, {"twins": str(twins_folder), **infoaug}))
        torch.manual_seed(0)
        run = steps(host.methods[method](cfg), cfg)
        run.module.twin_branch.prefetch = prefetched
        return run

    return make


@pytest.fixture
def train(
    make_cfg: Callable[..., DictConfig], twins_folder: Path, ahead: Callable[[bool], None]
) -> Callable[..., TrainingResult]:
    """Pretrain two epochs of three steps, with twins prepared ahead unless told otherwise."""

    def run(
        method: str = "simclr", *callbacks: Callback, prefetched: bool = True, **overrides: Any
    ) -> TrainingResult:
        ahead(prefetched)
        cfg = make_cfg(method, {"twins": str(twins_folder), "top_k": 1}, **overrides)
        return pretrain(cfg, callbacks)

    return run


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(value, other[name], equal_nan=value.is_floating_point())
        for name, value in one.items()
    )


# W-MSE draws permutations in the step, after the views; DeepCluster V2 clusters between epochs
@pytest.mark.parametrize("method", ["simclr", "byol", "mocov2plus", "wmse", "deepclusterv2"])
def test_steps_are_the_same_bit_for_bit(
    build: Callable[..., Any], prepared: list[Any], method: str
) -> None:
    results = []
    for prefetched in (False, True):
        run = build(method, prefetched, positives="random")
        losses = run.run(7)
        run.module.twin_branch.close()
        results.append((losses, run.module.state_dict(), torch.get_rng_state()))
    (losses, weights, random), (our_losses, our_weights, our_random) = results
    np.testing.assert_array_equal(losses, our_losses)  # NaN in DeepCluster V2's first epoch
    assert _same(weights, our_weights)
    assert torch.equal(random, our_random)
    # 7 steps of epochs of 3: the first of each epoch is not the one that was prepared
    assert [early for early, _ in prepared[:7]] == 7 * [False]
    assert sum(early for early, _ in prepared[7:]) == 7
    assert sum(not early for early, _ in prepared[7:]) == 3


def test_kornias_augmentations_are_drawn_ahead_as_well(
    train: Callable[..., TrainingResult], prepared: list[Any]
) -> None:
    """Bit for bit, although Kornia draws from the generator that the view branch draws from."""
    named = augmentation(
        kornia=True, RandomPerspective={"p": 0.3}, RandomPlasmaShadow={"p": 0.5}, RandomErasing=True
    )
    runs = []
    for prefetched in (False, True):
        # which sets another default dtype while a thread draws
        override = {"infoaug.augmentations": [named], "precision": "64-true"}
        result = train("byol", prefetched=prefetched, **override)
        runs.append((result.model.state_dict(), torch.get_rng_state()))
    assert sum(early for early, _ in prepared) == 4
    (now, state), (ahead, our_state) = runs
    assert _same(now, ahead)
    assert torch.equal(state, our_state)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("byol", {}),
        ("simclr", {"accumulate_grad_batches": 2}),
        ("simclr", {"precision": "64-true"}),
    ],
)
def test_training_is_the_same_bit_for_bit(
    train: Callable[..., TrainingResult],
    prepared: list[Any],
    method: str,
    overrides: dict[str, Any],
) -> None:
    plain = train(method, prefetched=False, **overrides)
    assert not any(early for early, _ in prepared)
    prepared.clear()
    ours = train(method, **overrides)
    assert not _threads()
    # between epochs none is prepared: two of the three of each
    assert [early for early, _ in sorted(prepared, key=lambda one: one[0])] == [False] * 2 + [
        True
    ] * 4
    assert ours.metrics["twin_loss"] == plain.metrics["twin_loss"]
    assert _same(ours.model.state_dict(), plain.model.state_dict())


class _Stopped(Exception):
    pass


class _Stop(Callback):
    """Raises at a step of an epoch, when the next batch may still be in the making."""

    def __init__(self, error: BaseException, epoch: int = 0, batch: int = 1) -> None:
        self.error, self.epoch, self.batch = error, epoch, batch

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise self.error


def test_resumed_run_is_the_run_that_was_stopped(
    train: Callable[..., TrainingResult], tmp_path: Path
) -> None:
    whole = train("mocov2plus", prefetched=False).model.state_dict()
    folder = tmp_path / "stopped"
    with pytest.raises(_Stopped):
        train("mocov2plus", _Stop(_Stopped(), 1), **{"checkpoint.dir": str(folder)})
    (checkpoint,) = folder.rglob("*.ckpt")
    torch.manual_seed(99)
    resumed = train("mocov2plus", resume_from_checkpoint=str(checkpoint))
    assert _same(resumed.model.state_dict(), whole)


@pytest.mark.parametrize("error", [_Stopped(), KeyboardInterrupt()])
def test_threads_end_when_training_is_broken_off(
    train: Callable[..., TrainingResult],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    """However slow: a thread has one batch to prepare and nothing to wait for."""
    begun = threading.Event()
    plain = sampler.draw_views

    def slow(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name == THREAD:
            begun.set()
            time.sleep(0.5)
        return plain(*args, **kwargs)

    monkeypatch.setattr(sampler, "draw_views", slow)
    # Lightning ends the process after Ctrl-C
    with pytest.raises((_Stopped, KeyboardInterrupt, SystemExit)):
        train("simclr", _Stop(error))
    assert begun.is_set()
    for thread in _threads():
        thread.join(timeout=20)
    assert not _threads()


def test_what_cannot_be_read_is_the_error_of_its_step(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build()
    dictionary = run.module.twin_branch.sampler.dictionary
    sample = dictionary.sample

    def broken(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name == THREAD:
            raise DictionaryError("pixels-0000.safetensors: missing")
        return sample(*args, **kwargs)

    monkeypatch.setattr(dictionary, "sample", broken)
    run.step()
    with pytest.raises(DictionaryError, match="missing"):
        run.step()
    run.module.training_step(run.batch(), 2)  # nothing of it is left


@pytest.mark.parametrize("change", ["positives", "step", "dictionary"])
def test_another_batch_than_was_prepared_is_its_own(
    build: Callable[..., Any], prepared: list[Any], twins_folder: Path, change: str
) -> None:
    losses = []
    for prefetched in (False, True):
        run = build("simclr", prefetched)
        run.step()
        if change == "positives":
            run.module.twin_branch.settings.positives = "random"
        elif change == "dictionary":
            run.module.twin_branch.sampler.dictionary = TwinDictionary.load(twins_folder)
        number = 5 if change == "step" else 1
        losses.append(run.module.training_step(run.batch(), number).item())
        run.module.twin_branch.close()
    assert losses[0] == losses[1]
    assert [early for early, _ in prepared] == [False, False, False, True, False, True]


@pytest.mark.parametrize("how", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_begin_with_nothing_prepared(
    build: Callable[..., Any], steps: Any, make_cfg: Any, how: Callable[[Any], Any]
) -> None:
    run = build()
    run.step()
    original = run.module
    logged = original.__dict__.pop("log"), original.__dict__.pop("log_dict")
    copied = how(original)
    assert not copied.twin_branch.sampler.prefetch.pending
    assert original.twin_branch.sampler.prefetch.pending
    original.log, original.log_dict = logged
    copied.log = copied.log_dict = lambda *args, **kwargs: None
    batch = run.batch(1)
    losses = [module.training_step(batch, 1).item() for module in (original, copied)]
    assert losses[0] == losses[1]
    for module in (original, copied):
        module.twin_branch.close()


def test_two_threads_read_a_dictionary_of_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More files than stay open: they are opened and closed by both."""
    monkeypatch.setattr(writing, "_SHARD_PATCHES", 2)
    monkeypatch.setattr(pixels, "_OPEN_FILES", 3)
    content = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1, 1).expand(40, 1, 3, 4, 4)
    twins = torch.arange(40).view(-1, 2).flip(1).reshape(-1, 1)
    made = TwinDictionary.create(
        tmp_path / "twins",
        content.contiguous(),
        twins,
        torch.ones(40, 1),
        windows=[patch // 2 for patch in range(40)],
    )
    made = TwinDictionary.load(as_folders(made.path))
    assert len(set(made._files.table.file)) == 20

    def read(seed: int) -> bool:
        random = torch.Generator().manual_seed(seed)
        good = True
        for _ in range(60):
            patch, twin, index = made.sample(16, random)
            good &= bool(
                (patch[:, 0, 0, 0] == index).all() and (twin[:, 0, 0, 0] == index ^ 1).all()
            )
        return good

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(read, range(2))) == [True, True]


def test_other_windows_are_part_of_the_request(build: Callable[..., Any]) -> None:
    branch = build().module.twin_branch
    dictionary = branch.sampler.dictionary
    # the second window continues the first, a second later
    dictionary.next[:12] = torch.arange(12, 24)
    dictionary.seconds[12:] = dictionary.seconds[0] + 1.0
    dictionary.patches["shot"][:] = 0
    requests = []
    for temporal in (True, 1, 0.5):
        branch.settings.temporal = temporal
        requests.append(branch.sampler.request(0, branch.learner.position))
    within, reaching, short = requests
    assert within != reaching != short
    twins = sampler.prepare(reaching)
    batch_size, seed = reaching.how["batch_size"], reaching.pairs_seed
    again = dictionary.sample(batch_size, torch.Generator().manual_seed(seed), temporal=1.0)
    assert all(
        torch.equal(a, b)
        for a, b in zip((twins.patch, twins.twin, twins.index), again, strict=True)
    )
    assert torch.equal(twins.index, sampler.prepare(within).index)
    assert torch.equal(twins.patch, sampler.prepare(reaching).patch)
    assert not torch.equal(twins.patch, sampler.prepare(short).patch)


def test_settings_of_the_draw_reach_the_dictionary(build: Callable[..., Any]) -> None:
    plain, other = (
        build(**settings).module.twin_branch
        for settings in ({}, {"random_share": 0.5, "distinct_windows": True})
    )
    ours, theirs = (branch.sampler.request(0, branch.learner.position) for branch in (plain, other))
    patch, partner, _ = ours.dictionary.sample(
        ours.how["batch_size"],
        torch.Generator().manual_seed(ours.pairs_seed),
        random_share=0.5,
        distinct_windows=True,
    )
    made = sampler.prepare(theirs)
    assert torch.equal(made.patch, patch)
    assert torch.equal(made.twin, partner)
    assert not torch.equal(made.twin, sampler.prepare(ours).twin)


def test_draws_depend_on_nothing_that_threads_share(build: Callable[..., Any]) -> None:
    """Lightning's true precisions set another default dtype while a step runs."""
    branch = build(positives="random").module.twin_branch
    request = branch.sampler.request(3, branch.learner.position)
    state = torch.get_rng_state()
    made = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            made.append(sampler.prepare(request))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    first, *others = made
    for other in others:
        assert torch.equal(first.patch, other.patch)
        assert torch.equal(first.twin, other.twin)
        assert torch.equal(first.random, other.random)
        for ours, theirs in zip(first.drawn, other.drawn, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                torch.testing.assert_close(theirs[name], value, rtol=0, atol=0)
    assert sampler.prepare(replace(request, pairs_seed=request.pairs_seed + 1)).index.tolist() != (
        first.index.tolist()
    )


def test_only_a_card_is_prepared_for_by_itself(
    build: Callable[..., Any], prepared: list[Any]
) -> None:
    run = build()
    run.module.twin_branch.prefetch = None
    run.run(2)
    assert [early for early, _ in prepared] == [False, False]


def test_batches_repeat_and_differ_by_step_and_epoch(build: Callable[..., Any]) -> None:
    run = build("simclr")
    first, again = run.module.twin_branch, build("simclr").module.twin_branch
    a, b, c = first.batch(0), again.batch(0), first.batch(1)
    assert torch.equal(a.index, b.index)
    assert all(map(torch.equal, a.views, b.views))
    run.trainer.current_epoch = 1
    for other in (c, first.batch(0)):
        assert not torch.equal(a.views[0], other.views[0])


def test_an_order_goes_on_over_processes_steps_and_epochs() -> None:
    """Each batch of two processes has its own place; an epoch without a known end its own order."""
    cpu = torch.device("cpu")
    every = [(epoch, step, rank) for epoch in (0, 1) for step in (0, 1, 2) for rank in (0, 1)]
    known = [order(7, Position(rank, epoch, cpu, 2, 3), step) for epoch, step, rank in every]
    assert known == [(7, place) for place in range(12)]
    endless = [order(7, Position(rank, epoch, cpu, 2), step) for epoch, step, rank in every]
    assert [place for _, place in endless] == [*range(6), *range(6)]
    assert len({seed for seed, _ in endless} - {7}) == 2


def test_one_view_is_of_the_patch_and_one_of_its_twin(
    build: Callable[..., Any], twins_folder: Path
) -> None:
    branch = build("simclr").module.twin_branch
    dictionary = TwinDictionary.load(twins_folder)
    pixels = torch.zeros_like(dictionary.pixels)
    pixels[::2] = 255  # patches are white and their twins black, or the other way
    branch.sampler.dictionary.crops = lambda index, moment=0: pixels[index, 0]
    twins = branch.batch(0)
    first, second = twins.views
    brightness = (first.mean((1, 2, 3)), second.mean((1, 2, 3)))
    white = twins.index % 2 == 0
    assert ((brightness[0] > brightness[1]) == white).all()
