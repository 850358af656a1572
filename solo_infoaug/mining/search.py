"""Find videos: the files and folders that a command names, and what the folders hold."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from solo_infoaug._checks import require
from solo_infoaug._files import DRAWN, MADE
from solo_infoaug.dictionary.format import INDEX, LOCK, MANIFEST, PACKS, PARTS
from solo_infoaug.errors import VideoError
from solo_infoaug.mining.frame_folder import IMAGES, Numbered, numbered_frames

EXTENSIONS = frozenset(
    {".264", ".265", ".3g2", ".3gp", ".amv", ".asf", ".av1", ".avi", ".avs", ".divx", ".dv"}
    | {".f4v", ".flc", ".fli", ".flv", ".gif", ".gxf", ".h264", ".h265", ".hevc", ".ivf"}
    | {".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mod"}
    | {".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".obu"}
    | {".ogg", ".ogm", ".ogv", ".ogx", ".qt", ".rm", ".rmvb", ".tod", ".trp", ".ts", ".vob"}
    | {".vro", ".webm", ".webp", ".wmv", ".wtv", ".y4m"}
)
# The tracks of a video, next to it, for `tracker=file`.
_TRACKS = ".npz"
# Folders of operating systems, in lower case: for deleted files, and for data about other files.
_SYSTEM = frozenset(
    {"__macosx", "lost+found", "$recycle.bin", "system volume information", "recycler"}
    | {"@eadir", "#recycle", "#snapshot", "found.000"}
)
# Endings of files that are being downloaded, and of files that record how far a download is.
_PARTIAL = (
    *(".part", ".partial", ".crdownload", ".download", ".opdownload", ".aria2", ".ytdl"),
    *(".!qb", ".!ut", ".bc!", ".filepart"),
)
# Files of mining in a dictionary's folder: the content of each source, and the progress.
SOURCES, STATUS = ".sources.jsonl", ".status.json"
# `show` marks its films. FFmpeg writes the mark into this many bytes at the end of the file.
_TAIL = 4096


def find_videos(sources: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The videos that `sources` name; a warning says what was left out. See `search`."""
    found, left_out = search(sources)
    for what in left_out:
        warnings.warn(what, stacklevel=2)
    return found


def search(
    sources: Iterable[str | os.PathLike[str]], exclude: Sequence[str] = ()
) -> tuple[list[Path], list[str]]:
    """As `search_by`, for patterns as texts; the lines also say what the patterns left out.

    Raises:
        VideoError: as there; or there is no source, or no video is left.
    """
    patterns = Patterns(exclude)
    given = list(sources)
    found, left_out = search_by(patterns, given)
    if not found:
        raise nothing_found(given, patterns)
    return found, list(dict.fromkeys([*left_out, *patterns.notes()]))


def nothing_found(given: Collection[object], patterns: Patterns) -> VideoError:
    """The error that says why none of the `given` sources is a video to mine."""
    what = "no video is left" if given else "videos: expected at least one file or folder, got none"
    return VideoError("\n".join([what, *patterns.notes()]))


def search_by(
    patterns: Patterns, sources: Iterable[str | os.PathLike[str]], shards: bool = False
) -> tuple[list[Path], list[str]]:
    """The videos that `sources` name, and a line on each kind of thing that was left out.

    Files are taken as they are. In folders, and in folders that these link to, all video files (by
    their endings) and folders of numbered frames (see `numbered_frames`) are taken. Hidden files
    and folders, those of the system, and outputs of solo-infoaug are left out.

    With `shards`, tar files in folders count as videos.

    Raises:
        VideoError: a source does not exist, or a folder holds no video.
    """
    found: dict[Path, None] = {}
    notes: list[str] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside, left_out = _search_folder(source, patterns, shards)
            if not inside:
                raise VideoError(
                    f"no video in folder {source} (looked for folders of numbered images, and for "
                    f"{' '.join(sorted(EXTENSIONS))})"
                    + "".join(f"\n{note}" for note in (*left_out, *patterns.notes()))
                )
            found.update(dict.fromkeys(inside))
            notes += left_out
        elif source.is_file():
            if not patterns.leave_out(source.name):
                found[source] = None
        elif source.exists():  # reading it may never end
            raise VideoError(f"{source}: expected a video file or a folder, got a device or a pipe")
        else:
            raise VideoError(f"no such video: {source}")
    return list(found), notes


def passed_over(parts: Sequence[str]) -> str | None:
    """Why the file at the path `parts` is left out, whatever it holds; None if it is not."""
    for name in parts[:-1]:
        if (kind := _folder_kind(name)) is not None:
            return f"in folders: {kind}"
    if parts[-1].startswith("."):
        return "hidden"
    return "partly downloaded" if parts[-1].lower().endswith(_PARTIAL) else None


def _folder_kind(name: str) -> str | None:
    """Why a folder of this name is not searched; None if it is."""
    lower = name.lower()
    if name.startswith("."):
        return "hidden"
    if lower in _SYSTEM:
        return "of the system"
    return "partly downloaded" if lower.endswith(_PARTIAL) else None


