"""The patches for solo-learn: the command that applies them, and InfoAug through their hook."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from processes import python

from solo_infoaug.errors import UpstreamError
from solo_infoaug.host.upstream import apply_series, base_commit, new_tests, patch_files
from solo_infoaug.resources import upstream_folder
from solo_infoaug.twin.spec import supported_methods

SEVEN = ["simclr", "mocov2plus", "byol", "simsiam", "barlow_twins", "vicreg", "nnclr"]


_HOOKED = Path(__file__).with_name("hooked.py")


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"]
    return subprocess.run(
        ["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


# --- the hook --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def patched(solo_learn_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the current solo-learn with the series applied."""
    clone = tmp_path_factory.mktemp("upstream") / "solo-learn"
    _git(Path.cwd(), "clone", "-q", str(solo_learn_home), str(clone))
    _git(clone, "am", *map(str, patch_files()))
    return clone


Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Trains runs in a process of its own, on the solo-learn in a folder."""

    def run(home: Path, runs: dict[str, DictConfig], *arguments: str) -> dict[str, Any]:
        given, out = tmp_path / "runs.json", tmp_path / "out.json"
        given.write_text(json.dumps([[n, OmegaConf.to_container(c)] for n, c in runs.items()]))
        python(_HOOKED, given, out, *arguments, timeout=1200, SOLO_LEARN_HOME=str(home))
        results: dict[str, Any] = json.loads(out.read_text())
        return results

    return run


def _logged(step: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in step.items() if name != "total"}


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.current_host
def test_all_methods_train_through_the_hook(
    patched: Path,
    solo_learn_home: Path,
    train: Train,
    make_cfg: Callable[..., DictConfig],
    twins_folder: Path,
) -> None:
    """And the seven main ones as they do where `METHODS` is replaced, bit for bit."""
    infoaug = {"twins": str(twins_folder), "weight": 0.5}
    runs = {name: make_cfg(name, infoaug) for name in supported_methods()}
    hooked = train(patched, runs)
    assert not hooked["replaced"]
    today = train(solo_learn_home, {name: runs[name] for name in SEVEN})
    assert today["replaced"]
    for name in runs:
        steps = hooked[name]["steps"]
        assert len(steps) == 6
        assert "twin_loss" in steps[-1]
        assert any(key.startswith("twin.") for key in hooked[name]["state"])
    for name in SEVEN:
        ours, theirs = hooked[name], today[name]
        assert ours["kind"].startswith("solo.methods")
        assert [_logged(step) for step in ours["steps"]] == [
            _logged(step) for step in theirs["steps"]
        ]
        # the sum of the three losses is formed in another order, which moves its last bit alone
        for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
            assert float.fromhex(mine["total"]) == pytest.approx(
                float.fromhex(other["total"]), rel=1e-6
            )
        different = {key for key in ours["state"] if ours["state"][key] != theirs["state"][key]}
        # the momentum backbone sees the twins before the views: what its norms keep of them, and
        # training never reads
        assert all(
            key.startswith("momentum_backbone.") and "running" in key for key in different
        ), different
        assert ours["state"].keys() == theirs["state"].keys()


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.current_host
def test_without_infoaug_a_patched_solo_learn_is_plain(
    patched: Path, solo_learn_home: Path, train: Train, make_cfg: Callable[..., DictConfig]
) -> None:
    """The plugin is installed and InfoAug off: all methods are those of unpatched solo-learn."""
    runs = {name: make_cfg(name, max_epochs=1) for name in supported_methods()}
    hooked, plain = train(patched, runs), train(solo_learn_home, runs, "plain")
    assert not hooked["replaced"]
    assert not plain["replaced"]
    assert hooked == plain


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.current_host
def test_fmicl_and_separate_norms_through_the_hook(
    patched: Path,
    solo_learn_home: Path,
    train: Train,
    make_cfg: Callable[..., DictConfig],
    twins_folder: Path,
) -> None:
    twins = {"twins": str(twins_folder)}
    short = {"max_epochs": 1}
    runs = {
        "view": make_cfg("simclr", fmicl="js", **short),
        "both": make_cfg("mocov2plus", twins, fmicl="js", **short),
        "twins": make_cfg("simclr", {**twins, "objective": "kl"}, **short),
        "separate": make_cfg("byol", {**twins, "batch_norm": "separate"}, **short),
    }
    hooked, today = train(patched, runs), train(solo_learn_home, runs)
    assert not hooked["replaced"]
    for name in runs:
        ours, theirs = hooked[name]["steps"], today[name]["steps"]
        assert [_logged(step) for step in ours] == [_logged(step) for step in theirs]
    assert "train_fmicl_loss" in hooked["view"]["steps"][0]
    assert "twin_fmicl_loss" in hooked["twins"]["steps"][0]


_REFUSED = """
import json, sys
from omegaconf import OmegaConf
from solo_infoaug.errors import InfoAugError
from solo_infoaug.training import pretrain

