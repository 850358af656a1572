"""Registration in solo-learn, through Hydra and by hand; what it costs everybody else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from processes import python

import solo_infoaug
from solo_infoaug.errors import ConfigError
from solo_infoaug.twin.config import read_infoaug


def test_registering_again_changes_nothing(host: Any) -> None:
    before = dict(host.methods)
    keys = list(host.should_match)
    assert solo_infoaug.register() is host
    assert host.methods == before
    assert host.should_match == keys
    assert len(set(keys)) == len(keys)


def test_every_method_is_extended_in_place(host: Any) -> None:
    from solo.methods import METHODS

    assert METHODS is host.methods
    for name, method in METHODS.items():
        if name in ("base", "linear"):
            assert not hasattr(method, "infoaug_plain")
        else:
            assert issubclass(method, method.infoaug_plain)
            assert method.__name__ == method.infoaug_plain.__name__


def test_import_loads_nothing_heavy() -> None:
    out = python(
        "-c",
        "import sys, solo_infoaug; "
        "print([m for m in ('torch', 'kornia', 'lightning', 'cv2', 'av') if m in sys.modules])",
    ).stdout
    assert out.strip() == "[]"


_UNRELATED = """
import sys
import hydra
from omegaconf import DictConfig

@hydra.main(version_base=None, config_path=None)
def main(cfg: DictConfig) -> None:
    print([m for m in ("torch", "kornia", "solo_infoaug", "solo") if m in sys.modules])

main()
"""


def test_unrelated_hydra_program_loads_nothing_of_ours(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(_UNRELATED)
    done = python(script, "hydra.run.dir=.", cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_hydra_finds_the_plugin() -> None:
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    names = [plugin.__name__ for plugin in Plugins.instance().discover(SearchPathPlugin)]
    assert names.count("SoloInfoAugPlugin") == 1


_SOLO_PROGRAM = """
import hydra
from omegaconf import DictConfig, OmegaConf
from solo.methods import METHODS

@hydra.main(version_base="1.2", config_path=None)
def main(cfg: DictConfig) -> None:
    print(hasattr(METHODS["simclr"], "infoaug_plain"), hasattr(METHODS["linear"], "infoaug_plain"))

main()
"""


def test_hydra_registers_in_a_program_that_imports_solo_learn(
    solo_learn_home: Path, tmp_path: Path
) -> None:
    script = tmp_path / "app.py"
    script.write_text(_SOLO_PROGRAM)
    done = python(script, "hydra.run.dir=.", cwd=tmp_path, PYTHONPATH=str(solo_learn_home))
    assert done.stdout.split() == ["True", "False"]


_FORK = """
import hydra
import solo.methods

@hydra.main(version_base=None, config_path=None)
def main(cfg):
    print("ran")

main()
"""


@pytest.mark.parametrize(
    "content",
    ["MODELS = {}", "METHODS = {'mine': None}"],
    ids=["unknown", "looks like solo-learn"],
)
def test_program_with_another_solo_runs_unless_it_asks_for_infoaug(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "solo" / "methods").mkdir(parents=True)
    (tmp_path / "solo" / "__init__.py").touch()
    (tmp_path / "solo" / "methods" / "__init__.py").write_text(content)
    if content.startswith("METHODS"):
        (tmp_path / "solo" / "data").mkdir()
        (tmp_path / "solo" / "data" / "pretrain_dataloader.py").touch()
    script = tmp_path / "app.py"
    script.write_text(_FORK)
    program, without = (script, "hydra.run.dir=."), {"SOLO_LEARN_HOME": None, "PYTHONPATH": None}
    done = python(*program, cwd=tmp_path, **without)
    assert done.stdout.strip() == "ran"
    assert "solo-infoaug could not be registered" in done.stderr
    assert python(*program, "++infoaug=true", cwd=tmp_path, check=False, **without).returncode != 0


def test_classes_are_pickled_by_name_and_register_where_they_arrive(host: Any) -> None:
    import pickle

    for name, method in host.methods.items():
        if name in ("base", "linear"):
            continue
        for kind in (method, method.infoaug_branch):
            assert pickle.loads(pickle.dumps(kind)) is kind
    out = python(
        "-c",
        "import pickle, sys\n"
        "kind = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "from solo.methods import METHODS\n"
        "print(METHODS['simclr'] is kind)",
        pickle.dumps(host.methods["simclr"]).hex(),
    ).stdout
    assert out.strip() == "True"


def test_model_without_infoaug_is_pickled_as_plain_solo_learns(
    solo_learn_home: Path, host: Any, make_cfg: Any, tmp_path: Path
) -> None:
    """So that it can be loaded where this package is not."""
    import torch

    module = host.methods["simclr"](host.parse_cfg(make_cfg("simclr")))
    torch.save(module, tmp_path / "model.pt")
    out = python(
        "-c",
        "import sys\n"
        "sys.modules['solo_infoaug'] = None  # cannot be imported\n"
        "import torch\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "from solo.methods import METHODS\n"
        "print(type(model) is METHODS['simclr'], len(model.state_dict()))",
        str(tmp_path / "model.pt"),
        # The tests' own backbone lies beside them
        PYTHONPATH=os.pathsep.join([str(solo_learn_home), str(Path(__file__).parents[1])]),
    ).stdout
    assert out.split() == ["True", str(len(module.state_dict()))]


@pytest.mark.parametrize(
    ("home", "message"),
    [("empty", "SOLO_LEARN_HOME: expected a clone of solo-learn")],
)
def test_wrong_home_is_named(tmp_path: Path, home: str, message: str) -> None:
    (tmp_path / home).mkdir()
    out = python(
        "-c",
        "from solo_infoaug.host import find_host\n"
        "from solo_infoaug.errors import HostError\n"
        "try:\n    find_host()\nexcept HostError as error:\n    print(error)",
        SOLO_LEARN_HOME=str(tmp_path / home),
    ).stdout
    assert message in out


def test_working_directory_and_home_name_the_current_one(
    solo_learn_home: Path, tmp_path: Path
) -> None:
    code = "from solo_infoaug.host import find_host; i = find_host(); print(i.kind, '|', i.source)"
    named = python("-c", code, SOLO_LEARN_HOME=str(solo_learn_home))
    assert named.stdout == "current | SOLO_LEARN_HOME\n"
    here = python("-c", code, cwd=solo_learn_home, SOLO_LEARN_HOME="")
    assert here.stdout == "current | working directory\n"


def _lines(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_doctor_names_host_and_versions() -> None:
    done = python("-m", "solo_infoaug.cli", "doctor")
    found = {line.split()[1]: line for line in _lines(done.stdout) if not line.startswith(" ")}
    for name in ("solo-learn", "torch", "lightning", "kornia", "device", "video"):
        assert name in found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"infoaug": "???"}, r"^infoaug: expected true, false or a mapping, got \?\?\?"),
        ({"infoaug": {"twins": "???"}}, r"^infoaug\.twins: expected a value, got \?\?\?"),
        ({"infoaug": {"weight": "???"}}, r"^infoaug\.weight: expected a value, got \?\?\?"),
        ({"infoaug": {"twins": ""}}, r"^infoaug\.twins: expected the folder .*, got ''"),
    ],
)
def test_what_is_still_to_be_given_is_no_wish_for_the_default(given: Any, message: str) -> None:
    """Else a run would train on whatever dictionary was mined last."""
    with pytest.raises(ConfigError, match=message):
        read_infoaug(OmegaConf.create(given))
