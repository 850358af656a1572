"""Grids that are killed, interrupted and resumed; runs that crash. The runs are stand-ins."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from rich.console import Console

from solo_infoaug.compare import Outcome, board, compare, pool
from solo_infoaug.compare import results as report
from solo_infoaug.compare.grid import Planner, parse_grid
from solo_infoaug.errors import ConfigError

Overrides = Callable[..., list[str]]
FAKE = [sys.executable, str(Path(__file__).with_name("fake_run.py"))]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(pool, "_PROGRAM", FAKE)
    if "_drawn" not in request.fixturenames:  # figures take seconds
        monkeypatch.setattr(report, "_page", lambda runs, results: "")


@pytest.fixture
def _drawn() -> None:
    """Asked for by a test that looks at the report."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the grid goes."""
    folder = tmp_path / "grid"
    (folder / "runs").mkdir(parents=True)
    return folder


def _compare(overrides: list[str], retry_failed: bool = False) -> tuple[Outcome, str]:
    text = io.StringIO()
    outcome = compare(overrides, retry_failed=retry_failed, console=Console(file=text, width=500))
    return outcome, text.getvalue()


def _started(out: Path) -> list[str]:
    file = out / "runs" / "started.txt"
    return file.read_text().split() if file.is_file() else []


def test_finished_runs_are_not_done_twice(overrides: Overrides, out: Path) -> None:
    outcome, text = _compare(overrides("jobs=2"))
    assert (outcome.done, outcome.failed, outcome.waiting) == (3, [], 0)
    assert len(_started(out)) == 3
    assert "[3/3]" in text
    assert "linear" in text
    before = (out / "results.csv").read_text()
    outcome, text = _compare(overrides())
    assert len(_started(out)) == 3
    assert text == ""
    assert (out / "results.csv").read_text() == before
    # another seed is another run, and the table has both
    outcome, _ = _compare(overrides("seeds=[0,1]"))
    assert outcome.done == 6
    assert len(_started(out)) == 6


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "ValueError: out of luck"),
        ("exit", "exit code 7; last line of log.txt: out of luck"),
        ("signal", "killed by signal 9"),
    ],
)
def test_a_crash_stops_nothing_and_is_retried_on_request(
    overrides: Overrides, out: Path, monkeypatch: pytest.MonkeyPatch, how: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_CRASH", "random")
    monkeypatch.setenv("FAKE_HOW", how)
    outcome, text = _compare(overrides())
    assert outcome.done == 2
    ((name, why),) = outcome.failed
    assert name == "simclr random custom seed 0"
    assert why.startswith(reason)
    assert f"failed: {reason}" in text
    assert "random" not in (out / "results.csv").read_text()
    monkeypatch.delenv("FAKE_CRASH")
    outcome, _ = _compare(overrides())  # not asked for
    assert len(_started(out)) == 3
    assert len(outcome.failed) == 1
    outcome, _ = _compare(overrides(), retry_failed=True)
    assert (outcome.done, outcome.failed) == (3, [])
    assert len(_started(out)) == 4


def _in_the_background(overrides: list[str]) -> subprocess.Popen[bytes]:
    program = (
        "import sys; from solo_infoaug.compare import compare, pool; "
        f"pool._PROGRAM = {FAKE!r}; compare(sys.argv[1:])"
    )
    return subprocess.Popen([sys.executable, "-c", program, *overrides], start_new_session=True)


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_killed_half_way_and_resumed_gives_the_same_table(
    overrides: Overrides, out: Path, tmp_path: Path
) -> None:
    arms = "arms=[baseline,infoaug,random]"
    (out / "runs" / "slow").touch()
    process = _in_the_background(overrides(arms))
    _wait_for(lambda: any((out / "runs").glob("*infoaug*/progress.json")))
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not (out / "results.csv").exists()
    # the run that was under way outlives its parent: it is waited for, not done twice
    threading.Timer(3.0, (out / "runs" / "slow").unlink).start()
    outcome, _ = _compare(overrides(arms))
    assert outcome.done == 3
    assert len(_started(out)) == 3
    whole = tmp_path / "whole"
    _compare(overrides(arms, f"out='{whole}'"))
    assert (out / "results.csv").read_text() == (whole / "results.csv").read_text()
    assert (out / "tables.md").read_text() == (whole / "tables.md").read_text()


def _press_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, out: Path, times: int
) -> Callable[[], list[str]]:
    """Ctrl-C while InfoAug's run is under way, so many times; then let it end."""
    pressed: list[str] = []

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if len(pressed) < times and any((out / "runs").glob("*infoaug*/progress.json")):
            pressed.append("Ctrl-C")
            if len(pressed) == times:
                (out / "runs" / "slow").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(pool, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    return lambda: pressed


def test_interrupted_once_it_finishes_what_is_under_way(
    overrides: Overrides, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out / "runs" / "slow").touch()
    pressed = _press_ctrl_c(monkeypatch, out, times=1)
    with pytest.raises(KeyboardInterrupt):
        _compare(overrides("seeds=[0,1]"))
    assert len(pressed()) == 1
    assert len(_started(out)) == 3
    assert len((out / "results.csv").read_text().splitlines()) == 1 + 3


def test_interrupted_twice_it_stops(
    overrides: Overrides, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out / "runs" / "slow").touch()
    pressed = _press_ctrl_c(monkeypatch, out, times=2)
    with pytest.raises(KeyboardInterrupt):
        _compare(overrides())
    assert len(pressed()) == 2
    assert len((out / "results.csv").read_text().splitlines()) == 1 + 2
    outcome, _ = _compare(overrides())
    assert (outcome.done, outcome.failed) == (3, [])


def test_a_run_shared_by_two_grids_has_the_name_that_each_gives_it(
    overrides: Overrides, out: Path
) -> None:
    _compare(overrides("arms=infoaug", "infoaug.weight=3"))
    _compare(overrides("arms=infoaug", "infoaug.weight=1,3", "report=ablation"))
    assert len(_started(out)) == 2
    assert "weight" not in (out / "tables.md").read_text()
    header = (out / "ablation" / "tables.md").read_text().splitlines()[2]
    assert header == "| method | InfoAug, weight=1 | InfoAug, weight=3 |"


def test_sigterm_stops_the_runs_and_writes_what_is_finished(
    overrides: Overrides, out: Path
) -> None:
    (out / "runs" / "slow").touch()
    process = _in_the_background(overrides("report=tables"))
    _wait_for(lambda: any((out / "runs").glob("*infoaug*/progress.json")))
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert len((out / "tables" / "results.csv").read_text().splitlines()) == 1 + 2
    # nothing holds the run that was under way
    (folder,) = (out / "runs").glob("*infoaug*")
    with FileLock(folder / ".lock", timeout=5):
        assert not (folder / "result.json").exists()


def test_live_table_shows_what_became_of_each_run(
    overrides: Overrides, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRASH", "random")
    monkeypatch.setenv("FAKE_HOW", "raise")
    _compare(overrides())
    runs = Planner(parse_grid(overrides("seeds=[0,1]"))).plan()
    (started,) = (run for run in runs if run.cell.arm == "infoaug" and run.cell.seed == 1)
    started.folder.mkdir()
    (started.folder / "progress.json").write_text('{"step": 1, "steps": 4}')
    console = Console(file=io.StringIO(), record=True, width=100)
    console.print(board.Board(runs, console))
    text = console.export_text()
    assert [line.split() for line in text.splitlines()[:2]] == [
        ["method", "baseline", "random", "infoaug"],
        ["simclr", "●·", "✗·", "●◐"],
    ]
    assert "simclr infoaug custom seed 1: 25 %" in text
    assert "3/6" in text
    assert "1 failed" in text


def test_two_processes_do_not_run_the_same_grid(overrides: Overrides, out: Path) -> None:
    with (
        FileLock(out / ".lock"),
        pytest.raises(ConfigError, match="another process runs the grid"),
    ):
        compare(overrides())


def test_hydra_launcher_runs_the_same(
    overrides: Overrides, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRASH", "random")
    monkeypatch.setenv("FAKE_HOW", "raise")
    outcome, _ = _compare(overrides("hydra/launcher=basic"))
    assert outcome.done == 2
    assert [why for _, why in outcome.failed] == ["ValueError: out of luck"]
    pooled = tmp_path / "pooled"
    _compare(overrides(f"out='{pooled}'"))
    assert (out / "results.csv").read_text() == (pooled / "results.csv").read_text()


def test_a_launcher_that_is_not_there_is_an_error(overrides: Overrides, out: Path) -> None:
    outcome, _ = _compare(overrides("hydra/launcher=carrier_pigeon"))
    assert outcome.done == 0
    assert all("the launcher ended with exit code" in why for _, why in outcome.failed)
    assert "carrier_pigeon" in (out / "launcher" / "log.txt").read_text()


@pytest.mark.usefixtures("_drawn")
def test_report_is_one_file(
    overrides: Overrides, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CRASH", "baseline")
    monkeypatch.setenv("FAKE_HOW", "raise")
    _compare(overrides("arms=[baseline,infoaug]", "infoaug.weight=0.1,1", "jobs=2"))
    page = (out / "report.html").read_text()
    assert 'src="data:image/png;base64,' in page
    assert "href" not in page
    assert page.count("linear probe over the swept number") == 1
    assert "InfoAug, weight=0.1" in page
    assert "simclr baseline custom seed 0: ValueError: out of luck" in page
