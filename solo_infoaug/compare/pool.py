"""Runs the grid: a process a run, or one of Hydra's launchers; resumable, and watched.

What became of a run is in its folder: `result.json`, `error.json` or neither. So whoever runs the
grid may be killed at any time and loses nothing but the runs that were under way, which start anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from solo_infoaug.compare.grid import Run
from solo_infoaug.compare.run import ERROR, PROGRESS, RESULT, write_json

State = Literal["done", "failed", "running", "waiting"]
_PROGRAM = [sys.executable, "-m", "solo_infoaug.compare.run"]
_QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
_POLL = 0.2  # seconds
LOG = "log.txt"


def state(run: Run) -> State:
    """What became of a run: `done` and `failed` hold for this configuration only."""
    for name, found in ((RESULT, "done"), (ERROR, "failed")):
        content = _read(run.folder / name)
        if content is not None and content.get("hash") == run.hash:
            return found  # type: ignore[return-value]
    return "running" if (run.folder / PROGRESS).is_file() else "waiting"


def result(run: Run) -> dict[str, Any] | None:
    """What a finished run found, under the names of this grid.

    Another grid may have made the run and called it otherwise: its swept value is fixed there.
    """
    found = _read(run.folder / RESULT) if state(run) == "done" else None
    return None if found is None else {**found, **asdict(run.cell)}


def reason(run: Run) -> str:
    """Why a run failed."""
    return str((_read(run.folder / ERROR) or {}).get("reason", "unknown"))


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def describe(run: Run) -> str:
    """One line for people."""
    cell = run.cell
    return " ".join([cell.method, cell.arm, cell.data, f"seed {cell.seed}", *cell.variant])


class Board:
    """What people see: a live table on a terminal, a line a finished run elsewhere."""

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self._runs = runs
        self._console = console
        self._states = {run.folder: state(run) for run in runs}
        self._before = self._work()
        self._start = time.monotonic()

    def _work(self) -> float:
        """How much is done, in units of cost; runs under way count by their progress."""
        return sum(
            run.cost * (1.0 if self._states[run.folder] in ("done", "failed") else _share(run))
            for run in self._runs
        )

    def seconds_left(self) -> float | None:
        """A guess from what has been done since the start; None before anything has."""
        done, elapsed = self._work(), time.monotonic() - self._start
        if done <= self._before:
            return None
        return (sum(run.cost for run in self._runs) - done) * elapsed / (done - self._before)

    def update(self) -> None:
        """Look at the runs again; without a terminal, print what has finished."""
        for run in self._runs:
            now, before = state(run), self._states[run.folder]
            self._states[run.folder] = now
            if now != before and now in ("done", "failed") and not self._console.is_terminal:
                self._console.print(self._line(run), markup=False, highlight=False, soft_wrap=True)

    def _line(self, run: Run) -> str:
        over = sum(value in ("done", "failed") for value in self._states.values())
        left = self.seconds_left()
        found = result(run)
        what = f"failed: {reason(run)}"
        if found is not None:
            what = ", ".join(f"{name} {value:.1f}" for name, value in found["metrics"].items())
            what += f" ({found['total_seconds']:.0f} s)"
        time_left = "" if left is None else f"; {_clock(left)} left"
        return f"[{over}/{len(self._runs)}] {describe(run)}: {what}{time_left}"

    def __rich__(self) -> Group:
        count = dict.fromkeys(("done", "failed", "running", "waiting"), 0)
        for value in self._states.values():
            count[value] += 1
        over = count["done"] + count["failed"]
        bar = Progress(
            TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
        )
        left = self.seconds_left()
        told = f"{_clock(left)} left" if left is not None and over < len(self._runs) else ""
        if count["failed"]:
            told += f"  [red]{count['failed']} failed[/]"
        bar.add_task(told, total=len(self._runs), completed=over)
        arms = list(dict.fromkeys(run.cell.arm for run in self._runs))
        table = Table("method", *arms, box=None)
        for method in dict.fromkeys(run.cell.method for run in self._runs):
            table.add_row(escape(method), *(self._place(method, arm) for arm in arms))
        under_way = [
            escape(f"  {describe(run)}: {100 * _share(run):.0f} %")
            for run in self._runs
            if self._states[run.folder] == "running"
        ]
        return Group(table, *under_way, bar)

    def _place(self, method: str, arm: str) -> str:
        states = [
            self._states[run.folder]
            for run in self._runs
            if (run.cell.method, run.cell.arm) == (method, arm)
        ]
        colours = {"done": "green", "failed": "red", "running": "yellow", "waiting": "dim"}
        signs = {"done": "●", "failed": "✗", "running": "◐", "waiting": "·"}
        return "".join(f"[{colours[value]}]{signs[value]}[/]" for value in states)


def _share(run: Run) -> float:
    progress = _read(run.folder / PROGRESS)
    return float(progress["step"]) / max(1.0, float(progress["steps"])) if progress else 0.0


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def run_grid(
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    threads: int | None = None,
    launcher: Sequence[str] = (),
    sweep_folder: Path,
    retry_failed: bool = False,
    keep_checkpoints: bool = False,
    console: Console | None = None,
) -> None:
    """Run what is not finished. Returns when nothing is left to do, whatever failed.

    Ctrl-C once: no further run is started, those under way are finished. Twice: they are stopped.

    Args:
        runs: of the grid.
        jobs: runs at a time, each in a process of its own.
        threads: of each of them on the CPU.
        launcher: Hydra's overrides that choose a launcher, which replaces the pool.
        sweep_folder: where a launcher may write.
        retry_failed: run again what failed.
        keep_checkpoints: do not delete a checkpoint after its evaluation.
        console: to write to.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once nothing runs any more.
    """
    console = console or Console(stderr=True)
    todo = [
        run for run in runs if state(run) not in ("done", *(() if retry_failed else ("failed",)))
    ]
    for run in todo:
        (run.folder / ERROR).unlink(missing_ok=True)
        (run.folder / PROGRESS).unlink(missing_ok=True)
        run.write(keep_checkpoints)
    if not todo:
        return
    environment = _environment(threads or max(1, (os.cpu_count() or 1) // jobs))
    board = Board(runs, console)
    with _shown(board, console):
        if launcher:
            _launch(todo, launcher, sweep_folder, environment, board)
        else:
            _pool(todo, jobs, environment, board, console)


def _environment(threads: int) -> dict[str, str]:
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, count)}


@contextmanager
def _shown(board: Board, console: Console) -> Iterator[None]:
    if not console.is_terminal:
        yield
        return
    with Live(board, console=console, refresh_per_second=2):
        yield


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
                    active[str(run.folder)] = run, _start(run, environment)
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


def _start(run: Run, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # a session of its own: Ctrl-C is for us, and we decide what becomes of the runs
    with (run.folder / LOG).open("wb") as log:
        return subprocess.Popen(
            [*_PROGRAM, f"folder='{run.folder}'", *_QUIET],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=run.folder,
            start_new_session=True,
        )


def _note_crash(run: Run, code: int) -> None:
    """A process that wrote neither a result nor an error was killed, or never came that far."""
    if state(run) in ("done", "failed"):
        return
    (run.folder / PROGRESS).unlink(missing_ok=True)
    lines = (run.folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    if lines:
        why += f"; last line of {LOG}: {lines[-1]}"
    write_json(run.folder / ERROR, {"hash": run.hash, "reason": why})


def _launch(
    todo: Sequence[Run],
    launcher: Sequence[str],
    sweep_folder: Path,
    environment: dict[str, str],
    board: Board,
) -> None:
    """One Hydra multirun over the folders of the runs."""
    sweep_folder.mkdir(parents=True, exist_ok=True)
    folders = ",".join(f"'{run.folder}'" for run in todo)
    log = sweep_folder / LOG
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *_PROGRAM,
                "--multirun",
                f"folder={folders}",
                f"hydra.sweep.dir='{sweep_folder}'",
                *_QUIET[1:],
                *launcher,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
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
            if state(run) not in ("done", "failed"):
                why = f"the launcher ended with exit code {process.returncode}; see {log}"
                write_json(run.folder / ERROR, {"hash": run.hash, "reason": why})