(_, first), (_, second) = json.load(open(sys.argv[1]))
result = pretrain(OmegaConf.create(first))
second["resume_from_checkpoint"] = str(result.checkpoint)
try:
    pretrain(OmegaConf.create(second))
except InfoAugError as error:
    json.dump(str(error), open(sys.argv[2], "w"))
"""


@pytest.mark.slow
@pytest.mark.current_host
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("on", "off", "is that of a run with InfoAug, but this is a baseline run"),
        ("off", "on", "is that of a baseline run, but this is a run with InfoAug"),
        ("fmicl", "off", "fmicl: the checkpoint to resume was trained with"),
    ],
)
def test_wrong_checkpoint_is_refused_through_the_hook(
    patched: Path,
    make_cfg: Callable[..., DictConfig],
    twins_folder: Path,
    tmp_path: Path,
    first: str,
    second: str,
    message: str,
) -> None:
    kinds = {
        "on": make_cfg("simclr", {"twins": str(twins_folder)}, max_epochs=1),
        "off": make_cfg("simclr", max_epochs=1),
        "fmicl": make_cfg("simclr", fmicl="js", max_epochs=1),
    }
    given, out = tmp_path / "given.json", tmp_path / "out.json"
    given.write_text(json.dumps([[n, OmegaConf.to_container(kinds[n])] for n in (first, second)]))
    python("-c", _REFUSED, given, out, timeout=600, SOLO_LEARN_HOME=str(patched))
    assert message in json.loads(out.read_text())


_FORMER = """
import json, sys
from omegaconf import OmegaConf
from solo_infoaug.errors import InfoAugError
from solo_infoaug.training import pretrain

((_, given),) = json.load(open(sys.argv[1]))
args = pretrain(OmegaConf.create(given)).folder / "args.json"
run = json.loads(args.read_text())
run["infoaug"]["arm"], run["infoaug"]["others"] = "mi", run["infoaug"].pop("without_twin_share")
assert run["infoaug"].pop("positives") == "twins"
args.write_text(json.dumps(run))
try:
    pretrain(OmegaConf.create(given))
except InfoAugError as error:
    json.dump(str(error), open(sys.argv[2], "w"))
"""


@pytest.mark.slow
@pytest.mark.current_host
def test_a_run_with_former_keys_is_told_through_the_hook(
    patched: Path, make_cfg: Callable[..., DictConfig], twins_folder: Path, tmp_path: Path
) -> None:
    cfg = make_cfg("simclr", {"twins": str(twins_folder)}, max_epochs=1)
    cfg.auto_resume = {"enabled": True}
    given, out = tmp_path / "given.json", tmp_path / "out.json"
    given.write_text(json.dumps([["on", OmegaConf.to_container(cfg)]]))
    python("-c", _FORMER, given, out, timeout=600, SOLO_LEARN_HOME=str(patched))
    assert "its args.json has the former keys infoaug.arm" in json.loads(out.read_text())


# --- the command -----------------------------------------------------------------------------


def _repository(folder: Path) -> Path:
    """A git repository with the file by which solo-learn is known."""
    (folder / "solo" / "methods").mkdir(parents=True)
    (folder / "solo" / "methods" / "base.py").write_text("value = 1\n")
    (folder / "setup.py").write_text("# another one\n")
    _git(folder, "init", "-q", "-b", "main")
    _git(folder, "add", "-A")
    _git(folder, "commit", "-qm", "first")
    return folder


def _state(folder: Path) -> tuple[str, ...]:
    """All that the command might change: branches, what is checked out, files, worktrees."""
    commands = ["for-each-ref", "rev-parse HEAD", "status --porcelain", "worktree list", "branch"]
    return tuple(_git(folder, *command.split()) for command in commands)


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A series of one patch, for a repository that `_repository` makes; returns the patch."""
    made = _repository(tmp_path / "made")
    base = _git(made, "rev-parse", "HEAD")
    (made / "solo" / "methods" / "base.py").write_text("value = 2\n")
    (made / "tests").mkdir()
    (made / "tests" / "test_value.py").write_text(
        "from pathlib import Path\n\n\ndef test_value():\n"
        "    assert 'value = 2' in Path('solo/methods/base.py').read_text()\n"
    )
    _git(made, "add", "-A")
    _git(made, "commit", "-qm", "second")
    _git(made, "format-patch", "-q", f"--base={base}", "-o", str(tmp_path / "series"), base)
    (patch,) = (tmp_path / "series").glob("*.patch")
    monkeypatch.setattr("solo_infoaug.host.upstream.patch_files", lambda: [patch])
    return patch


