"""What overrides become: cells, configurations, hashes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from solo_infoaug.compare import grid
from solo_infoaug.compare.arms import ARMS
from solo_infoaug.compare.grid import Cell, Planner, Run, expand, parse_grid
from solo_infoaug.errors import ConfigError
from solo_infoaug.resources import config_folder
from solo_infoaug.training import load_config

Overrides = Callable[..., list[str]]


def _plan(overrides: list[str]) -> list[Run]:
    return Planner(parse_grid(overrides)).plan()


def _container(run: Run) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(run.config, resolve=True)
    return found


def test_default_grid() -> None:
    grid = parse_grid()
    assert grid.methods == (
        "simclr",
        "mocov2plus",
        "byol",
        "simsiam",
        "barlow_twins",
        "vicreg",
        "nnclr",
    )
    assert grid.arms == (
        "baseline",
        "baseline_images",
        "random",
        "random_anchor",
        "infoaug",
        "oracle",
    )
    cells = expand(grid)
    assert len(cells) == 7 * 6 * 5
    # every method and arm has a first seed before any has a second
    assert {cell.seed for cell in cells[:42]} == {0}


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("seed=7", "seeds="),
        ("method=byol", "methods="),
        ("infoaug=false", "arms="),
        ("~infoaug", "arms="),
        ("++infoaug.enabled=false", "arms="),
        ("infoaug.positives=self,random", "arms="),
        ("checkpoint.enabled=false", "keep_checkpoints="),
    ],
)
def test_what_the_grid_sets_itself_is_no_override(override: str, instead: str) -> None:
    """All "seeds" would train with one seed, or the arm `infoaug` without twins."""
    with pytest.raises(ConfigError, match=f"use {instead}"):
        parse_grid(["methods=simclr", override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.k=0", "evaluate.k: expected a whole number ≥ 1, got 0"),
        ("evaluate.k=a", "evaluate.k: expected a whole number ≥ 1, got 'a'"),
    ],
)
def test_settings_of_the_probes_are_checked_before_training(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _plan(["methods=simclr", "arms=baseline", "seeds=0", override])


def test_a_swept_dictionary_is_the_baselines_too_if_its_patches_are_trained_on() -> None:
    grid = parse_grid(["data=[patches,cifar10]", "methods=byol", "seeds=0", "infoaug.twins=a,b"])
    found = {(cell.data, cell.arm, cell.variant) for cell in expand(grid) if "base" in cell.arm}
    both = [("infoaug.twins=a",), ("infoaug.twins=b",)]
    arms = ("baseline", "baseline_images")
    assert found == {
        *(("patches", arm, variant) for arm in arms for variant in both),
        *(("cifar10", arm, ()) for arm in arms),
    }


def test_oracle_is_left_out_of_a_list_where_the_truth_is_not_known() -> None:
    cells = expand(parse_grid(["data=scenes,custom", "methods=byol", "seeds=0"]))
    assert {cell.arm for cell in cells if cell.data == "scenes"} == set(ARMS) - {"self"}
    assert {cell.arm for cell in cells if cell.data == "custom"} == set(ARMS) - {"self", "oracle"}


def test_lists_are_written_either_way() -> None:
    listed = parse_grid(["methods=[simclr,byol]", "seeds=[3,4]", "arms=[self]"])
    swept = parse_grid(["methods=simclr,byol", "seeds=3,4", "arms=self"])
    assert listed == swept
    assert expand(swept)[0] == Cell("simclr", "self", "scenes", 3)


def test_sweeps_of_the_twin_branch_do_not_repeat_the_baselines() -> None:
    grid = parse_grid(
        [
            "methods=simclr",
            "seeds=0",
            "arms=baseline,baseline_images,infoaug",
            "infoaug.weight=0,0.1,1",
            "++fmicl=js,kl",
        ]
    )
    cells = expand(grid)
    count = {arm: sum(cell.arm == arm for cell in cells) for arm in grid.arms}
    assert count == {"baseline": 2, "baseline_images": 2, "infoaug": 6}
    assert ("infoaug.weight=0.1", "++fmicl=js") in {cell.variant for cell in cells}
    batch = expand(parse_grid(["methods=simclr", "seeds=0", "infoaug.batch_size=8,16"]))
    assert {cell.variant for cell in batch if cell.arm == "baseline"} == {()}
    assert len({cell.variant for cell in batch if cell.arm == "baseline_images"}) == 2


def test_another_backbone_does_without_what_small_resnet_alone_has(
    overrides: Overrides, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, expected in (("small_resnet", {"standardize": True}), ("resnet18", {})):
        more = [f"backbone.name={name}", "+backbone.kwargs.standardize=true"]
        runs = _plan(overrides(*more))
        assert [_container(run)["backbone"]["kwargs"] for run in runs] == [expected] * len(runs)
        told = capsys.readouterr().err.count("resnet18 sees images that are not standardised")
        assert told == (name == "resnet18")


def test_bfloat16_that_this_cpu_only_imitates_is_said_once(
    overrides: Overrides, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    _plan(overrides("accelerator=cpu", "precision=bf16-mixed"))
    assert capsys.readouterr().err.count("no instructions for bf16-mixed") == 1


def test_arms_share_everything_but_the_twins(overrides: Overrides) -> None:
    runs = {
        run.cell.arm: run
        for run in _plan(overrides("arms=[baseline,baseline_images,random,self,infoaug]"))
    }
    configs = {arm: _container(run) for arm, run in runs.items()}
    assert {
        arm: configs[arm].pop("infoaug")["positives"] for arm in ("random", "self", "infoaug")
    } == {
        "random": "random",
        "self": "self",
        "infoaug": "twins",
    }
    assert configs["baseline_images"].pop("max_epochs") == 2
    for config in configs.values():
        config.pop("name")
        config.pop("checkpoint")
    for arm in ("random", "self", "infoaug"):
        assert configs[arm] == configs["baseline"]
    configs["baseline"].pop("max_epochs")
    assert configs["baseline_images"] == configs["baseline"]


@pytest.mark.parametrize(("pairs", "epochs"), [(8, 8), (4, 6), (3, 6), (16, 12)])
def test_baseline_of_the_same_images_never_sees_fewer(
    overrides: Overrides, pairs: int, epochs: int
) -> None:
    (run,) = _plan(overrides("arms=baseline_images", "max_epochs=4", f"infoaug.batch_size={pairs}"))
    assert run.config.max_epochs == epochs


def test_a_method_may_have_settings_of_its_own_on_a_data_set() -> None:
    def composed(*overrides: str) -> DictConfig:
        return load_config(config_folder() / "compare", "run", list(overrides))

    simclr = composed("methods=simclr", "datasets=scenes")
    byol = composed("methods=byol", "datasets=scenes")
    assert byol.momentum.final_tau == 0.99
    assert (byol.max_epochs, simclr.max_epochs) == (5, 3)  # the same for all arms of a method
    assert composed("methods=byol", "datasets=cifar10").momentum.final_tau == 1.0
    # the command has the last word, and other data sets know nothing of it
    assert composed("methods=byol", "datasets=scenes", "max_epochs=1").max_epochs == 1
    elsewhere = [composed(f"methods={name}", "datasets=cifar10") for name in ("byol", "simclr")]
    assert elsewhere[0].max_epochs == elsewhere[1].max_epochs


def test_files_of_methods_set_up_the_method_of_their_name() -> None:
    names = sorted(path.stem for path in (config_folder() / "compare" / "methods").glob("*.yaml"))
    assert {*parse_grid().methods, "mocov3"} <= {*names}
    for name in names:
        cfg = load_config(config_folder() / "compare", "run", [f"methods={name}"])
        assert cfg.method == name
        assert cfg.method_kwargs.proj_output_dim > 0


def test_fmicl_is_a_method_of_its_own(overrides: Overrides) -> None:
    plain, js = _plan(overrides("methods=['simclr','simclr+fmicl=js']", "arms=infoaug"))
    assert (plain.cell.method, js.cell.method) == ("simclr", "simclr+fmicl=js")
    assert js.config.method == "simclr"
    assert js.config.fmicl == "js"
    assert "fmicl" not in plain.config
    assert plain.hash != js.hash


def test_hash_follows_what_decides_and_nothing_else(overrides: Overrides, tmp_path: Path) -> None:
    def hashes(*more: str) -> dict[str, str]:
        return {run.cell.arm: run.hash for run in _plan(overrides(*more))}

    before = hashes()
    assert len(set(before.values())) == 3
    assert hashes(f"out='{tmp_path / 'elsewhere'}'", "jobs=2") == before
    weight = hashes("infoaug.weight=0.5")
    assert weight["baseline"] == before["baseline"]
    assert weight["infoaug"] != before["infoaug"]
    assert all(a != b for a, b in zip(hashes("seeds=1").values(), before.values(), strict=True))
    assert hashes("evaluate.k=5")["baseline"] != before["baseline"]


def test_finished_runs_keep_the_hash_that_they_had_under_former_keys(
    slim_backbone: None, image_folder: Path, twins_folder: Path, tmp_path: Path
) -> None:
    """The hashes are of the commit before `infoaug.arm` and `infoaug.others` were renamed."""
    out = tmp_path / "grid"
    shutil.copytree(twins_folder, out / "twins")
    shutil.copytree(image_folder, out / "images")
    grid = [
        f"out='{out}'",
        "methods=[simclr]",
        "arms=[baseline,random,random_anchor,self,infoaug]",
        "data=custom",
        "seeds=[0]",
        f"data.train_path='{out}/images'",
        f"evaluate.val_path='{out}/images'",
        f"infoaug.twins='{out}/twins'",
        "infoaug.heads=null",  # as it was when these runs were made
    ]
    plain = {run.cell.arm: run.hash for run in _plan(grid)}
    assert plain == {
        "baseline": "6f6f03f722e7",
        "random": "a7a18510d8aa",
        "random_anchor": "5de1fa9d20f5",
        "self": "8b91c0d74720",
        "infoaug": "1cbaf4a5bf29",
    }
    share = {run.cell.arm: run.hash for run in _plan([*grid, "+infoaug.without_twin_share=0.0"])}
    assert share == {
        "baseline": "6f6f03f722e7",
        "random": "70a5ae537991",
        "random_anchor": "041a848fbc03",
        "self": "9f57f79f255b",
        "infoaug": "80368410685a",
    }


def test_all_runs_begin_with_the_same_weights(overrides: Overrides, tmp_path: Path) -> None:
    """A file counts by what is in it; without `init` no run knows of the key."""
    file = tmp_path / "weights.ckpt"
    file.write_bytes(b"one")
    plain, begun = _plan(overrides()), _plan(overrides(f"init='{file}'"))
    assert not any("init" in run.config for run in plain)
    assert {run.config.init for run in begun} == {str(file)}
    of_timm = _plan(overrides("init='timm:resnet18'"))
    assert {run.config.init for run in of_timm} == {"timm:resnet18"}
    file.write_bytes(b"other")
    again = _plan(overrides(f"init='{file}'"))
    hashes = [run.hash for runs in (plain, begun, of_timm, again) for run in runs]
    assert len(set(hashes)) == len(hashes)
    with pytest.raises(ConfigError, match=r"^init: expected a checkpoint or timm:NAME, got none"):
        _plan(overrides("init=none"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods=simclear", "methods: expected some of .*simclr.*got 'simclear'"),
        ("arms=mi", "arms: expected some of baseline.*got 'mi'"),
        ("data=mnist", "data: expected some of .*scenes.*got 'mnist'"),
        ("seeds=[]", "seeds: expected a list"),
        ("seeds=-1", "seeds: expected whole numbers"),
        ("seeds=1,1", "seeds: expected a list of different values"),
        ("jobs=0", "jobs: expected a whole number ≥ 1, got 0"),
        ("methods=simclr+js", r"methods: expected NAME\+key=value"),
        ("jobs", "override 'jobs': expected key=value"),
    ],
)
def test_bad_grids_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_grid([override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arms=oracle", "arms: oracle needs data whose true twins are known, not custom"),
        ("max_epoch=3", "max_epoch"),
        ("data.train_path=???", "data.train_path: expected the path of custom"),
    ],
)
def test_bad_runs_are_named_before_any_starts(
    overrides: Overrides, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _plan(overrides(override))


def test_video_needs_videos(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.videos: expected a folder of videos with masks"):
        _plan([f"out='{tmp_path}'", "data=video", "methods=byol", "arms=baseline"])


def test_a_method_that_this_solo_learn_lacks_is_skipped_before_anything_is_made(
    host: Any,
    overrides: Overrides,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    methods = {name: method for name, method in host.methods.items() if name != "byol"}
    monkeypatch.setattr(grid, "load_host", lambda: replace(host, methods=methods))
    runs = _plan(overrides("methods=['simclr','byol','byol+fmicl=js']"))
    assert {run.cell.method for run in runs} == {"simclr"}
    told = capsys.readouterr().err
    for name in ("byol", "byol+fmicl=js"):
        assert f"methods: {name} is skipped, because this solo-learn" in told
    monkeypatch.setattr(grid, "prepare_scenes", lambda *_: pytest.fail("data was made"))
    with pytest.raises(ConfigError, match=r"methods: expected methods of this .*simclr.*got byol$"):
        _plan(["methods=byol", "data=scenes", "seeds=0"])
