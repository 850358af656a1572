"""The folder of a run: what the run is told, and what became of it. File names are here alone.

What became of a run is in its folder alone, so whoever watches may be killed at any time. Each file
is written at once or not at all, but for the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from solo_infoaug._files import write_json

State = Literal["done", "failed", "running", "waiting"]


class RunFolder:
    """Reads and writes the files of one run.

    Attributes:
        path: of the folder.
        config: the solo-learn configuration.
        training: where solo-learn writes.
        metrics: what was logged in training.
        log: what the program printed.
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
        """Held by the process that does the run."""
        return FileLock(self.path / ".lock")

    def write_plan(self, config: DictConfig, plan: Mapping[str, Any]) -> None:
        """Say what to do; what became of an attempt before is forgotten."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._error.unlink(missing_ok=True)
        self.end()
        OmegaConf.save(config, self.config)
        self._plan.write_text(json.dumps(plan, indent=2), encoding="utf-8")

    def read_plan(self) -> dict[str, Any]:
        """What `write_plan` was given."""
        plan: dict[str, Any] = json.loads(self._plan.read_text(encoding="utf-8"))
        return plan

    def state(self, run_hash: str) -> State:
        """What became of the run: `done` and `failed` hold for this configuration only."""
        if self.result(run_hash) is not None:
            return "done"
        if (_read(self._error) or {}).get("hash") == run_hash:
            return "failed"
        return "running" if self._progress.is_file() else "waiting"

    def result(self, run_hash: str) -> dict[str, Any] | None:
        """What the run found; None unless it is done."""
        result = _read(self._result)
        return result if result is not None and result.get("hash") == run_hash else None

    def reason(self) -> str:
        """Why the run failed."""
        return str((_read(self._error) or {}).get("reason", "unknown"))

    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        now = _read(self._progress)
        return float(now["step"]) / max(1.0, float(now["steps"])) if now else 0.0

    def note_step(self, step: int, steps: int) -> None:
        """Training has come this far. A full disk for a moment is no reason to end a run."""
        with suppress(OSError):
            write_json(self._progress, {"step": step, "steps": steps})

    def note_result(self, result: Mapping[str, Any]) -> None:
        """The run is done; `result` holds its `hash`."""
        write_json(self._result, result)
        self._error.unlink(missing_ok=True)

    def note_failure(self, run_hash: str, reason: str) -> None:
        """The run failed."""
        write_json(self._error, {"hash": run_hash, "reason": reason})

    def end(self) -> None:
        """Nobody does the run any more."""
        self._progress.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