def test_series_goes_onto_a_branch_of_its_own(series: Path, tmp_path: Path) -> None:
    clone = _repository(tmp_path / "clone")
    main = _git(clone, "rev-parse", "main")
    done = apply_series(clone, "ours")
    assert (done.passed, done.tests) == (True, ["tests/test_value.py::test_value"])
    assert done.patches == [(series.stem, "+6 -1")]
    assert (done.before, done.branch) == ("main", "ours")
    assert _git(clone, "branch", "--show-current") == "ours"
    assert _git(clone, "rev-parse", "main", "ours~1").split() == [main, main]
    assert _git(clone, "status", "--porcelain") == ""
    assert len(_git(clone, "worktree", "list").splitlines()) == 1

    after = _state(clone)
    with pytest.raises(UpstreamError, match=r"--branch: .* has a branch 'ours' already"):
        apply_series(clone, "ours")
    with pytest.raises(UpstreamError, match=r"0001-second\.patch: it is there already"):
        apply_series(clone, "more")
    assert _state(clone) == after


def test_failing_tests_are_told(series: Path, tmp_path: Path) -> None:
    text = series.read_text().replace("+    assert 'value = 2' in", "+    assert 'value = 3' in")
    series.write_text(text)
    done = apply_series(_repository(tmp_path / "clone"))
    assert not done.passed
    assert "1 failed" in done.output


def _dirty(folder: Path) -> None:
    _repository(folder)
    (folder / "setup.py").write_text("# changed\n")
    (folder / "new.py").touch()


def _other_project(folder: Path) -> None:
    _repository(folder)
    _git(folder, "mv", "solo", "other")
    _git(folder, "commit", "-qm", "renamed")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_dirty, r"expected a clean clone, and .* has changes: setup.py, new.py"),
        (_repository, r"0001-.*\.patch: it does not apply to setup.py \(the clone is at \w+, "),
        (_other_project, "is a repository without solo/methods/base.py"),
    ],
)
def test_wrong_repository_is_refused_and_left_alone(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    make(tmp_path / "clone")
    before = _state(tmp_path / "clone")
    with pytest.raises(UpstreamError, match=message):
        apply_series(tmp_path / "clone")
    assert _state(tmp_path / "clone") == before


def test_no_clone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (_repository(tmp_path / "clone") / "docs").mkdir()
    for name, message in {
        "folder": "is not that of a git repository",
        "file": "which is a file",
        "absent": "which is not there",
        "clone/docs": "is not that of a git repository",
    }.items():
        with pytest.raises(UpstreamError, match=message):
            apply_series(tmp_path / name)
    assert list((tmp_path / "folder").iterdir()) == []
    with pytest.raises(UpstreamError, match="--branch: expected the name of a branch"):
        apply_series(tmp_path / "clone", "a..b")


def test_the_series_is_whole() -> None:
    patches = patch_files()
    assert [int(p.name[:4]) for p in patches] == list(range(1, len(patches) + 1))
    assert len(base_commit(patches)) == 40
    for patch in patches:
        assert new_tests([patch]), f"{patch.name} brings no test"
        assert "From: The solo-infoaug developers" in patch.read_text()
    readme = (upstream_folder() / "README.md").read_text()
    assert base_commit(patches)[:7] in readme
    for patch in patches:
        assert f"| {patch.name[:4]} " in readme


@pytest.mark.current_host
def test_command_says_what_is_wrong(tmp_path: Path, solo_learn_home: Path) -> None:
    """On a real clone: an older commit, where the first patch that does not fit is named."""
    clone = tmp_path / "clone"
    _git(tmp_path, "clone", "-q", str(solo_learn_home), str(clone))
    (clone / "main_pretrain.py").write_text("")
    _git(clone, "commit", "-qam", "emptied")
    before = _state(clone)
    done = subprocess.run(
        [sys.executable, "-m", "solo_infoaug.cli", "upstream", str(clone)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "0002-Run-with-Hydra-1.4.patch: it does not apply to main_pretrain.py" in done.stderr
    assert _state(clone) == before
