"""`solo-infoaug upstream`: apply the patches in `upstream/` to a new branch of a solo-learn clone.

The patches are applied and tested in a separate worktree. The clone changes only at the end, when
it switches to the new branch, so an error leaves it unchanged.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from solo_infoaug.errors import UpstreamError
from solo_infoaug.resources import upstream_folder

DEFAULT_BRANCH = "solo-infoaug"


@dataclass(frozen=True)
class Applied:
    """The result of applying the series."""

    branch: str
    before: str
    """The branch, or commit, that the clone was on before."""
    commit: str
    """The commit that the series was applied to, abbreviated."""
    base: str
    """The commit that the series was made for, abbreviated."""
    patches: list[tuple[str, str]]
    """Name of each, and lines added and removed: `+41 -8`."""
    tests: list[str]
    """The tests that the series brings, as pytest names them."""
    passed: bool
    output: str
    """The last lines that pytest wrote."""


def patch_files() -> list[Path]:
    """The series, in order."""
    return sorted(upstream_folder().glob("*.patch"))


def new_tests(patches: Sequence[Path]) -> list[str]:
    """The tests that patches add, as pytest names them: `tests/x/test_y.py::test_z`."""
    tests, file = [], ""
    for line in "\n".join(p.read_text(encoding="utf-8") for p in patches).splitlines():
        if line.startswith("+++ b/"):
            file = line.removeprefix("+++ b/")
        elif file.startswith("tests/") and (test := re.match(r"\+def (test_\w+)\(", line)):
            tests.append(f"{file}::{test[1]}")
    return tests


def base_commit(patches: Sequence[Path]) -> str:
    """The commit of solo-learn that the series was made for."""
    line = re.search(r"^base-commit: (\w+)$", patches[0].read_text(encoding="utf-8"), re.M)
    assert line is not None
    return line[1]


# --- git -------------------------------------------------------------------------------------


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # a GIT_DIR of the caller's (a hook's, say) would name another repository
    theirs = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    env = {name: value for name, value in os.environ.items() if name not in theirs}
    env["LC_ALL"] = "C"  # its messages are read
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, env=env, check=False
    )


def _git(folder: Path, *arguments: str) -> str:
    done = _run(folder, *arguments)
    if done.returncode != 0:
        raise UpstreamError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _check_clone(clone: Path, branch: str) -> None:
    """Refuse a clone or branch name that cannot, or should not, be used."""
    if not clone.is_dir():
        raise UpstreamError(
            f"CLONE: expected the folder of a solo-learn clone, got {clone}, which is "
            f"{'a file' if clone.exists() else 'not there'}; "
            "git clone https://github.com/vturrisi/solo-learn"
        )
    top = _run(clone, "rev-parse", "--show-toplevel")
    if top.returncode != 0 or Path(top.stdout.strip()).resolve() != clone.resolve():
        raise UpstreamError(
            f"CLONE: expected the top folder of a solo-learn clone, and {clone} is not that of a "
            "git repository; git clone https://github.com/vturrisi/solo-learn"
        )
    if not (clone / "solo" / "methods" / "base.py").is_file():
        raise UpstreamError(
            f"CLONE: expected a clone of solo-learn, and {clone} is a repository without "
            "solo/methods/base.py"
        )
    changed = _run(clone, "status", "--porcelain").stdout.splitlines()
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UpstreamError(
            f"CLONE: expected a clean clone, and {clone} has changes: "
            f"{', '.join(line[3:] for line in changed[:5])}{more}; commit or stash them "
            "(git stash -u)"
        )
    if _run(clone, "check-ref-format", "--branch", branch).returncode != 0:
        raise UpstreamError(f"--branch: expected the name of a branch, got {branch!r}")
    if _run(clone, "show-ref", "--verify", "--quiet", f"refs/heads/{branch}").returncode == 0:
        raise UpstreamError(
            f"--branch: {clone} has a branch {branch!r} already, which stays as it is; "
            "choose another name with --branch"
        )


@contextmanager
def _worktree(clone: Path) -> Iterator[Path]:
    """The clone's commit in a folder of its own, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="solo-infoaug-upstream-") as folder:
        tree = Path(folder) / "solo-learn"
        _git(clone, "worktree", "add", "--quiet", "--detach", str(tree), "HEAD")
        try:
            yield tree
        finally:
            _run(clone, "worktree", "remove", "--force", str(tree))


def _committer(clone: Path) -> list[str]:
    """A committer for users whose git has no name yet; the author is in the patches."""
    if _run(clone, "var", "GIT_COMMITTER_IDENT").returncode == 0:
        return []
    return ["-c", "user.name=solo-infoaug", "-c", "user.email=solo-infoaug@localhost"]


def _apply(tree: Path, patch: Path, commit: str, base: str) -> str:
    """Commit a patch; returns the lines that it adds and removes."""
    check = _run(tree, "apply", "--check", str(patch))
    if check.returncode != 0:
        if _run(tree, "apply", "--check", "--reverse", str(patch)).returncode == 0:
            why = "it is there already"
        else:
            files = re.findall(r"^error: (?:patch failed: )?([^:\n]+?):", check.stderr, re.M)
            why = f"it does not apply to {', '.join(dict.fromkeys(files)) or check.stderr.strip()}"
        raise UpstreamError(
            f"{patch.name}: {why} (the clone is at {commit}, the series is made for {base[:7]}); "
            f"git checkout {base[:7]} in a clone applies all of it"
        )
    _git(tree, *_committer(tree), "am", "--quiet", "--no-gpg-sign", str(patch))
    added, removed = 0, 0
    for line in _git(tree, "show", "--numstat", "--format=").splitlines():
        plus, minus, _ = line.split("\t")
        added, removed = added + int(plus), removed + int(minus)
    return f"+{added} -{removed}"


def _test(tree: Path, tests: Sequence[str]) -> tuple[bool, str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *tests],
        cwd=tree,
        env={**env, "PYTHONPATH": str(tree), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0, "\n".join(done.stdout.strip().splitlines()[-15:])


def apply_series(clone: Path, branch: str = DEFAULT_BRANCH) -> Applied:
    """Apply the series to a clean clone of solo-learn, on a new branch, and run its tests.

    `clone` is its top folder. At the end it is on the new branch.

    Raises:
        UpstreamError: there is no clone, it has changes, the branch exists, a patch does not apply
            (the message names patch and file), or pytest is missing. Nothing is changed then.
    """
    _check_clone(clone, branch)
    if importlib.util.find_spec("pytest") is None:
        raise UpstreamError("pytest is not installed, and the series brings tests; pip install it")
    patches = patch_files()
    base = base_commit(patches)
    before = _run(clone, "symbolic-ref", "--short", "HEAD").stdout.strip()
    commit = _git(clone, "rev-parse", "--short", "HEAD")
    with _worktree(clone) as tree:
        applied = [(patch.stem, _apply(tree, patch, commit, base)) for patch in patches]
        tests = new_tests(patches)
        passed, output = _test(tree, tests)
        _git(clone, "branch", "--no-track", branch, _git(tree, "rev-parse", "HEAD"))
    _git(clone, "switch", "--quiet", branch)
    return Applied(branch, before or commit, commit, base[:7], applied, tests, passed, output)
