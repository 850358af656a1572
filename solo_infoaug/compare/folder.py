"""The folder of a run: its input and its result. Only this module has the file names.

The result of a run is only in its folder, so the process that watches may be killed at any time.
Each file except the log is written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from solo_infoaug._files import read_json, write_json

State = Literal["done", "failed", "running", "waiting"]


class RunFolder:
    """Reads and writes the files of one run.

    solo-learn reads `config`, writes into `training` and logs `metrics`; `log` is what the program
    prints.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.training = path / "training"
        self.metrics = path / "metrics.csv"
        self.log = path / "log.txt"
        self._plan = path / "run.json"
        self._result = path / "result.json"
        self._error = path / "error.json"
        self._progress = path / "progress.json"

    def lock(self) -> FileLock:
        """The lock that the process of the run holds."""
        return FileLock(self.path / ".lock")

    def write_plan(self, config: DictConfig, plan: Mapping[str, Any]) -> None:
        """Write the input of the run, and forget the result of an earlier attempt."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._error.unlink(missing_ok=True)
        self.end()
        OmegaConf.save(config, self.config)
        self._plan.write_text(json.dumps(plan, indent=2), encoding="utf-8")

    def read_plan(self) -> dict[str, Any]:
        """The plan that `write_plan` was given."""
        plan: dict[str, Any] = json.loads(self._plan.read_text(encoding="utf-8"))
        return plan

    def state(self, run_hash: str) -> State:
        """State of the run; `done` and `failed` hold only for this configuration."""
        if self.result(run_hash) is not None:
            return "done"
        if (read_json(self._error) or {}).get("hash") == run_hash:
            return "failed"
        return "running" if self._progress.is_file() else "waiting"

    def result(self, run_hash: str) -> dict[str, Any] | None:
        """The result of the run; None unless it is done."""
        result = read_json(self._result)
        return result if result is not None and result.get("hash") == run_hash else None

    def reason(self) -> str:
        """Why the run failed."""
        return str((read_json(self._error) or {}).get("reason", "unknown"))

    def share(self) -> float:
        """Share of the training that is done, 0 to 1."""
        now = read_json(self._progress)
        return float(now["step"]) / max(1.0, float(now["steps"])) if now else 0.0

    def note_step(self, step: int, steps: int) -> None:
        """Note the progress. A disk that is full for a moment does not end a run."""
        with suppress(OSError):
            write_json(self._progress, {"step": step, "steps": steps})

    def note_result(self, result: Mapping[str, Any]) -> None:
        """Note that the run is done; `result` holds its `hash`."""
        write_json(self._result, result)
        self._error.unlink(missing_ok=True)

    def note_failure(self, run_hash: str, reason: str) -> None:
        """Note that the run failed."""
        write_json(self._error, {"hash": run_hash, "reason": reason})

    def end(self) -> None:
        """Note that no process does the run any more."""
        self._progress.unlink(missing_ok=True)
