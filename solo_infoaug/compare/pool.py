"""Runs the grid: one process for each run, or one of Hydra's launchers; resumable, and watched.

The process that runs the grid may be killed at any time. Only the current runs are lost, and start
again from the beginning.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live

from solo_infoaug.compare.board import Board
from solo_infoaug.compare.grid import Grid, Run
from solo_infoaug.training.config import quoted

_PROGRAM = [sys.executable, "-m", "solo_infoaug.compare.run"]
_QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
_POLL = 0.2  # seconds


def run_grid(
    runs: Sequence[Run], grid: Grid, *, retry_failed: bool = False, console: Console | None = None
) -> None:
    """Run the unfinished runs. Returns when none is left, even if some failed.

    After Ctrl-C, no further run starts and current runs finish. A second Ctrl-C stops them.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once no run is active.
    """
    console = console or Console(stderr=True)
    over = ("done",) if retry_failed else ("done", "failed")
    todo = [run for run in runs if run.state not in over]
    if not todo:
        return
    for run in todo:
        run.write(grid.keep_checkpoints)
    threads = grid.threads or max(1, (os.cpu_count() or 1) // grid.jobs)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    board = Board(runs, console)
    live = Live(board, console=console, refresh_per_second=2)
    with live if console.is_terminal else nullcontext():
        if grid.launcher:
            _launch(todo, grid, environment, board)
        else:
            _pool(todo, grid.jobs, environment, board, console)


def _pool(
    todo: Sequence[Run], jobs: int, environment: dict[str, str], board: Board, console: Console
) -> None:
    waiting = deque(todo)
    active: dict[str, tuple[Run, subprocess.Popen[bytes]]] = {}
    stopping = False
    try:
        while waiting or active:
            try:
                while waiting and len(active) < jobs:
                    run = waiting.popleft()
                    what = [f"folder={quoted(run.folder)}", *_QUIET]
                    process = _program(what, run.files.log, environment, run.folder)
                    active[str(run.folder)] = run, process
                time.sleep(_POLL)
                for run, process in list(active.values()):
                    if process.poll() is not None:
                        del active[str(run.folder)]
                        _note_crash(run, process.returncode)
                board.update()
            except KeyboardInterrupt:
                if stopping or not active:
                    raise
                stopping = True
                waiting.clear()
                console.print("Finishing the runs under way; Ctrl-C again to stop them.")
    finally:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if stopping:
        raise KeyboardInterrupt


def _program(
    arguments: Sequence[str], log: Path, environment: dict[str, str], cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    # a session of its own: only this process gets Ctrl-C, and decides whether runs stop
    with log.open("wb") as output:
        return subprocess.Popen(
            [*_PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )


def _note_crash(run: Run, code: int) -> None:
    """Note a run whose process wrote neither a result nor an error."""
    if run.state in ("done", "failed"):
        return
    files = run.files
    files.end()
    lines = files.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    if lines:
        why += f"; last line of {files.log.name}: {lines[-1]}"
    files.note_failure(run.hash, why)


def _launch(todo: Sequence[Run], grid: Grid, environment: dict[str, str], board: Board) -> None:
    """One Hydra multirun over the folders of the runs."""
    sweep_folder = grid.out / "launcher"
    sweep_folder.mkdir(parents=True, exist_ok=True)
    folders = ",".join(quoted(run.folder) for run in todo)
    log = sweep_folder / "log.txt"
    sweep = ["--multirun", f"folder={folders}", f"hydra.sweep.dir={quoted(sweep_folder)}"]
    process = _program([*sweep, *_QUIET[1:], *grid.launcher], log, environment)
    try:
        while process.poll() is None:
            time.sleep(_POLL)
            board.update()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    board.update()
    if process.returncode != 0:
        for run in todo:
            if run.state not in ("done", "failed"):
                why = f"the launcher ended with exit code {process.returncode}; see {log}"
                run.files.note_failure(run.hash, why)
