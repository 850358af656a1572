"""`solo-infoaug compare`: methods × arms × data × seeds, collected into tables and figures."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from rich.console import Console

from solo_infoaug.errors import ConfigError

if TYPE_CHECKING:
    from solo_infoaug.compare.grid import Run


@dataclass(frozen=True)
class Outcome:
    """The result of a grid."""

    files: list[Path]
    """Results, tables and report."""
    done: int
    failed: list[tuple[str, str]]
    """Runs that failed, and why."""
    waiting: int
    runs: list[Run]
    """All runs of the grid, finished or not."""


def compare(
    overrides: Sequence[str] = (), *, retry_failed: bool = False, console: Console | None = None
) -> Outcome:
    """Run the unfinished runs of a grid, and write tables and figures of the finished ones.

    `overrides` are in Hydra's grammar; see configs/compare/compare.yaml. Progress goes to standard
    error unless there is a `console`.

    Raises:
        ConfigError: an override cannot be used, or another process runs this grid.
        DictionaryError: there is no twin dictionary.
        OutputError: `out` or `report` cannot be written.
        KeyboardInterrupt: after Ctrl-C; the results of finished runs have been written.
        SystemExit: after SIGTERM, which schedulers send; the results of finished runs have been
            written, and the others have been stopped.
    """
    from solo_infoaug._files import make_output_folder
    from solo_infoaug.compare.grid import Planner, parse_grid
    from solo_infoaug.compare.pool import run_grid
    from solo_infoaug.compare.results import write_results
    from solo_infoaug.mining.workers import handled

    grid = parse_grid(overrides)
    for name, folder in (("out", grid.out), ("report", grid.report)):
        make_output_folder(folder, name)
    try:
        # SIGTERM unwinds the stack, which stops the runs
        ended = handled(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with ended, FileLock(grid.out / ".lock", timeout=0):
            runs = Planner(grid, workers=grid.jobs).plan()
            try:
                run_grid(runs, grid, retry_failed=retry_failed, console=console)
            finally:
                files = write_results(runs, grid.report)
    except Timeout as error:
        raise ConfigError(
            f"out: another process runs the grid in {grid.out}; wait for it, or choose another out"
        ) from error
    states = [run.state for run in runs]
    return Outcome(
        files,
        states.count("done"),
        [(run.title, run.files.reason()) for run in runs if run.state == "failed"],
        len(runs) - states.count("done") - states.count("failed"),
        runs,
    )
