"""What is special about a solo-learn method, for its twin branch.

The branch is generic: a second instance of the method over the same backbone (`learner.py`).
`method_patches/` holds one small module for each method, named as in solo-learn's `METHODS`, with
a `SPEC` that says what is doubled, what a twin positive means there, and what is not generic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, util
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich import box
from rich.table import Table

from solo_infoaug.errors import ConfigError, HostError

if TYPE_CHECKING:
    from torch import Tensor

    from solo_infoaug.objectives.loss import FMICLLoss, FMICLTerms

    FMICLTermsOf = Callable[[Any, dict[str, Any], FMICLLoss], tuple[FMICLTerms, list[Tensor]]]

HOOKS = ("on_train_start", "on_train_epoch_start", "on_after_backward")
"""Lightning's hooks that reach the branch."""

_PACKAGE = "solo_infoaug.method_patches"


def _nothing(*args: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What is told of a method and of its twin branch; nothing at run time reads it."""

    title: str
    """The method's name in its paper."""

    paper: str
    """Address of the paper."""

    positive: str
    """What a patch and its twin are to each other in this method's loss."""

    hosts: tuple[str, ...] = ("current", "release")
    """Which solo-learn has the method: the current one, the PyPI release, or both."""

    momentum_heads: tuple[str, ...] = ()
    """Modules that follow `heads` by the method's moving average."""

    hooks: tuple[str, ...] = ()
    """Those of `HOOKS` that the method itself defines, and lives by."""


@dataclass(frozen=True, kw_only=True)
class MethodSpec(MethodFacts):
    """How one method's twin branch, and f-MICL in it, differ from the generic ones."""

    heads: tuple[str, ...]
    """Trained modules that the branch has of its own. `infoaug.heads: none` needs that there is no
    other than projector and predictor."""

    state: tuple[str, ...] = ()
    """Buffers that the branch has of its own: queues, prototypes' memory, centres. A resumed run
    waits for those that are only made when training starts."""

    branch: type = object
    """Mixed into the branch, in front of the method."""

    heads_by_default: str = "full"
    """What `infoaug.heads` is by default; a module that changes it has the measurement."""

    both_views: bool = False
    """Make each crop of the patch and of the twin, instead of one or the other by turns."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """Modules whose names solo-learn's linear evaluation would take for the backbone's."""

    configure: Callable[[DictConfig], None] = _nothing
    """Changes the configuration that the branch is built from."""

    check: Callable[[Any, int, int], None] = _nothing
    """`check(method, batch_size, processes)` raises a ConfigError where the method's state cannot
    take twin batches of that size."""

    fmicl_terms: FMICLTermsOf | None = None
    """`fmicl_terms(method, outputs, loss)` makes of the base class's training step the two terms of
    f-MICL, and the features of two views; None where there is no InfoNCE that f-MICL replaces."""

    fmicl_options: Mapping[str, Any] = field(default_factory=dict)
    """Of f-MICL's loss for this method: `FMICLConfig.loss`."""


_added: dict[str, MethodSpec] = {}


def add_method(name: str, spec: MethodSpec) -> None:
    """Give a method of your own a twin branch, or one of solo-learn's another one.

    Args:
        name: what solo-learn's `METHODS` calls the method. Put it there before `register()`, or
            register again.
        spec: what its twin branch doubles, and what is not generic about it.

    Examples:
        >>> spec = MethodSpec(
        ...     title="Align and uniform",
        ...     paper="https://arxiv.org/abs/2005.10242",
        ...     positive="patch and twin are close, patches fill the sphere",
        ...     heads=("projector",),
        ... )
        >>> add_method("align_uniform", spec)
        >>> find_method("align_uniform").title
        'Align and uniform'
    """
    _added[name] = spec


def supported_methods() -> list[str]:
    """The names of all methods with a twin branch, sorted."""
    from pkgutil import iter_modules

    package = import_module(_PACKAGE)
    ours = (m.name for m in iter_modules(package.__path__) if not m.name.startswith("_"))
    return sorted({*ours, *_added})


def find_method(name: str) -> MethodSpec:
    """The spec of the method that `METHODS` calls `name`.

    Raises:
        ConfigError: there is none.
    """
    if name in _added:
        return _added[name]
    if not name.isidentifier() or util.find_spec(f"{_PACKAGE}.{name}") is None:
        raise ConfigError(
            f"infoaug: the method {name!r} has no twin branch; expected one of "
            f"{', '.join(supported_methods())} (give yours one with solo_infoaug.add_method)"
        )
    spec = import_module(f"{_PACKAGE}.{name}").SPEC
    assert isinstance(spec, MethodSpec)
    return spec


def fmicl_methods() -> list[str]:
    """The names of the methods whose InfoNCE f-MICL can replace, sorted."""
    return [name for name in supported_methods() if find_method(name).fmicl_terms is not None]


def methods_table() -> Table:
    """All methods with a twin branch, for people to read."""
    from solo_infoaug.host import load_host

    try:
        host = load_host()
        caption = f"here: solo-learn {host.info.version} ({host.info.kind}) at {host.info.path}"
        here = set(host.methods)
    except HostError as error:
        caption, here = str(error), set()
    table = Table(caption=caption, box=box.SIMPLE_HEAD, show_lines=True)
    for column in ("method", "here", "in", "the branch's own", "a patch and its twin", "paper"):
        table.add_column(column, overflow="fold")
    for name in supported_methods():
        spec = find_method(name)
        own = [", ".join(spec.heads)]
        if spec.heads_by_default == "none":
            own[0] = f"only with heads: full: {own[0]}"
        if spec.momentum_heads:
            own.append(f"moving average: {', '.join(spec.momentum_heads)}")
        if spec.state:
            own.append(f"state: {', '.join(spec.state)}")
        table.add_row(
            f"{name}\n{spec.title}",
            "yes" if name in here else "no",
            "\n".join(spec.hosts),
            "\n".join(own),
            spec.positive,
            spec.paper.removeprefix("https://"),
        )
    return table


def queue_takes_whole_batches(method: Any, batch_size: int, processes: int) -> None:
    """A `check`: solo-learn's queues are filled by whole batches, gathered over all processes."""
    queue = int(method.queue_size)
    if queue % (batch_size * processes):
        times = f" times {processes} processes" if processes > 1 else ""
        raise ConfigError(
            f"infoaug.batch_size: expected a divisor of method_kwargs.queue_size ({queue}), "
            f"got {batch_size}{times}"
        )
