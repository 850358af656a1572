"""Stands in for `solo_infoaug.compare.run`: results at once, and crashes on request.

FAKE_CRASH names the arm that crashes, FAKE_HOW how; a file `slow` beside the runs' folders makes
runs of InfoAug take long.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from solo_infoaug.compare import run
from solo_infoaug.compare.folder import RunFolder


def execute(folder: Path) -> None:
    plan = json.loads((folder / "run.json").read_text())
    with (folder.parent / "started.txt").open("a") as file:
        file.write(folder.name + "\n")
    while (folder.parent / "slow").exists() and plan["arm"] == "infoaug":
        RunFolder(folder).note_step(1, 2)
        time.sleep(0.05)
    if plan["arm"] == os.environ.get("FAKE_CRASH"):
        how = os.environ["FAKE_HOW"]
        if how == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            print("out of luck", flush=True)
            os._exit(7)
        raise ValueError("out of luck")
    number = int(hashlib.sha256(f"{plan['arm']} {plan['seed']}".encode()).hexdigest()[:4], 16)
    result = {
        **{key: plan[key] for key in ("method", "arm", "data", "seed", "variant", "hash")},
        "fingerprint": plan["fingerprint"],
        "metrics": {"linear": number / 655.36},
        **dict.fromkeys(("epochs", "steps", "images", "threads"), 1),
        **dict.fromkeys(("seconds", "images_per_second", "total_seconds", "memory_mib"), 1.0),
        "gpu_memory_mib": None,
        "device": "cpu",
        "versions": {},
    }
    (folder / "metrics.csv").write_text("step,train_nce_loss_step\n0,1.0\n")
    RunFolder(folder).note_result(result)


run.execute = execute


@hydra.main(version_base="1.2", config_path=None, config_name="solo_infoaug_compare_run")
def main(job: DictConfig) -> None:
    run.main.__wrapped__(job)


if __name__ == "__main__":
    main()
