"""Which videos make the parts of a dictionary, and which of these are mined already."""

from __future__ import annotations

from dataclasses import dataclass

from solo_infoaug import __version__
from solo_infoaug.dictionary.packs import Finished
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.corpus import Listed


@dataclass(frozen=True)
class Part:
    """A part of the dictionary: the video that it is of, the part's name, the content's hash."""

    shown: str
    key: str
    digest: str
    name: str


@dataclass(frozen=True)
class Plan:
    """Parts, in an order that depends on the videos alone.

    `duplicates` are videos with the content of another.
    """

    parts: list[Part]
    duplicates: dict[str, str]


def plan_of(videos: list[Listed], finished: Finished, config: MineConfig) -> Plan:
    """Of several with the same content the first is mined, or the one that is mined already."""
    alike: dict[str, list[Part]] = {}
    for video in sorted(videos, key=lambda video: (video.name, video.shown)):
        key = part_key(video.stem, video.digest, config)
        part = Part(video.shown, key, video.digest, video.name)
        alike.setdefault(video.digest, []).append(part)
    parts: list[Part] = []
    duplicates: dict[str, str] = {}
    for same in alike.values():
        mined = (part for part in same if len(same) > 1 and is_settled(finished, part))
        chosen = next(mined, same[0])
        parts.append(chosen)
        duplicates |= {part.shown: chosen.shown for part in same if part is not chosen}
    ordered = sorted(parts, key=lambda part: (part.name, part.digest))
    return Plan(ordered, duplicates)


def part_key(stem: str, digest: str, config: MineConfig) -> str:
    """The name of a video's part of the dictionary."""
    return f"{_plain(stem)}-{digest[:8]}-{config.digest[:8]}"


def _plain(name: str) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
    return plain.strip("-_")[:60] or "video"


def is_settled(finished: Finished, part: Part) -> bool:
    """Whether a video is mined, or known to have no twin."""
    return finished.is_mined(part.key) or _why_twinless(finished, part) is not None


def _why_twinless(finished: Finished, part: Part) -> str | None:
    """Why a video that this version has mined has no twin; None if it has, or is to be mined."""
    record = finished.twinless(part.key)
    source = None if record is None else record.get("source")
    # another version may find some
    if record is None or not isinstance(source, dict) or source.get("mined_with") != __version__:
        return None
    return str(record.get("why"))


def twinless_in(finished: Finished, parts: list[Part]) -> dict[str, str]:
    """Why the videos that have no twin have none, by what they are called."""
    found = ((part, _why_twinless(finished, part)) for part in parts)
    return {part.shown: f"{part.shown}: {why}" for part, why in found if why is not None}
