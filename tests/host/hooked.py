"""Trains methods as `main_pretrain.py` would and writes down what came out.

    hooked.py RUNS.json OUT.json [plain]

RUNS.json is a list of [name, configuration]; test_upstream.py calls this with one solo-learn or
another in SOLO_LEARN_HOME. With `plain` nothing of solo-infoaug is registered.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor

from solo_infoaug.host import load_host
from solo_infoaug.training import pretraining as training
from solo_infoaug.twin.component import TwinBranch


def digest(tensors: dict[str, Tensor]) -> dict[str, str]:
    """A hash of each tensor's bits."""
    return {
        name: hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()[:16]
        for name, value in tensors.items()
    }


class Losses(Callback):
    """Notes everything that is logged, each step, to the last bit."""

    def __init__(self) -> None:
        self.steps: list[dict[str, str]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        values = {name: float(v).hex() for name, v in trainer.callback_metrics.items()}
        self.steps.append({**values, "total": float(outputs["loss"]).hex()})


def main(runs: Path, out: Path, plain: str = "") -> None:
    """Train all runs, one after another."""
    torch.set_num_threads(1)
    # through the hook the view branch's views cannot pass with the twins'
    TwinBranch.one_pass = False
    host = load_host()
    if plain:
        training.register = load_host
        if host.plugins is not None:
            host.plugins.clear()
    before = dict(host.methods), list(host.should_match)
    results = {}
    for name, cfg in json.loads(runs.read_text()):
        losses = Losses()
        result = training.pretrain(OmegaConf.create(cfg), callbacks=[losses])
        results[name] = {
            "steps": losses.steps,
            "state": digest(result.model.state_dict()),
            "kind": f"{type(result.model).__module__}.{type(result.model).__name__}",
        }
    results["replaced"] = (dict(host.methods), list(host.should_match)) != before
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
