"""How far mining is: a bar in its own terminal, and a file that `mine --status` reads elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from solo_infoaug._files import printable, read_json, write_text
from solo_infoaug.dictionary.format import LOCK, MANIFEST
from solo_infoaug.errors import DictionaryError
from solo_infoaug.mining.corpus import shown_member
from solo_infoaug.mining.inputs import Source
from solo_infoaug.mining.ledger import Outcome
from solo_infoaug.mining.search import SOURCES, STATUS

# Seconds between two writings of the file.
_EVERY = 2.0
# So many of the last failures are named.
_NAMED = 5
_KINDS = {"store": "store", "video": "video", "died": "worker died"}


class Meter:
    """Counts what is done. Leaves its file behind when it ends by an exception."""

    def __init__(self, folder: Path, total: int, todo: int, progress: bool) -> None:
        self._file = folder / STATUS
        self._state: dict[str, Any] = {
            "started": time.time(),
            "total": total,
            "before": total - todo,
            "done": total - todo,
            "videos": 0,
            "seconds": 0.0,
            "failures": {},
            "last_failures": [],
        }
        self._kinds: Counter[str] = Counter()
        self._written = 0.0
        self._bar = Progress(console=Console(stderr=True), disable=not progress)
        self._task = self._bar.add_task("mining", total=total, completed=total - todo)

    def __enter__(self) -> Meter:
        self._write()
        self._bar.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.stop()
        self._write()
        if kind is None:
            self._file.unlink(missing_ok=True)

    def count(self, source: Source, outcomes: Sequence[Outcome]) -> None:
        """A source is done, with these videos."""
        state = self._state
        state["done"] += 1
        for one in outcomes:
            state["seconds"] += one.seconds
            if one.why:
                self._kinds[_KINDS[one.kind]] += 1
                named = printable(one.why.partition("\n")[0])
                state["last_failures"] = [*state["last_failures"], named][-_NAMED:]
            else:
                state["videos"] += 1
        state["failures"] = dict(sorted(self._kinds.items()))
        name = outcomes[-1].member if outcomes else ""
        text = f"mined {escape(printable(Path(shown_member(source, name)).name))}"
        if failed := self._kinds.total():
            text += f", {failed} failed"
        self._bar.update(self._task, advance=1, description=text)
        if time.time() >= self._written + _EVERY:
            self._write()

    def _write(self) -> None:
        self._written = self._state["updated"] = time.time()
        with contextlib.suppress(OSError):  # mining itself says what cannot be written
            write_text(self._file, json.dumps({**self._state, "pid": os.getpid()}, indent=1))


def status_of(folder: Path) -> str:
    """How far mining into `folder` is, in words; a DictionaryError if nothing was mined there."""
    running = _is_running(folder)
    state = read_json(folder / STATUS)
    if state is None:
        there = read_json(folder / MANIFEST)
        if there is not None and not running:
            twinless, failed = (len(there.get(name) or {}) for name in ("twinless", "failed"))
            return (
                f"{folder}: finished: {len(there['videos'])} videos with twins, {twinless} "
                f"without, {failed} failed"
            )
        if not running:
            raise DictionaryError(f"{folder}: nothing was mined into this folder")
        return f"{folder}: running: looking for what to mine"
    return "\n".join(_lines(folder, state, running))


def _lines(folder: Path, state: dict[str, Any], running: bool) -> list[str]:
    noted = _noted(folder)
    until = time.time() if running else state["updated"]
    elapsed = max(until - state["started"], 1e-3)
    seconds = state["seconds"] + sum(float(line.get("seconds", 0)) for line in noted)
    videos = state["videos"] + sum(not line.get("kind") for line in noted)
    failures = Counter(state["failures"])
    failures.update(_KINDS[line["kind"]] for line in noted if line.get("kind") in _KINDS)
    now, left = state["done"] - state["before"], state["total"] - state["done"]
    lines = [
        f"{folder}: "
        + ("running" if running else "not running; the same command continues from here"),
        f"  sources   {state['done']} of {state['total']} (videos or tar shards)",
        f"  this run  {videos} videos, {seconds / 3600:.2f} hours of video, in {span(elapsed)}",
        f"  rate      {videos / elapsed * 3600:.0f} videos an hour, "
        f"{seconds / elapsed:.1f} times as fast as they play",
    ]
    if running:
        expected = span(elapsed / now * left) if now else "not known yet"
        lines.append(f"  left      {expected}")
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(failures.items()))
    lines.append(f"  failed    {kinds or 'none'}")
    return [*lines, *(f"    {why}" for why in state["last_failures"])]


def _noted(folder: Path) -> list[dict[str, Any]]:
    """What the workers have noted of the shards that they are at."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for file in folder.glob(f"{SOURCES}.*"):
        with contextlib.suppress(OSError):
            for line in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    found[entry["id"], entry["video"]] = entry
    return list(found.values())


def span(seconds: float) -> str:
    """A time in words: seconds, or days, hours and minutes."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    days, hours = divmod(minutes // 60, 24)
    return (
        (f"{days} d " if days else "")
        + (f"{hours} h " if hours or days else "")
        + f"{minutes % 60} min"
    )


def _is_running(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False
