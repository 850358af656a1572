"""Training from a dictionary at a URL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from omegaconf import DictConfig

from solo_infoaug.dictionary import TwinDictionary, packs
from solo_infoaug.dictionary.tools import merge
from solo_infoaug.errors import ConfigError
from solo_infoaug.training import pretrain


@pytest.fixture
def url(twins_folder: Path, tmp_path: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.put(str(twins_folder), "/twins", recursive=True)
    yield "memory://twins"
    system.rm("/twins", recursive=True)


def _losses(make_cfg: Callable[..., DictConfig], twins: str, **infoaug: Any) -> dict[str, float]:
    cfg = make_cfg(infoaug={"twins": twins, **infoaug}, max_epochs=1, logger="none")
    return pretrain(cfg).metrics


def test_a_run_from_a_bucket_is_that_from_a_folder(
    make_cfg: Callable[..., DictConfig], twins_folder: Path, url: str
) -> None:
    """Where all packs have room, bit for bit; and the run's configuration says the URL."""
    assert _losses(make_cfg, url) == _losses(make_cfg, str(twins_folder))


def test_steps_draw_in_the_order_of_the_packs(
    make_cfg: Callable[..., DictConfig],
    steps: Any,
    host: Any,
    tmp_path: Path,
    twins_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three dictionaries in three packs, of which two have room: a pass has all their patches."""
    paths = []
    for number in range(3):
        pixels = torch.full((24, 2, 3, 20, 20), number, dtype=torch.uint8)
        old = TwinDictionary.load(twins_folder)
        path = tmp_path / f"one{number}"
        TwinDictionary.create(path, pixels, old.twins, old.mi, name=f"one{number}")
        paths.append(path)
    monkeypatch.setattr(packs, "PACK_BYTES", 1)
    whole = merge(paths, tmp_path / "whole")
    index = (whole.path / "index.safetensors").stat().st_size
    room = (index + 2 * int(whole._index["pack_bytes"].max())) / 1e9
    settings = {"twins": f"file://{whole.path}", "cache_gb": room, "batch_size": 12}
    cfg = host.parse_cfg(make_cfg(infoaug=settings, seed=5))
    run = steps(host.methods["simclr"](cfg), cfg)
    branch = run.module.twin_branch
    run.trainer.num_training_batches = 4
    drawn: Counter[int] = Counter()
    for epoch, step in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)):
        run.trainer.current_epoch = epoch
        request = branch.sampler.request(step, branch.learner.position)
        assert request.how["order"] == (5, 4 * epoch + step)
        index = branch.batch(step).index
        assert torch.equal(index, branch.batch(step).index)
        assert len({int(number) // 24 for number in index}) == 1  # a pack at a time
        drawn.update(index.tolist())
    assert drawn == dict.fromkeys(range(72), 1)
    assert cfg.infoaug.twins == f"file://{whole.path}"


def test_sizes_that_cannot_be_used(make_cfg: Callable[..., DictConfig], url: str) -> None:
    for key, value in (("cache_gb", "much"), ("cache_gb", -1), ("repeats", 0)):
        with pytest.raises(ConfigError, match=rf"infoaug\.{key}"):
            pretrain(make_cfg(infoaug={"twins": url, key: value}))
    with pytest.raises(ConfigError, match=r"infoaug\.cache_gb: expected at least"):
        pretrain(make_cfg(infoaug={"twins": url, "cache_gb": 1e-9}))
