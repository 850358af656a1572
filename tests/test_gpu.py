"""Training with InfoAug on a card; the kernel for MI is in information/test_triton.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from augmentations import augmentation
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from processes import python

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.host import find_host
from solo_infoaug.training import TrainingResult, pretrain
from solo_infoaug.training.batches import WholeBatches
from solo_infoaug.twin.randomness import fork_rng
from solo_infoaug.twin.sampler import THREAD, Prefetch, TwinRequest, prepare
from solo_infoaug.twin.spec import find_method, supported_methods
from solo_infoaug.views.pipeline import apply_views, build_pipeline, make_views

pytestmark = pytest.mark.gpu

_KIND = find_host().kind
METHODS = [name for name in supported_methods() if _KIND in find_method(name).hosts]
_GPU = {"accelerator": "gpu", "devices": "1"}


@pytest.fixture
def train(
    cuda: torch.device,
    make_cfg: Callable[..., DictConfig],
    twins_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., TrainingResult]:
    """Pretrain two short epochs with InfoAug on the card."""
    # else gradients add up in another order each time, and eight images make much of it
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def run(method: str, *, callbacks: tuple[Callback, ...] = (), **overrides: Any) -> Any:
        cfg = make_cfg(method, {"twins": str(twins_folder)}, **_GPU, **overrides)
        return pretrain(cfg, callbacks)

    return run


def _moved(batch: list[Any], device: torch.device) -> list[Any]:
    index, views, labels = batch
    return [index.to(device), [view.to(device) for view in views], labels.to(device)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_steps(
    cuda: torch.device, host: Any, make_cfg: Any, twins_folder: Path, steps: Any, method: str
) -> None:
    if method == "deepclusterv2":
        pytest.skip(
            "solo-learn's k-means indexes its assignments, on the CPU, by its memory, on the card, "
            "unless processes are distributed"
        )
    cfg = host.parse_cfg(make_cfg(method, {"twins": str(twins_folder)}))
    here = host.methods[method](cfg.copy())
    module = host.methods[method](cfg).to(cuda)
    run = steps(module, cfg)
    on_cpu = run.batch
    run.batch = lambda *args: _moved(on_cpu(*args), cuda)
    before = {name: p.clone() for name, p in module.backbone.named_parameters()}
    losses = run.run(3)
    assert torch.tensor(losses).isfinite().all()
    assert np.isfinite(run.logged["twin_loss"])
    assert {p.device for p in module.parameters()} == {cuda}
    assert any(not torch.equal(p, before[name]) for name, p in module.backbone.named_parameters())
    # which patches are drawn does not depend on the device
    here._trainer = run.trainer
    drawn = []
    for one in (here, module):
        drawn.append(one.twin_branch.batch(1).index.cpu())
    assert torch.equal(*drawn)


@pytest.mark.parametrize("method", ["simclr", "byol", "mocov2plus"])
def test_half_precision(train: Callable[..., TrainingResult], method: str) -> None:
    result = train(method, precision="16-mixed", max_epochs=1)
    assert np.isfinite(result.metrics["twin_loss_epoch"])
    weights = [p for p in result.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in weights)


class _Stopped(Exception):
    pass


class _Watch(Callback):
    """Notes the pairs that are drawn, and stops before an epoch."""

    def __init__(self, stop_before: int | None = None) -> None:
        self.stop_before = stop_before
        self.drawn: list[list[torch.Tensor]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        sample = pl_module.twin_branch.batch

        def watched(step: int) -> Any:
            batch = sample(step)
            self.drawn.append([batch.index.cpu(), *(view.cpu() for view in batch.views)])
            return batch

        pl_module.twin_branch.batch = watched

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.stop_before:
            raise _Stopped


@pytest.mark.parametrize("method", ["simclr", "byol", "mocov2plus"])
def test_resumed_run_goes_on(
    train: Callable[..., TrainingResult], tmp_path: Path, method: str
) -> None:
    """The same pairs and views; weights up to the order in which a card adds."""
    watches = [_Watch(), _Watch(1), _Watch()]
    whole = train(method, callbacks=(watches[0],)).model.state_dict()
    folder = tmp_path / "stopped"
    with pytest.raises(_Stopped):
        train(method, callbacks=(watches[1],), **{"checkpoint.dir": str(folder)})
    (checkpoint,) = folder.rglob("*.ckpt")
    torch.manual_seed(99)
    resumed = train(method, callbacks=(watches[2],), resume_from_checkpoint=str(checkpoint))
    expected, got = watches[0].drawn, watches[1].drawn + watches[2].drawn
    assert len(expected) == len(got) == 6
    for one, other in zip(expected, got, strict=True):
        assert torch.equal(one[0], other[0])
        for a, b in zip(one[1:], other[1:], strict=True):
            torch.testing.assert_close(a, b)
    after = resumed.model.state_dict()
    assert whole.keys() == after.keys()
    for name, value in whole.items():
        torch.testing.assert_close(
            after[name], value, rtol=1e-2, atol=1e-2, msg=f"{name}: {{}}".format
        )


@pytest.mark.slow
def test_two_cards(
    cuda: torch.device, make_cfg: Callable[..., DictConfig], twins_folder: Path, tmp_path: Path
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device; this needs two")
    cfg = make_cfg("mocov2plus", {"twins": str(twins_folder), "batch_size": 4})
    cfg.merge_with({"accelerator": "gpu", "devices": 2, "strategy": "ddp", "max_epochs": 1})
    cfg.optimizer.batch_size = 4
    (tmp_path / "cfg.json").write_text(json.dumps(OmegaConf.to_container(cfg)))
    script = Path(__file__).with_name("two_processes.py")
    python(script, tmp_path, OMP_NUM_THREADS="1")
    drawn = []
    for what in ("train", "train_ahead"):
        first, second = (
            torch.load(tmp_path / what / f"{rank}.pt", map_location="cpu") for rank in range(2)
        )
        assert not torch.equal(first["index"][0], second["index"][0])
        for name, weight in first["weights"].items():
            if "running_" not in name:
                torch.testing.assert_close(weight, second["weights"][name], rtol=0, atol=0)
        drawn.append([torch.stack(one["index"]) for one in (first, second)])
    assert all(map(torch.equal, *drawn))


def _twins(cuda: torch.device, folder: Path, step: int) -> TwinRequest:
    entry = OmegaConf.create(_ALL)
    return TwinRequest(
        pairs_seed=step,
        views_seed=100 + step,
        device=cuda,
        dictionary=TwinDictionary.load(folder),
        how={"batch_size": 16, "positives": "random", "temporal": True},
        pipelines=[build_pipeline(entry, [0.0] * 3, [1.0] * 3)],
        both=False,
    )


def test_twins_prepared_ahead_are_those_prepared_now(
    cuda: torch.device, twins_folder: Path
) -> None:
    """The copy is made by another stream, while this one is busy and memory changes hands."""
    requests = [_twins(cuda, twins_folder, step) for step in range(20)]
    ahead = Prefetch()
    busy = torch.randn(1024, 1024, device=cuda)
    for step, request in enumerate(requests):
        twins = ahead.take(request)
        if step + 1 < len(requests):
            ahead.start(requests[step + 1])
        if step and cuda.type == "cuda":
            assert twins.there is not None
        views = apply_views(request.pipelines, twins.patch, twins.twin, twins.drawn)
        busy = (busy @ busy).div_(32)
        expected = prepare(replace(request, device=torch.device("cpu")))
        pairs = [(twins.patch, expected.patch), (twins.twin, expected.twin)]
        pairs.append((twins.index, expected.index))
        for ours, theirs in zip(twins.drawn, expected.drawn, strict=True):
            assert ours.keys() == theirs.keys()
            pairs += [
                (ours[name], value) for name, value in theirs.items() if torch.is_tensor(value)
            ]
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in pairs)
        again = apply_views(request.pipelines, twins.patch, twins.twin, twins.drawn)
        assert all(map(torch.equal, views, again))
        del twins
    assert not [thread for thread in threading.enumerate() if thread.name == THREAD]


@pytest.mark.parametrize(("prefetched", "together"), [(False, None), (True, None), (True, True)])
@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_a_step_never_waits_for_the_card(
    cuda: torch.device,
    host: Any,
    make_cfg: Any,
    twins_folder: Path,
    steps: Any,
    method: str,
    prefetched: bool,
    together: bool | None,
) -> None:
    cfg = host.parse_cfg(make_cfg(method, {"twins": str(twins_folder)}))
    run = steps(host.methods[method](cfg).to(cuda), cfg)
    run.start()
    module = run.module
    branch = module.twin_branch
    branch.prefetch, branch.one_pass = prefetched, together
    module.log = module.log_dict = lambda *args, **kwargs: None  # the tests' own, which read
    batches = [_moved(run.batch(), cuda) for _ in range(3)]
    module.training_step(batches[0], 0).backward()  # libraries are set up
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (1, 2):
            module.training_step(batches[step], step).backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
        branch.close()
    torch.cuda.synchronize(cuda)


@pytest.mark.parametrize("infoaug", [False, True])
def test_a_run_is_the_same_from_either_memory(
    cuda: torch.device,
    make_cfg: Callable[..., DictConfig],
    twins_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    infoaug: bool,
) -> None:
    """`data.whole_batches` with the images on the card, and sent batch by batch."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    seen: list[list[torch.Tensor]] = []
    devices = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, _: int) -> None:
            seen[-1] += [batch[0].cpu(), *(view.cpu() for view in batch[1]), batch[2].cpu()]

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            devices.append(trainer.train_dataloader.dataset.images.device.type)

    for memory in (None, 0):
        seen.append([])
        settings = {"twins": str(twins_folder)} if infoaug else None
        keys = {"data.whole_batches": True, "data.device_memory": memory, "max_epochs": 1}
        pretrain(make_cfg("simclr", settings, **_GPU, **keys), [Watch()])
    assert devices == [cuda.type, "cpu"]
    assert len(seen[0]) == len(seen[1]) == 3 * 4
    assert all(map(torch.equal, *seen))


