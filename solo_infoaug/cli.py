"""`solo-infoaug …`: thin commands over the library.

Heavy modules are imported inside the commands, so that `--help` is instant.
"""

from __future__ import annotations

import errno
import io
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from solo_infoaug import __version__
from solo_infoaug.cli_mine import exit_partly, mine, print_videos
from solo_infoaug.errors import ConfigError, InfoAugError

app = typer.Typer(
    name="solo-infoaug",
    help="Twin patches from video as positives for self-supervised learning with solo-learn.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        typer.echo(f"solo-infoaug {__version__}")
        raise typer.Exit()


@app.command()
def doctor() -> None:
    """Check solo-learn, versions, device and codecs, and say how to fix what is missing."""
    from solo_infoaug.doctor import findings

    healthy = True
    for finding in findings():
        mark, colour = ("ok", "green") if finding.good else ("--", "yellow")
        if not finding.good and not finding.optional:
            mark, colour, healthy = "!!", "red", False
        typer.secho(f"{mark} ", fg=colour, nl=False)
        typer.echo(f"{finding.name:16} {finding.value}")
        if finding.mend:
            typer.echo(f"{'':20}→ {finding.mend}")
    if not healthy:
        raise typer.Exit(1)


@app.command()
def methods() -> None:
    """List solo-learn's methods: which are installed, and what InfoAug doubles in each."""
    from rich.console import Console

    from solo_infoaug.twin.spec import methods_table

    Console().print(methods_table())


@app.command()
def upstream(
    clone: Annotated[Path, typer.Argument(help="A clean clone of solo-learn.")],
    branch: Annotated[str, typer.Option(help="New branch for the patches.")] = "solo-infoaug",
) -> None:
    """Apply the patches for solo-learn itself to a clone, on a new branch, and run their tests.

    Exit code 2: the patches are applied, but some of their tests fail.
    """
    from solo_infoaug.host.upstream import apply_series
    from solo_infoaug.resources import upstream_folder

    done = apply_series(clone, branch)
    for name, lines in done.patches:
        typer.echo(f"{name}  {lines}")
    typer.echo(f"{len(done.tests)} tests, by pytest:\n{done.output}\n")
    typer.echo(
        f"{clone} is on the branch {done.branch}, {len(done.patches)} commits after {done.commit}; "
        f"{done.before} is unchanged (git -C {clone} switch {done.before})."
    )
    if done.commit != done.base:
        typer.echo(f"The patches were made for {done.base}, and apply to {done.commit}.")
    if not done.passed:
        exit_partly("Some tests fail: see above.")
    text = upstream_folder() / "pull-request.md"
    typer.echo(
        f"Next, with a fork of solo-learn:\n  git -C {clone} push git@github.com:YOU/solo-learn "
        f"{done.branch}\nand open a pull request with this text ({text}):\n"
    )
    typer.echo(text.read_text(encoding="utf-8"))


@app.command()
def demo(
    videos: Annotated[
        list[Path] | None,
        typer.Argument(help="Your own videos or folders of them; by default, sample clips."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("infoaug-demo"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of the backbone's training.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, data order and twins.")] = 0,
) -> None:
    """Show what twins are and what they do, pretrain a small backbone, and write a report."""
    from solo_infoaug.demo import run_demo

    run_demo(out, videos or [], epochs, seed)


@app.command(context_settings={"ignore_unknown_options": True})
def pretrain(
    config_path: Annotated[Path, typer.Option("--config-path", help="Folder of YAML files.")],
    config_name: Annotated[str, typer.Option("--config-name", help="The YAML file in it.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides: max_epochs=10 ++infoaug=true …")
    ] = None,
) -> None:
    """Pretrain as solo-learn's main_pretrain.py does, with the solo-learn that is installed."""
    from solo_infoaug.training import load_config
    from solo_infoaug.training import pretrain as run

    result = run(load_config(config_path, config_name, overrides or []))
    if result.checkpoint is not None:
        typer.echo(f"Checkpoint: {result.checkpoint}")


@app.command(context_settings={"ignore_unknown_options": True})
def compare(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="methods=simclr,byol seeds=0,1,2 infoaug.weight=0,0.1,1 out=DIR …"),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also repeat failed runs.")
    ] = False,
) -> None:
    """Methods × arms × data × seeds → tables, figures. Run again, it continues.

    The keys are those of configs/compare/compare.yaml. Other overrides go to the runs; one that
    lists values adds a dimension to the grid. Exit code 2: some runs failed, the others are
    finished.
    """
    from solo_infoaug.compare import compare as run

    try:
        outcome = run(overrides or [], retry_failed=retry_failed)
    except KeyboardInterrupt:
        typer.secho("Interrupted; the same command continues from here.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{outcome.done} runs finished:")
    for file in outcome.files:
        typer.echo(f"  {file}")
    if failed := [f"  {name}: {why}" for name, why in outcome.failed]:
        exit_partly(f"{len(failed)} runs failed (--retry-failed runs them again):", *failed)


@app.command()
def evaluate(
    context: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt with its args.json next to it.")],
    data: Annotated[
        str, typer.Option(help="digits, cifar10, cifar100, stl10, tiny_imagenet, folder or davis.")
    ] = "digits",
    path: Annotated[Path | None, typer.Option(help="Videos with masks (davis).")] = None,
    stride: Annotated[
        int, typer.Option(help="Stride of the features in pixels, 8 or 16 (davis).")
    ] = 8,
    train_path: Annotated[Path | None, typer.Option(help="Images to train on.")] = None,
    val_path: Annotated[Path | None, typer.Option(help="Images to test on (folder).")] = None,
    k: Annotated[int, typer.Option(min=1, help="Number of neighbours of k-NN.")] = 20,
    size: Annotated[int | None, typer.Option(min=8, help="Side of the images in pixels.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="At most this many images.")] = None,
    fraction: Annotated[
        float | None,
        typer.Option(help="Share of the training images to use, the same of each class."),
    ] = None,
    fraction_seed: Annotated[int, typer.Option(min=0, help="Seed that draws this share.")] = 42,
    temperature: Annotated[float, typer.Option(help="Temperature of k-NN's weights.")] = 0.07,
) -> None:
    """k-NN and linear probe of a checkpoint's frozen backbone.

    With --data davis: J and F of object masks, which its features propagate from the first frame
    of each video.
    """
    from solo_infoaug.evaluation import evaluate as run

    of_images = ("train_path", "val_path", "k", "fraction", "fraction_seed", "temperature")
    for name in of_images if data == "davis" else ("path", "stride"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option, value = name.replace("_", "-"), context.params[name]
            raise ConfigError(f"--{option}: expected none with --data {data}, got {value}")
    if data == "davis":
        from solo_infoaug.evaluation.segmentation import evaluate_segmentation

        if path is None:
            raise ConfigError("--path: expected a folder of videos with masks, got none")
        found = evaluate_segmentation(checkpoint, path, size or 480, stride, limit=limit)
        for model, values in found.items():
            shown = ", ".join(f"{name} {value:.2f} %" for name, value in values.items())
            typer.echo(f"davis {model}: {shown}")
        return
    how = (train_path, val_path, k, size, limit, fraction, fraction_seed, temperature)
    for name, value in run(checkpoint, data, *how).items():
        typer.echo(f"{data} {name}: {value:.2f} %")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt with its args.json next to it.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .safetensors or .pth file.")],
) -> None:
    """Write the backbone alone, loadable by torchvision (ResNets) or timm."""
    from solo_infoaug.evaluation import export as run

    backbone = run(checkpoint, out)
    typer.echo(f"{backbone.name} → {out}")
    if backbone.cifar_stem:
        typer.echo("Its stem is CIFAR's: 3×3 conv1 with padding 2, and no max-pooling.")
    if backbone.timm is not None:
        typer.echo(f"In timm: {backbone.timm.call}.load_state_dict(…)")
    if backbone.standardize is not None:
        then = ", which then standardises each image itself" if backbone.standardize else ""
        typer.echo(
            "Neither torchvision nor timm has this backbone; load it into "
            f"solo_infoaug.host.small.SmallResNet(){then}."
        )
    typer.echo(f"Normalise images with mean {backbone.mean} and std {backbone.std}.")


app.command()(mine)


@app.command()
def show(
    dictionary: Annotated[Path, typer.Argument(help="A twin dictionary.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="FILE.html, FILE.png or FILE.mp4.")],
    videos: Annotated[
        list[Path] | None,
        typer.Option("--video", help="For an mp4: the source videos, or folders of them."),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(min=1, help="Draw the N windows with the most twins; by default 6 on a page."),
    ] = None,
) -> None:
    """Draw a dictionary's twins, tracks and mutual information."""
    from solo_infoaug.dictionary import TwinDictionary
    from solo_infoaug.viewer import show as draw

    draw(TwinDictionary.load(dictionary), out, videos or [], windows)
    typer.echo(f"wrote {out}")


@app.command()
def patches(
    dictionary: Annotated[Path, typer.Argument(help="A twin dictionary.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="An empty folder.")],
) -> None:
    """Write a dictionary's patches as an image folder, for solo-learn's `data.dataset: custom`."""
    from solo_infoaug.dictionary import TwinDictionary
    from solo_infoaug.dictionary.exporting import export_patches

    count = export_patches(TwinDictionary.load(dictionary), out)
    typer.echo(f"wrote {count} images to {out}")


@app.command()
def info(
    dictionary: Annotated[Path, typer.Argument(help="A twin dictionary.")],
    verify: Annotated[bool, typer.Option(help="Read all pixels and check their hashes.")] = False,
) -> None:
    """Describe a dictionary: its videos as a table on standard error, everything as JSON."""
    import json

    from solo_infoaug.dictionary import TwinDictionary
    from solo_infoaug.dictionary.tools import describe

    loaded = TwinDictionary.load(dictionary)
    content = describe(loaded, verify)
    print_videos(loaded, err=True)
    typer.echo(json.dumps(content, indent=2))


@app.command()
def merge(
    dictionaries: Annotated[list[Path], typer.Argument(help="Twin dictionaries.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new one.")],
) -> None:
    """Merge dictionaries into a new one."""
    from solo_infoaug.dictionary.tools import merge as run

    typer.echo(run(dictionaries, out).summary)


@app.command()
def split(
    dictionary: Annotated[Path, typer.Argument(help="A twin dictionary.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for `first` and `second`.")],
    fraction: Annotated[float, typer.Option(help="Share of `first`.")] = 0.8,
    by: Annotated[str, typer.Option(help="What the halves do not share: video or shot.")] = "video",
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
) -> None:
    """Split a dictionary into two that share no video, or no shot."""
    from solo_infoaug.dictionary.tools import split as run

    for half in run(dictionary, out, fraction, by, seed):
        typer.echo(half.summary)


@app.command(name="filter")
def filter_(
    dictionary: Annotated[Path, typer.Argument(help="A twin dictionary.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new one.")],
    min_mi: Annotated[
        float, typer.Option(help="Minimum mutual information of a twin, in nats.")
    ] = 0.0,
    max_p: Annotated[float, typer.Option(help="Maximum p-value of a twin.")] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="Maximum number of twins that a patch keeps.")
    ] = None,
) -> None:
    """Write a new dictionary without the twins that do not pass."""
    from solo_infoaug.dictionary.tools import filter_twins

    typer.echo(filter_twins(dictionary, out, min_mi=min_mi, max_p=max_p, top_k=top_k).summary)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    """One line, without the place in the code; warnings of other packages look as usual."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        typer.secho(f"solo-infoaug: {message}", fg=typer.colors.YELLOW, err=True)
    else:
        text = warnings.formatwarning(message, category, filename, lineno)
        typer.echo(text, nl=False, err=True)


# Errors of the system that are not the program's: the disk is full, reading or writing is not
# allowed, or a name is not.
_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}


def main() -> None:
    """Run the command line; an error that the user can fix is one message and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be text in the terminal's encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    try:
        app()
    except InfoAugError as error:
        why = str(error)
    except OSError as error:
        if not _has_temporary_folder():
            why = (
                "no folder for temporary files can be written (/tmp, the working directory); set "
                "TMPDIR to one that can"
            )
            _stop(why)
        if error.errno not in _REFUSALS:
            raise
        advice = "make room, or choose another place"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            advice = "raise the limit (ulimit -n)"
        why = f"{error.filename or 'a file'}: {error.strerror}; {advice}"
    else:
        return
    _stop(why)


def _stop(why: str) -> NoReturn:
    typer.secho(f"solo-infoaug: {why}", fg=typer.colors.RED, err=True)
    sys.exit(1)


def _has_temporary_folder() -> bool:
    """torch and matplotlib need one; a container with a read-only disk may have none."""
    import tempfile

    try:
        tempfile.gettempdir()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
