"""What the sources of a command stand for: files, folders, URLs, patterns, lists, tar shards."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from posixpath import dirname
from typing import TypeAlias

from solo_infoaug._checks import require
from solo_infoaug.errors import VideoError
from solo_infoaug.mining.search import EXTENSIONS, Patterns, nothing_found, passed_over, search_by
from solo_infoaug.mining.shards import SUFFIX, Shard, is_shard
from solo_infoaug.mining.stores import Remote, fetch, is_url, listing, matching, shown

Source: TypeAlias = Path | Remote | Shard
_LIST = ".txt"
_MAGIC, _STAR = re.compile(r"[*?\[]"), re.compile(r"\*")
# A list may name very many files, each of which a store is asked about.
_AT_ONCE = 32
_RANGE = re.compile(r"(-?\d+|[A-Za-z])\.\.(-?\d+|[A-Za-z])(?:\.\.(-?\d+))?")


def find_inputs(
    sources: Iterable[str | os.PathLike[str]], exclude: Sequence[str] = ()
) -> tuple[list[Source], list[str]]:
    """The videos and tar shards that `sources` name, and a line on each kind of what was left out.

    Sources are files and folders on disk or, as URLs, in stores; braces (`{00..09}`, `{a,b}`) and
    patterns (`*`, `?`, `[…]`) of these; and .txt files with one of all these a line.

    Raises:
        VideoError: a source does not exist, a folder holds no video, or nothing is left.
        ConfigError: a pattern is empty, or nothing here reads such URLs.
    """
    patterns = Patterns(exclude)
    found: dict[Path | str, Source] = {}
    notes: list[str] = []
    given = [one for source in sources for one in _expanded(os.fspath(source))]
    listed = _listings([one for one in given if is_url(one)])
    for one in given:
        inside: Sequence[Path | Remote]
        if is_url(one):
            inside, left_out = _search_store(one, *listed[one], patterns)
        else:
            inside, left_out = search_by(patterns, [one], shards=True)
        for place in inside:
            shard = is_shard(place.name) and not (isinstance(place, Path) and place.is_dir())
            key = place if isinstance(place, Path) else place.url
            found.setdefault(key, Shard(place, tuple(exclude)) if shard else place)
        notes += left_out
    if not found:
        raise nothing_found(given, patterns)
    return list(found.values()), list(dict.fromkeys([*notes, *patterns.notes()]))


def expand_braces(text: str) -> list[str]:
    """What a shell makes of braces: `{a,b}`, `{00..12}`, `{a..e}`, `{0..9..3}`, also nested.

    Braces that hold neither stay as they are.
    """
    for start, sign in enumerate(text):
        parts = _inside_braces(text, start) if sign == "{" else None
        if parts is None:
            continue
        inside, stop = parts
        steps = _RANGE.fullmatch(inside[0]) if len(inside) == 1 else None
        values = _steps(*steps.groups()) if steps else []
        if len(inside) > 1:
            values = [value for part in inside for value in expand_braces(part)]
        if values:
            tails = expand_braces(text[stop:])
            return [f"{text[:start]}{value}{tail}" for value in values for tail in tails]
    return [text]


def _inside_braces(text: str, start: int) -> tuple[list[str], int] | None:
    """What the brace at `start` holds, split at its own commas, and where it ends."""
    depth, parts = 0, [""]
    for place in range(start, len(text)):
        sign = text[place]
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return parts, place + 1
        if sign == "," and depth == 1:
            parts.append("")
        elif place > start:
            parts[-1] += sign
    return None


def _steps(first: str, last: str, step: str | None) -> list[str]:
    numbers = [first, last]
    letters = [text for text in numbers if text.isalpha()]
    if len(letters) == 1:
        return []
    low, high = map(ord, numbers) if letters else map(int, numbers)
    by = max(1, abs(int(step or 1))) * (1 if low <= high else -1)
    values = range(low, high + (1 if by > 0 else -1), by)
    if letters:
        return [chr(value) for value in values]
    padded = any(re.match(r"-?0\d", text) for text in numbers)
    width = max(map(len, numbers)) if padded else 0
    return [f"{value:0{width}d}" for value in values]


def _expanded(source: str, in_list: str | None = None) -> Iterator[str]:
    """The files, folders and URLs that one source stands for; `in_list` names it in a list."""
    source = re.sub(r"^(file|local)://", "", source)
    # what exists is meant, whatever characters it has
    there = not is_url(source) and os.path.lexists(source)
    for one in [source] if there else expand_braces(source):
        if one.lower().endswith(_LIST):
            if in_list is not None:
                raise VideoError(f"{in_list}: expected videos, got another list: {shown(one)}")
            for line in _lines(one):
                yield from _expanded(line, shown(one))
        elif is_url(one) or os.path.lexists(one) or not _MAGIC.search(one):
            yield one
        else:
            inside = sorted(glob.glob(one, recursive=True))
            if not inside:
                raise VideoError(f"no file or folder matches {one}")
            yield from inside


def _lines(source: str) -> Iterator[str]:
    """The sources in a list; paths are taken from its folder on."""
    if is_url(source):
        (remote, *_), is_folder = listing(source)
        data = b"" if is_folder else fetch(remote)
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise VideoError(f"{source}: the list cannot be read: {error.strerror}") from error
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise VideoError(
            f"{shown(source)}: expected a list of videos, one a line in UTF-8"
        ) from None
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if is_url(line):
            yield line
        elif is_url(source):
            yield f"{dirname(shown(source))}/{line}"
        else:
            yield os.path.join(os.path.dirname(source), line)


def _listings(urls: list[str]) -> dict[str, tuple[list[Remote], str | None]]:
    """What is at each URL, and the folder in which that was searched for, if any."""
    if not urls:
        return {}
    with ThreadPoolExecutor(min(len(urls), _AT_ONCE), thread_name_prefix="listing") as threads:
        return dict(zip(urls, threads.map(_listing, urls), strict=True))


def _listing(url: str) -> tuple[list[Remote], str | None]:
    web = url.startswith(("http://", "https://"))  # where a question mark begins the query
    magic = _STAR if web else _MAGIC
    if not magic.search(shown(url) if web else url):
        found, is_folder = listing(url)
        return found, shown(url).rstrip("/") if is_folder else None
    found = matching(url)
    if not found:
        raise VideoError(f"no file matches {shown(url) if web else url}")
    return found, shown(magic.split(url)[0].rpartition("/")[0])


def _search_store(
    url: str, there: list[Remote], base: str | None, patterns: Patterns
) -> tuple[list[Remote], list[str]]:
    """The videos and shards among what is at a URL, and lines on what else is there."""
    if base is None:
        return [one for one in there if not patterns.leave_out(one.name)], []
    taken, endings = _inside(base, there, patterns)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(endings.items()))
    notes = [f"{shown(url)}: left out what is not known as video: {kinds}"] if kinds else []
    if not taken:
        text = "\n".join([*notes, *patterns.notes()])
        raise VideoError(f"no video below {shown(url)}" + (f"\n{text}" if text else ""))
    return taken, notes


def _inside(
    base: str, there: list[Remote], patterns: Patterns
) -> tuple[list[Remote], Counter[str]]:
    """Those of the files below a URL that are to be mined, and the endings of the others."""
    taken: list[Remote] = []
    endings: Counter[str] = Counter()
    excluded: dict[str, bool] = {}
    for one in there:
        path = str(one).removeprefix(f"{base}/")
        *folders, name = path.split("/")
        if (kind := passed_over([*folders, name])) is not None:
            endings[kind] += 1
        elif _excluded_folder(folders, patterns, excluded):
            continue
        elif (ending := Path(name).suffix.lower()) not in EXTENSIONS | {SUFFIX}:
            endings[ending or "without ending"] += 1
        elif not patterns.leave_out(name, path):
            taken.append(one)
    return taken, endings


def _excluded_folder(folders: list[str], patterns: Patterns, known: dict[str, bool]) -> bool:
    """Whether a folder on the way is excluded; each is asked about once, so that it counts once."""
    for depth in range(1, len(folders) + 1):
        path = "/".join(folders[:depth])
        if path not in known:
            known[path] = patterns.leave_out(folders[depth - 1], path, folder=True)
        if known[path]:
            return True
    return False


def share_of(sources: list[Source], index: int, count: int) -> list[Source]:
    """The sources of job `index` of `count`, which depend on the list of all and nothing else.

    They are dealt out by size, so that all jobs get as much; those of one size, which may have the
    same content, go to the same job.
    """
    if count == 1:
        return sources
    sizes = {source: size_group(source) for source in sources}
    places = {size: place for place, size in enumerate(sorted(set(sizes.values())))}
    return [source for source in sources if places[sizes[source]] % count == index]


def parse_share(text: str) -> tuple[int, int]:
    """I and N of "I/N"; a ConfigError if it is something else."""
    parts = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = map(int, parts.groups()) if parts else (0, 0)
    require(index < count, "shard", "I/N with I from 0 to N - 1, such as 0/8", text)
    return index, count


def size_group(source: Source) -> tuple[str, int, str]:
    """What videos of the same content have in common; shards differ."""
    place = source.place if isinstance(source, Shard) else source
    only = str(place) if isinstance(source, Shard) else ""
    if isinstance(place, Remote):
        return ("file", place.size, only) if place.size is not None else ("", 0, str(place))
    try:
        if place.is_dir():
            return "folder", sum(1 for _ in place.iterdir()), ""
        return "file", place.stat().st_size, only
    except OSError:
        return "", 0, str(place)  # mining says why it cannot be read