@pytest.mark.parametrize("room", [float("inf"), 0])
def test_a_whole_batch_never_waits_for_the_card(cuda: torch.device, room: float) -> None:
    pipeline = build_pipeline(OmegaConf.create(_ALL), [0.0] * 3, [1.0] * 3)
    images = torch.randint(0, 256, (64, 3, 40, 40), dtype=torch.uint8)
    batches = WholeBatches(images, torch.arange(64), [pipeline])
    batches.move(cuda, room)
    batches[list(range(32))]  # kernels are compiled
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        index, views, _ = batches[[5, 63, 5, *range(13)]]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert index.tolist() == [5, 63, 5, *range(13)]
    assert all(view.device == cuda and view.isfinite().all() for view in views)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("method", ["simclr", "byol", "mocov2plus"])
def test_one_pass_is_a_pass_each_in_half_precision(
    cuda: torch.device,
    host: Any,
    make_cfg: Any,
    twins_folder: Path,
    steps: Any,
    method: str,
    layout: torch.memory_format,
) -> None:
    """The numbers themselves are compared in float32, on the CPU; here both are near each other."""
    cfg = host.parse_cfg(make_cfg(method, {"twins": str(twins_folder)}))
    run = steps(host.methods[method](cfg).to(cuda, memory_format=layout), cfg)
    run.start()
    batch, state, found = _moved(run.batch(), cuda), run.module.state_dict(), []
    state = {name: value.clone() for name, value in state.items()}
    for run.module.twin_branch.one_pass in (True, False):
        run.module.load_state_dict(state)
        run.module.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.float16):
            loss = run.module.training_step(batch, 0)
        loss.backward()
        gradients = [p.grad.flatten() for p in run.module.backbone.parameters()]
        found.append((loss.detach(), torch.cat(gradients)))
    for one, other in zip(*found, strict=True):
        # half precision leaves a tenth between convolutions of two layouts, an error leaves one
        assert float((one - other).norm() / other.norm()) < 0.4


