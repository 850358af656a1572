"""The command `mine`: which arguments are videos and which are settings, and what it prints."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from solo_infoaug.errors import ConfigError

if TYPE_CHECKING:
    from solo_infoaug.dictionary import TwinDictionary

_SETTING = re.compile(r"(?:\w+\.)?[A-Za-z_]\w*=.*", re.DOTALL)


def exit_partly(heading: str, *lines: str) -> NoReturn:
    """Say what failed while the rest was done: exit code 2."""
    typer.secho(heading, fg=typer.colors.RED, err=True)
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(2)


def _list_settings(wanted: bool) -> None:
    if wanted:
        from rich.console import Console

        from solo_infoaug.mining.config import MineConfig
        from solo_infoaug.settings import terminal_table

        Console().print(terminal_table(MineConfig))
        raise typer.Exit()


def _print_status(out: Path | None) -> None:
    if out is not None:
        from solo_infoaug.mining.status import status_of

        typer.echo(status_of(out))
        raise typer.Exit()


_Given = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO|NAME=VALUE",
        help="Video files, tar shards, folders of them; s3://, gs://, hf:// or https:// URLs; "
        "braces and patterns; .txt lists of all these. And settings, such as window=48 or "
        "gate.max_drift=0.2.",
    ),
]
_Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the dictionary.")]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME=VALUE", help="A setting; the same as NAME=VALUE."),
]
_File = Annotated[
    Path | None, typer.Option("--settings", metavar="FILE", help="A YAML file of settings.")
]
_List = Annotated[
    bool,
    typer.Option(
        "--list-settings",
        callback=_list_settings,
        is_eager=True,
        help="Print every setting, its default and what it does, and exit.",
    ),
]
_Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Leave out files and folders of this name, or of this path inside the searched "
        "folder: '*.avi', 'raw/*'. May be given several times.",
    ),
]
_ShareOf = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Mine the I-th of N shares alone, counted from 0, each into a folder of its own; "
        "`merge` joins them.",
    ),
]
_Status = Annotated[
    Path | None,
    typer.Option(
        metavar="OUT",
        callback=_print_status,
        is_eager=True,
        help="Print how far mining into OUT is, and exit.",
    ),
]
_Workers = Annotated[
    int | None,
    typer.Option("--workers", "-j", help="Processes; default one a core, at most one a video."),
]
_Threads = Annotated[
    int | None, typer.Option(help="Threads of each process; default its share of the cores.")
]
_Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Mine on a Ray cluster: its address, auto or local."),
]
_Overwrite = Annotated[bool, typer.Option(help="Remove the dictionary in OUT first.")]


def mine(
    videos: _Given,
    out: _Out,
    settings: _Set = None,
    settings_file: _File = None,
    list_settings: _List = False,
    exclude: _Exclude = None,
    shard: _ShareOf = None,
    status: _Status = None,
    workers: _Workers = None,
    threads: _Threads = None,
    ray: _Ray = None,
    overwrite: _Overwrite = False,
) -> None:
    """Mine a twin dictionary from videos. Run again, it continues where it was interrupted.

    `infoaug: true` without `twins` means the dictionary that this command made last.

    Exit code 2: some videos could not be read, the others are mined. Videos without any twin are
    listed; they are a failure only if no video has one.
    """
    from solo_infoaug.mining import MineConfig
    from solo_infoaug.mining import mine as run

    if ray is not None and workers is not None:
        raise ConfigError("--workers: with --ray the cluster decides how many; leave it out")
    sources, given = sort_arguments(videos)
    dictionary = run(
        sources,
        out,
        MineConfig.parse([*given, *(settings or [])], settings_file or ""),
        exclude=exclude or (),
        shard=shard,
        workers=workers,
        threads=threads,
        ray=ray,
        overwrite=overwrite,
    )
    typer.echo(dictionary.summary)
    print_videos(dictionary)
    if twinless := dictionary.info.get("twinless"):
        typer.echo(f"{_videos(len(twinless))} without a twin:")
        for why in twinless.values():
            typer.echo(f"  {why}")
    _remember(dictionary)
    if failed := dictionary.info["failed"]:
        exit_partly(f"{_videos(len(failed))} failed:", *(f"  {why}" for why in failed.values()))


def sort_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The videos among the arguments, and the settings: `name=value` or `group.name=value`.

    A path that looks like a setting is written with a slash: `./name=value`.

    Raises:
        ConfigError: an argument may be either, or there is no video.
    """
    from solo_infoaug.mining.config import did_you_mean, is_setting

    videos, settings = list[str](), list[str]()
    for argument in arguments:
        if not _SETTING.fullmatch(argument):
            videos.append(argument)
            continue
        name, _, _ = argument.partition("=")
        there, known = os.path.lexists(argument), is_setting(name)
        if there and known:
            raise ConfigError(
                f"{argument}: is a setting and also a file here; write ./{argument} for the file, "
                f"-s {argument} for the setting"
            )
        if not there and not known:
            raise ConfigError(
                f"{argument}: neither a setting (mine --list-settings prints all) nor a file here; "
                f"write ./{argument} for a pattern of files{did_you_mean(name)}"
            )
        (settings if known else videos).append(argument)
    if not videos:
        raise ConfigError("videos: expected at least one video or folder, got settings alone")
    return videos, settings


def _videos(count: int) -> str:
    return f"{count} video{'s' if count != 1 else ''}"


def _remember(dictionary: TwinDictionary) -> None:
    from solo_infoaug.cache import remember_dictionary

    try:
        remember_dictionary(dictionary.path, dictionary.fingerprint)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        typer.secho(
            f"The dictionary could not be remembered as the last one ({place}"
            f"{error.strerror or error}); name it with infoaug.twins={dictionary.path}",
            err=True,
        )
    else:
        typer.echo("Remembered: `infoaug: true` without `twins` means this dictionary now.")


def print_videos(dictionary: TwinDictionary, err: bool = False) -> None:
    """The first twenty videos by twins a minute, and why patches have none."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from solo_infoaug.dictionary.tools import video_table

    heading, *rows = video_table(dictionary)
    table = Table(*heading, box=None, pad_edge=False)
    for row in rows[:20]:
        table.add_row(*map(escape, row))
    console = Console(stderr=err)
    console.print(table)
    if len(rows) > 20:
        console.print(f"… and {len(rows) - 20} more videos")
