"""What `training/test_features.py` and `test_gpu.py` run in two processes; not a test by itself.

    two_processes.py TRAIN LOSSES...

Trains with the configuration in the folder TRAIN, twice, and computes a loss with that in each of
the others.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from slim_backbone import install
from torch import distributed, nn

import solo_infoaug
from solo_infoaug.training import pretrain
from solo_infoaug.twin.component import TwinBranch


def losses(folders: list[Path]) -> None:
    """Each process's share of the twin loss, of its half of the batch."""
    host = solo_infoaug.register()
    rank = distributed.get_rank()
    for folder in folders:
        cfg = host.parse_cfg(OmegaConf.create(json.loads((folder / "cfg.json").read_text())))
        module: Any = host.methods[cfg.method](cfg)
        module.log = module.log_dict = lambda *args, **kwargs: None
        state = torch.load(folder / "state.pt")
        module.load_state_dict(state["weights"])
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.eval()
        index, views, labels = state["batch"]
        half = slice(rank * len(index) // 2, (rank + 1) * len(index) // 2)
        batch = [index[half], [view[half] for view in views], labels[half]]
        loss = float(module.twin.training_step(batch, 0))
        (folder / f"{rank}.json").write_text(json.dumps(loss))
    distributed.barrier()


class Watch(Callback):
    """Notes which patches each process draws, and the weights that it ends with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: list[torch.Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        sample = pl_module.twin_branch.batch

        def watched(step: int) -> Any:
            batch = sample(step)
            self.index.append(batch.index)
            return batch

        pl_module.twin_branch.batch = watched

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        torch.save(
            {"index": self.index, "weights": pl_module.state_dict()},
            self.folder / f"{trainer.global_rank}.pt",
        )


if __name__ == "__main__":
    install(solo_infoaug.register(), pytest.MonkeyPatch())
    trained, *others = map(Path, sys.argv[1:])
    os.environ.setdefault("SOLO_INFOAUG_CACHE", str(trained / "cache"))
    for name in ("train", "train_ahead"):
        TwinBranch.prefetch = name == "train_ahead"
        cfg = OmegaConf.create(json.loads((trained / "cfg.json").read_text()))
        pretrain(cfg, [Watch(trained / name)])
        # Lightning has started the second process, and is not to start it again
        os.environ.setdefault("LOCAL_RANK", "0")
    if others:
        losses(others)
