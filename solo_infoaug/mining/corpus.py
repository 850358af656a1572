"""All sources of a dictionary: what is known of each, which are to be read, in what order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from solo_infoaug.mining.inputs import Source, size_group
from solo_infoaug.mining.ledger import Known, Ledger, Result, identity
from solo_infoaug.mining.shards import Shard, notes
from solo_infoaug.mining.stores import Remote
from solo_infoaug.mining.video import video_name, video_stem
from solo_infoaug.mining.workers import Job

# Most files of one size differ in this many bytes from the start.
_HEAD = 1 << 16


@dataclass(frozen=True)
class Listed:
    """A video whose content is known: what it is called in messages, its name, and its hash."""

    shown: str
    name: str
    stem: str
    digest: str


def shown_member(source: Source, member: str) -> str:
    """What a video is called in messages and records; `member` is its path in a shard."""
    return f"{source}/{member}" if member else str(source)


class Corpus:
    """The sources of one run, with the ledger of what they hold."""

    def __init__(self, sources: list[Source], ledger: Ledger) -> None:
        self.sources = sorted(sources, key=lambda source: (_name(source), str(source)))
        self.ledger = ledger
        self._names = {source: identity(source) for source in self.sources}
        self._learned: dict[Source, Known] = {}

    def videos(self) -> list[Listed]:
        """All videos whose content is known."""
        return [video for source in self.sources for video in self.videos_of(source)]

    def earlier(self) -> list[Listed]:
        """What sources held before they changed, and are to be read again: much may be the same."""
        return [
            video
            for source in self.unread
            for video in _listed(source, self.ledger.earlier(source))
        ]

    @property
    def unread(self) -> list[Source]:
        """The sources of which it is not known what they hold, or not all of it."""
        return [source for source in self.sources if not self._is_known(source)]

    def unsettled(self, done: set[str]) -> list[Source]:
        """The sources to read: with what is not known, or whose hash is not in `done`."""
        return [
            source
            for source in self.sources
            if not self._is_known(source) or not done.issuperset(self._digests(source))
        ]

    def rounds(self, todo: list[Source], done: Callable[[], set[str]]) -> Iterator[list[Job]]:
        """What to mine, and then those that may have the same content, which is known by then."""
        first: list[Job] = []
        later: list[tuple[Source, object]] = []
        groups = self._groups(todo)
        wanted, begun, finished = set(todo), set[object](), done()
        taken = {groups[source] for source in groups if source not in wanted}
        for source in todo:
            group = groups.get(source)
            if isinstance(source, Shard):
                first.append(self._shard_job(source, finished))
            elif group is None or group not in taken | begun:
                first.append(Job(source, self._seen(source, finished)))
                begun.add(group)
            else:
                later.append((source, group))
        yield first
        if later:
            finished, alike = done(), {group: set[str]() for _, group in later}
            for source, group in groups.items():
                if group in alike:
                    alike[group] |= self._digests(source) & finished
            yield [Job(source, frozenset(alike[group])) for source, group in later]

    def learn(self, source: Source, digest: str) -> None:
        """Note what a video holds, for this run."""
        self._learned[source] = Known(digests={"": digest})

    def note(self, source: Source, result: Result) -> None:
        """Note what a job found, for this run and later ones."""
        name = self._names[source]
        self.ledger.add(name, source, result)
        if not name:
            digests = {one.member: one.digest for one in result.outcomes if one.digest}
            passed = result.passed or Known().passed
            whole = result.passed is not None
            self._learned[source] = Known("", digests, whole, passed)

    def notes(self) -> list[str]:
        """Lines on what in shards was passed over."""
        shards = [source for source in self.sources if isinstance(source, Shard)]
        known = [self._known(shard) for shard in shards]
        empty = [
            f"{shard}: holds no video"
            for shard, one in zip(shards, known, strict=True)
            if one.whole and not one.digests
        ]
        return [*empty, *notes([one.passed for one in known], len(shards))]

    def settle(self) -> None:
        """The run is over: keep of the ledger what belongs to these sources."""
        self.ledger.settle(self._names.values())

    def _known(self, source: Source) -> Known:
        return self._learned.get(source) or self.ledger.known(self._names[source])

    def _is_known(self, source: Source) -> bool:
        known = self._known(source)
        return known.whole if isinstance(source, Shard) else "" in known.digests

    def _digests(self, source: Source) -> set[str]:
        return set(self._known(source).digests.values())

    def videos_of(self, source: Source) -> Iterator[Listed]:
        """Those of one source, in the order of their names."""
        return _listed(source, self._known(source).digests)

    def _groups(self, todo: list[Source]) -> dict[Source, object]:
        """What videos of one content have in common, of those that share their size with others."""
        sizes: dict[object, list[Source]] = {}
        for source in self.sources:
            if not isinstance(source, Shard):
                sizes.setdefault(size_group(source), []).append(source)
        wanted = set(todo)
        return {
            source: (size, _first_look(source))
            for size, alike in sizes.items()
            if len(alike) > 1 and not wanted.isdisjoint(alike)
            for source in alike
        }

    def _shard_job(self, shard: Shard, done: set[str]) -> Job:
        digests = self._known(shard).digests
        members = {name: digest for name, digest in digests.items() if digest in done}
        return Job(shard, self._seen(shard, done) | set(members.values()), members)

    def _seen(self, source: Source, done: set[str]) -> frozenset[str]:
        return frozenset(self.ledger.earlier(source).values()) & done


def _listed(source: Source, digests: dict[str, str]) -> Iterator[Listed]:
    for member, digest in sorted(digests.items()):
        if isinstance(source, Path):
            yield Listed(str(source), video_name(source), video_stem(source), digest)
        else:
            path = PurePosixPath(member or source.name)
            yield Listed(shown_member(source, member), path.name, path.stem, digest)


def _name(source: Source) -> str:
    return video_name(source) if isinstance(source, Path) else source.name


def _first_look(source: Source) -> str:
    """What can be known of a file's content at no cost."""
    if isinstance(source, Remote):
        return source.tag if source.tag.lower().startswith("etag") else ""
    if not isinstance(source, Path) or not source.is_file():
        return ""
    try:
        with source.open("rb") as file:
            return hashlib.sha256(file.read(_HEAD)).hexdigest()
    except OSError:
        return ""  # mining says why it cannot be read
