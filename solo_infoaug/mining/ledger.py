"""What is known of the sources of a dictionary, so that none is read again to be recognised.

A line of JSON a video: its source, without secrets, the source's identity (a hash of where it is,
its size, and its ETag or time), and the SHA-256 of its content. It holds no twin and no proof that
something is mined: that is what the dictionary's parts say. Lines are only added while a run goes
on. A shard's worker has a file of its own until the shard is finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solo_infoaug._files import printable, write_text
from solo_infoaug.mining.inputs import Source
from solo_infoaug.mining.search import SOURCES
from solo_infoaug.mining.shards import Passed, Shard
from solo_infoaug.mining.stores import Remote


@dataclass(frozen=True)
class Outcome:
    """What became of a video: `digest` of its content, and `why` it failed; `kind` of failure.

    `member` is its path in a shard, `seconds` how long the video is, where it was mined now.
    """

    member: str = ""
    digest: str = ""
    why: str = ""
    kind: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """What a job found: its videos, and for a shard what was passed over, if all of it was read."""

    outcomes: list[Outcome]
    passed: Passed | None = None


@dataclass
class Known:
    """What the ledger has of one source: digests by member, and whether these are all."""

    source: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    whole: bool = False
    passed: Passed = field(default_factory=Passed)


def identity(source: Source) -> str:
    """What a source is known by; empty where that cannot be told without reading it."""
    place = source.place if isinstance(source, Shard) else source
    if isinstance(place, Remote):
        said: list[Any] = [str(place), place.size, place.tag] if place.tag else []
    elif place.is_dir():
        said = []
    else:
        with contextlib.suppress(OSError):
            status = place.stat()
            said = [printable(str(place.absolute())), status.st_size, status.st_mtime_ns]
    if not said:
        return ""
    if isinstance(source, Shard):
        said.append(list(source.exclude))
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


class Ledger:
    """The file of what is known, in the folder of a dictionary."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / SOURCES
        self._known: dict[str, Known] = {}
        self._by_source: dict[str, dict[str, str]] | None = None
        for file in (self._file, *folder.glob(f"{SOURCES}.*")):
            self._read(file)

    def known(self, name: str) -> Known:
        """What is known of a source by its identity."""
        return self._known.get(name) or Known()

    def earlier(self, source: Source) -> dict[str, str]:
        """What a source held when it was read before, if it has changed since: as `digests`."""
        where = printable(str(source))
        if self._by_source is None:
            self._by_source = {}
            for known in self._known.values():
                self._by_source.setdefault(known.source, {}).update(known.digests)
        return self._by_source.get(where, {})

    def add(self, name: str, source: Source, result: Result) -> None:
        """Note what the videos of the source `name` hold."""
        lines = [_entry(name, source, one) for one in result.outcomes if one.digest]
        if result.passed is not None:
            lines.append({"id": name, "shard": result.passed.to_json()})
        if not name or not lines:
            return
        _append(self._file, lines)
        for line in lines:
            self._take(line)
        _part(self._folder, name).unlink(missing_ok=True)

    def settle(self, names: Iterable[str]) -> None:
        """Leave the lines of these sources alone, in an order that no run decides."""
        kept = sorted(set(names) - {""})
        lines = [line for name in kept for line in self._lines(name)]
        write_text(self._file, "".join(map(_line, lines)))
        for name in self._known:
            _part(self._folder, name).unlink(missing_ok=True)

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        known = self.known(name)
        for member, digest in sorted(known.digests.items()):
            yield {"id": name, "source": known.source, "video": member, "sha256": digest}
        if known.whole:
            yield {"id": name, "shard": known.passed.to_json()}

    def _read(self, file: Path) -> None:
        with contextlib.suppress(OSError), file.open(encoding="utf-8") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    self._take(json.loads(line))  # half a line is what a killed run was writing

    def _take(self, line: dict[str, Any]) -> None:
        known = self._known.setdefault(str(line["id"]), Known())
        if "shard" in line:
            counts = {name: Counter(dict(line["shard"][name])) for name in ("endings", "excluded")}
            known.whole, known.passed = True, Passed(**counts)
        else:
            known.source = str(line["source"])
            known.digests[str(line["video"])] = str(line["sha256"])


def note(folder: Path, name: str, shard: Shard, outcome: Outcome) -> None:
    """What a worker adds to its own file when a video of a shard is finished."""
    more = {"seconds": outcome.seconds, "kind": outcome.kind}
    _append(_part(folder, name), [{**_entry(name, shard, outcome), **more}])


def _entry(name: str, source: Source, outcome: Outcome) -> dict[str, Any]:
    where, member = printable(str(source)), printable(outcome.member)
    return {"id": name, "source": where, "video": member, "sha256": outcome.digest}


def _part(folder: Path, name: str) -> Path:
    """The file in which a worker notes a shard that it is at."""
    return folder / f"{SOURCES}.{name}"


def _append(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    with file.open("a+b") as target:
        ends = target.seek(0, 2) == 0
        if not ends:
            target.seek(-1, 2)
            ends = target.read(1) == b"\n"
        text = "" if ends else "\n"  # a killed run may have left half a line
        target.write((text + "".join(map(_line, lines))).encode())


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True) + "\n"