class Patterns:
    """Patterns of files and folders to leave out, and how many each left out.

    A pattern (`*`, `?`, `[…]`) is compared with the name, and with the path inside the searched
    folder, where `*` also stands for `/`.

    Raises:
        ConfigError: a pattern is empty.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            require(isinstance(pattern, str) and pattern.strip("/"), "exclude", "a name", pattern)
        self._counts = {pattern: Counter[str]() for pattern in patterns}

    def leave_out(self, name: str, path: str | None = None, *, folder: bool = False) -> bool:
        """Whether a file or folder is excluded by its name or its path; it is counted if so."""
        for pattern, count in self._counts.items():
            bare = pattern.removeprefix("./").rstrip("/")
            # `**/x` matches at any depth, including none
            variants = {bare, bare.removeprefix("**/")}
            if pattern.endswith("/") and not folder:
                continue
            if any(fnmatchcase(text, one) for text in (name, path or name) for one in variants):
                count["folders" if folder else "files"] += 1
                return True
        return False

    def counted(self) -> dict[str, int]:
        """How many files and folders each pattern left out, without those that left out none."""
        return {pattern: count.total() for pattern, count in self._counts.items() if count}

    def notes(self) -> list[str]:
        """A line for each pattern."""
        return [
            f"excluded by {pattern!r}: "
            + (", ".join(f"{n} {kind}" for kind, n in sorted(count.items())) or "nothing")
            for pattern, count in self._counts.items()
        ]


def _search_folder(source: Path, patterns: Patterns, shards: bool) -> tuple[list[Path], list[str]]:
    look = _Look(source, patterns, EXTENSIONS | {".tar"} if shards else EXTENSIONS)
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(source, followlinks=True, onerror=look.unreadable):
        folder = Path(place)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was searched already
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if MADE in names:
            look.pass_over("output of solo-infoaug", folder)
            folders.clear()
            continue
        folders[:] = [name for name in sorted(folders) if look.enters(folder, name, names)]
        look.take_files(folder, names, look.take_frames(folder, names))
    return look.found, look.notes()


class _Look:
    """What is found in a folder and in the folders inside it, and what is left out."""

    def __init__(self, source: Path, patterns: Patterns, endings: frozenset[str]) -> None:
        self.source, self.patterns, self.endings = source, patterns, endings
        self.found: list[Path] = []
        self._endings: Counter[str] = Counter()
        self._images: dict[str, list[tuple[Path, int]]] = {}
        self._passed: dict[str, list[Path]] = {}
        self._unreadable: list[str] = []

    def unreadable(self, error: OSError) -> None:
        """For os.walk."""
        self._unreadable.append(f"{error.filename}: left out: {error.strerror or error}")

    def pass_over(self, kind: str, path: Path) -> None:
        self._passed.setdefault(kind, []).append(path)

    def enters(self, folder: Path, name: str, names: Sequence[str]) -> bool:
        """Whether to look into `folder`/`name`; the files of `folder` are `names`."""
        path = folder / name
        kind = _folder_kind(name)
        if kind is None and name in (PARTS, PACKS) and (MANIFEST in names or LOCK in names):
            kind = "twin dictionary"
            path = folder
        if kind is not None:
            self.pass_over(kind, path)
            return False
        return not self._excluded(path, folder=True)

    def take_frames(self, folder: Path, names: Sequence[str]) -> set[str]:
        """Take the folder if it is one of numbered frames; returns the names of these."""
        pictures = [
            name
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGES
        ]
        frames = numbered_frames(folder, pictures) if pictures else "no images"
        taken: set[str] = set()
        if isinstance(frames, Numbered):
            # those inside were asked about when they were entered
            if folder != self.source or not self._excluded(folder, folder=True):
                self.found.append(folder)
            taken = {file.name for file in frames.files}
            frames = "they do not belong to the numbered frames next to them"
        # A WebP is a frame or a video of its own.
        rest = [
            name
            for name in pictures
            if name not in taken and Path(name).suffix.lower() not in EXTENSIONS
        ]
        if rest:
            self._images.setdefault(frames, []).append((folder, len(rest)))
        return taken

    def take_files(self, folder: Path, names: Sequence[str], taken: set[str]) -> None:
        """Take the video files; `taken` are frames."""
        there = {name.lower() for name in names}
        for name in sorted(names):
            path, ending = folder / name, Path(name).suffix.lower()
            if name in (MANIFEST, LOCK, SOURCES, STATUS) or (name == INDEX and MANIFEST in names):
                continue
            if name.startswith("."):
                self._endings["hidden"] += 1
            elif not path.is_file():
                self._endings["broken links or not files"] += 1
            elif ending in self.endings and name not in taken:
                self._take_file(path, there)
            elif ending not in IMAGES and ending != _TRACKS:
                self._endings[ending or "without ending"] += 1

    def _take_file(self, path: Path, there: set[str]) -> None:
        if any(f"{path.name.lower()}{ending}" in there for ending in _PARTIAL):
            self._endings["partly downloaded"] += 1
        elif _is_drawn(path):
            self._endings["drawn by solo-infoaug"] += 1
        elif not self._excluded(path):
            self.found.append(path)

    def _excluded(self, path: Path, folder: bool = False) -> bool:
        relative = path.relative_to(self.source).as_posix()
        return self.patterns.leave_out(path.name, relative, folder=folder)

    def notes(self) -> list[str]:
        """A line for each kind of thing that was left out."""
        notes = self._unreadable
        for why, there in sorted(self._images.items()):
            count = sum(number for _, number in there)
            more = f" and {len(there) - 1} other folders" if len(there) > 1 else ""
            notes.append(f"{there[0][0]}{more}: {count} images are not frames of a video: {why}")
        for kind, paths in sorted(self._passed.items()):
            more = f" and {len(paths) - 1} other folders" if len(paths) > 1 else ""
            notes.append(f"{paths[0]}{more}: not searched: {kind}")
        if self._endings:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self._endings.items()))
            notes.append(f"{self.source}: left out what is not known as video: {kinds}")
        return notes


def _is_drawn(path: Path) -> bool:
    """Whether `solo-infoaug show` drew this film: twins on a video, which must not be mined."""
    if path.suffix.lower() != ".mp4":
        return False
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return DRAWN.encode() in file.read()
    except OSError:
        return False  # mining says why it cannot be read
