"""The spec of a solo-learn method: how its twin branch differs from the generic one.

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
class MethodSpec:
    """How one method's twin branch, and f-MICL in it, differ from the generic ones.

    The fields before `heads` are for tables and docs; training does not use them.
    """

    title: str
    """The method's name in its paper."""

    paper: str
    """Address of the paper."""

    positive: str
    """What this method's loss makes of a patch and its twin."""

    hosts: tuple[str, ...] = ("current", "release")
    """Which solo-learn has the method: the current one, the PyPI release, or both."""

    momentum_heads: tuple[str, ...] = ()
    """Modules that are the moving average of `heads`."""

    hooks: tuple[str, ...] = ()
    """Those of `HOOKS` that the method itself defines and needs."""

    heads: tuple[str, ...]
    """The branch's own trained modules. `infoaug.heads: none` is possible if these are only
    projector and predictor."""

    state: tuple[str, ...] = ()
    """The branch's own buffers: queues, memory of prototypes, centres. If they are only made when
    training starts, a resumed run restores them then."""

    branch: type = object
    """A class that the branch inherits from, before the method."""

    both_views: bool = False
    """Make each crop of both patch and twin, instead of alternating."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """New names for modules that solo-learn's linear evaluation would take for the backbone."""

    configure: Callable[[DictConfig], None] = _nothing
    """Changes the configuration that the branch is built from."""

    check: Callable[[Any, int, int], None] = _nothing
    """`check(method, batch_size, processes)` raises a ConfigError if the method's state cannot take
    twin batches of that size."""

    fmicl_terms: FMICLTermsOf | None = None
    """`fmicl_terms(method, outputs, loss)` computes the two terms of f-MICL from the outputs of the
    base class's training step, and returns the features of two views too. None: the method has no
    InfoNCE."""

    fmicl_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `FMICLConfig.loss` for this method."""


_added: dict[str, MethodSpec] = {}


def add_method(name: str, spec: MethodSpec) -> None:
    """Give a method of your own a twin branch, or replace that of a solo-learn method.

    Args:
        name: the method's name in solo-learn's `METHODS`. Add the method there before `register()`,
            or call `register()` again.
        spec: the modules that its twin branch has of its own, and its special cases.

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
        ConfigError: there is no such method.
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