_ALL = augmentation(
    rrc={"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0},
    solarization={"prob": 0.0},
    crop_size=32,
)


@pytest.mark.parametrize("left_out", ["solarization", "color_jitter", "gaussian_blur"])
def test_views_are_the_same_on_both_devices(cuda: torch.device, left_out: str) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 48, 48), dtype=torch.uint8, generator=random)
    entry = OmegaConf.create({**_ALL, left_out: {"prob": 0.0}})
    made = []
    for device in (torch.device("cpu"), cuda):
        pipeline = build_pipeline(entry, [0.0] * 3, [1.0] * 3)
        with fork_rng(1, device):
            made.append([v.cpu() for v in make_views([pipeline], *2 * [images.to(device)])])
    for here, there in zip(*made, strict=True):
        difference = (here - there).abs()
        assert float(difference.mean()) < 1e-4
        # where a level lies on the edge between two, rounding may fall to either
        assert float((difference > 1e-3).float().mean()) < 1e-3


@pytest.mark.parametrize(
    "name", ["RandomPerspective", "RandomErasing", "RandomPlasmaShadow", "RandomRain", "kornia"]
)
def test_kornias_views_are_the_same_on_both_devices(cuda: torch.device, name: str) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 48, 48), dtype=torch.uint8, generator=random)
    pipeline = build_pipeline(augmentation(crop_size=32, **{name: True}), [0.0] * 3, [1.0] * 3)
    made = []
    for device in (torch.device("cpu"), cuda):
        with fork_rng(1, device):
            made.append([v.cpu() for v in make_views([pipeline], *2 * [images.to(device)])])
    for here, there in zip(*made, strict=True):
        assert float((here - there).abs().mean()) < 1e-3


@pytest.mark.parametrize("indexed", [True, False])
def test_randomness_forks_on_the_card(cuda: torch.device, indexed: bool) -> None:
    device = cuda if indexed else torch.device(cuda.type)
    torch.manual_seed(5)
    expected = torch.rand(4), torch.rand(4, device=device)
    torch.manual_seed(5)
    inside = []
    for seed in (1, 1, 2):
        with fork_rng(seed, device):
            inside.append((torch.rand(4), torch.rand(4, device=device).cpu()))
    assert torch.equal(torch.rand(4), expected[0])
    assert torch.equal(torch.rand(4, device=device), expected[1])
    for part in (0, 1):
        assert torch.equal(inside[0][part], inside[1][part])
        assert not torch.equal(inside[0][part], inside[2][part])
