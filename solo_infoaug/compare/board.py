"""The display of a grid that is running."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from solo_infoaug.compare.grid import Run
from solo_infoaug.mining.status import span

_SIGNS = {"done": "[green]●[/]", "failed": "[red]✗[/]"}
_SIGNS |= {"running": "[yellow]◐[/]", "waiting": "[dim]·[/]"}


class Board:
    """The display: a live table on a terminal, otherwise one line for each finished run."""

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self._runs = runs
        self._console = console
        self._states = {run.folder: run.state for run in runs}
        self._before = self._work()
        self._start = time.monotonic()

    def _work(self) -> float:
        """Finished work in units of cost; current runs count by their progress."""
        return sum(
            run.cost
            * (1.0 if self._states[run.folder] in ("done", "failed") else run.files.share())
            for run in self._runs
        )

    def seconds_left(self) -> float | None:
        """Estimate from the work since the start; None before there is any."""
        done, elapsed = self._work(), time.monotonic() - self._start
        if done <= self._before:
            return None
        return (sum(run.cost for run in self._runs) - done) * elapsed / (done - self._before)

    def update(self) -> None:
        """Read the states of the runs again; without a terminal, print finished runs."""
        for run in self._runs:
            now, before = run.state, self._states[run.folder]
            self._states[run.folder] = now
            if now != before and now in ("done", "failed") and not self._console.is_terminal:
                self._console.print(self._line(run), markup=False, highlight=False, soft_wrap=True)

    def _line(self, run: Run) -> str:
        over = sum(value in ("done", "failed") for value in self._states.values())
        left = self.seconds_left()
        result = run.result
        what = f"failed: {run.files.reason()}"
        if result is not None:
            what = ", ".join(f"{name} {value:.1f}" for name, value in result["metrics"].items())
            what += f" ({result['total_seconds']:.0f} s)"
        time_left = "" if left is None else f"; {span(left)} left"
        return f"[{over}/{len(self._runs)}] {run.title}: {what}{time_left}"

    def __rich__(self) -> Group:
        count = Counter(self._states.values())
        over = count["done"] + count["failed"]
        bar = Progress(
            TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
        )
        left = self.seconds_left()
        told = f"{span(left)} left" if left is not None and over < len(self._runs) else ""
        if count["failed"]:
            told += f"  [red]{count['failed']} failed[/]"
        bar.add_task(told, total=len(self._runs), completed=over)
        arms = list(dict.fromkeys(run.cell.arm for run in self._runs))
        table = Table("method", *arms, box=None)
        for method in dict.fromkeys(run.cell.method for run in self._runs):
            table.add_row(escape(method), *(self._signs(method, arm) for arm in arms))
        under_way = [
            escape(f"  {run.title}: {100 * run.files.share():.0f} %")
            for run in self._runs
            if self._states[run.folder] == "running"
        ]
        return Group(table, *under_way, bar)

    def _signs(self, method: str, arm: str) -> str:
        return "".join(
            _SIGNS[self._states[run.folder]]
            for run in self._runs
            if (run.cell.method, run.cell.arm) == (method, arm)
        )
