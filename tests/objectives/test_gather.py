"""Two gloo processes with half the batch each against one process with all of it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from solo_infoaug.objectives import fmicl_loss

WORKER = Path(__file__).with_name("gather_worker.py")


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    out = tmp_path / "found.pt"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(tmp_path / "rendezvous"), str(out)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=500)
        assert rank.returncode == 0, errors
    found = torch.load(out)

    spec = importlib.util.spec_from_file_location("gather_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    x, y, encoder = worker.data()
    for negatives in ("views", "keys"):
        encoder.zero_grad()
        views = [encoder(x), encoder(y)]
        pairs = zip(views, views[::-1], strict=True)
        losses = [fmicl_loss(a, b, "js", negatives=negatives) for a, b in pairs]
        loss = torch.stack(losses).mean()
        loss.backward()
        gathered_loss, gathered_gradient = found[negatives, True]
        torch.testing.assert_close(gathered_loss, loss.detach())
        torch.testing.assert_close(gathered_gradient, encoder.weight.grad)
        # without gathering each rank has fewer negatives, and another gradient
        _, local_gradient = found[negatives, False]
        assert not torch.allclose(local_gradient, encoder.weight.grad, rtol=1e-3)
