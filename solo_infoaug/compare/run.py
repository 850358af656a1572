"""One run of the grid: pretrain, evaluate, `result.json`. A Hydra program, for any launcher.

`python -m solo_infoaug.compare.run folder=RUN`: RUN holds `config.yaml`, a solo-learn
configuration, and `run.json`, both written by `solo-infoaug compare`. A failed run leaves an
`error.json`.
"""

from __future__ import annotations

import platform
import resource
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from solo_infoaug._files import digest
from solo_infoaug.compare.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    Labelled = tuple[Tensor, Tensor, Tensor]


@dataclass
class ProgramConfig:
    """The input of the program."""

    folder: str = MISSING


ConfigStore.instance().store("solo_infoaug_compare_run", ProgramConfig)


def execute(folder: Path) -> dict[str, Any]:
    """Pretrain and evaluate the run in `folder`; returns the content of `result.json`.

    The protocol:

    * Pretraining is `solo_infoaug.training.pretrain`, which `solo-infoaug pretrain` runs.
    * `online`: top-1 accuracy on the validation images at the end of pretraining, of solo-learn's
      linear classifier, which learns along with the backbone, without gradient into it.
    * `linear`, `knn`: `solo_infoaug.evaluation`, of the frozen backbone of the last checkpoint.
    * `linear_NAME`, `knn_NAME`: the same on each data set of `evaluate.also`.
    * `seen_…`, `unseen_…` (video): see `evaluate_video`.
    * `linear_across`, `knn_across` (scenes): the same probes, which learn from all parts except one
      and are tested on that one; mean over the parts.

    Accuracies are in per cent. `images` counts augmented views that went through the backbone in
    training, of both branches; `seconds` is the time of the training loop with its validation,
    `total_seconds` all of it; `memory_mib` the peak resident size of the process.
    """
    from omegaconf import DictConfig, OmegaConf

    from solo_infoaug.compare.callback import Watch
    from solo_infoaug.training import pretrain

    start = time.perf_counter()
    files = RunFolder(folder)
    plan, cfg = files.read_plan(), OmegaConf.load(files.config)
    assert isinstance(cfg, DictConfig)
    shutil.rmtree(files.training, ignore_errors=True)
    # `online` is read at the end; with few images, validation takes longer than training
    cfg.setdefault("check_val_every_n_epoch", cfg.max_epochs)
    watch = Watch(files)
    trained = pretrain(cfg, [watch])
    assert trained.checkpoint is not None
    online = trained.metrics.get("val_acc1", trained.metrics.get("train_acc1_epoch"))
    metrics = {} if online is None else {"online": online}
    measured, more = evaluate_run(trained.checkpoint, plan["evaluate"], Path(plan["references"]))
    metrics |= measured
    shutil.copyfile(trained.checkpoint.parent / "metrics.csv", files.metrics)
    if not plan["keep_checkpoint"]:
        trained.checkpoint.unlink()
    result = {
        **{key: plan[key] for key in ("method", "arm", "data", "seed", "variant", "hash")},
        "fingerprint": plan["fingerprint"],
        "metrics": metrics,
        **more,
        "epochs": int(cfg.max_epochs),
        "steps": watch.steps,
        "images": watch.images,
        "seconds": watch.seconds,
        "images_per_second": watch.images / watch.seconds,
        "total_seconds": time.perf_counter() - start,
        **_machine(),
    }
    files.note_result(result)
    return result


def _machine() -> dict[str, Any]:
    """The machine and the versions that the run used, and its memory."""
    import torch

    from solo_infoaug import __version__
    from solo_infoaug.host import find_host

    card, host = torch.cuda.is_available(), find_host()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "memory_mib": peak / 2**20 if sys.platform == "darwin" else peak / 2**10,
        "gpu_memory_mib": torch.cuda.max_memory_allocated() / 2**20 if card else None,
        "device": torch.cuda.get_device_name() if card else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "solo_infoaug": __version__,
            "solo_learn": f"{host.kind} {host.version}",
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def evaluate_run(
    checkpoint: Path, how: dict[str, Any], store: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of a run, per cent, and what goes into the result beside them.

    `how`: `dataset` and the further arguments of `evaluation.evaluate`, or "scenes" or "video" and
    its settings; and `also`, the arguments for further labelled images, by their names. `store`:
    folder of the references that runs of the grid share.
    """
    from solo_infoaug.compare.images import evaluate_images

    main = {key: value for key, value in how.items() if key != "also"}
    sets: dict[str, dict[str, Any]] = dict(how.get("also", {}))
    metrics: dict[str, float] = {}
    more: dict[str, Any] = {}
    if main["dataset"] == "video":
        metrics, more = evaluate_video(checkpoint, main["video"], store)
    elif main["dataset"] == "scenes":
        metrics = evaluate_scenes(checkpoint, main)
    else:
        sets = {"": main, **sets}
    if sets:
        measured, references = evaluate_images(checkpoint, sets, store)
        metrics |= measured
        known = more.get("references", {})
        names = [*known, *(name for name in references if name not in known)]
        more["references"] = {
            name: {**known.get(name, {}), **references.get(name, {})} for name in names
        }
    return metrics, more


def evaluate_scenes(checkpoint: Path, how: dict[str, Any]) -> dict[str, float]:
    """The metrics of `evaluate_features` on the stills of `scenes`."""
    from solo_infoaug.evaluation import extract_features, load_backbone
    from solo_infoaug.scenes.parts import ScenesConfig, stills

    backbone = load_backbone(checkpoint)
    splits = [stills(ScenesConfig(**how["scenes"]), split) for split in ("labelled", "test")]
    labelled, test = (
        (extract_features(backbone, images), classes, parts) for images, classes, parts in splits
    )
    return evaluate_features(labelled, test, how["k"])


def evaluate_video(
    checkpoint: Path, how: dict[str, Any], store: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of `compare.video`, with label propagation; means over the videos, per cent.

    And what goes beside them: `sequences` (metric → video → per cent) and `references` (chance,
    the untrained network and mean colour → metric → per cent). `store`: folder in which the runs
    of a grid share the references and the tested patches.
    """
    from solo_infoaug.compare.images import CHANCE, once, weights_digest
    from solo_infoaug.compare.video import (
        VideoConfig,
        evaluate_clips,
        patches_to_test,
        propagate_clips,
    )
    from solo_infoaug.evaluation import extract_features, load_backbone
    from solo_infoaug.evaluation.backbone import untrained
    from solo_infoaug.evaluation.maps import has_map
    from solo_infoaug.evaluation.segmentation import COLOUR, UNTRAINED, models

    config = VideoConfig(**how)
    backbone = load_backbone(checkpoint)
    blank = untrained(backbone)
    tested = patches_to_test(config, store)
    features = {
        "ours": partial(extract_features, backbone),
        UNTRAINED: partial(extract_features, blank),
        COLOUR: None,
    }
    maps = {}
    if config.propagation is not None and not has_map(backbone.module):
        print(f"video.propagation: skipped, the feature maps of {backbone.name} are not known")
    elif config.propagation is not None:
        maps = models(backbone, config.propagation.size, stride=8)

    def measured(name: str) -> dict[str, dict[str, float]]:
        found = evaluate_clips(tested, {name: features[name]})[name]
        return found | (propagate_clips(config, {name: maps[name]})[name] if maps else {})

    def measured_once(name: str, of_model: str) -> dict[str, dict[str, float]]:
        look = [backbone.crop_size, backbone.mean, backbone.std]
        key = digest([config.digest, config.as_dict(), bool(maps), name, look, of_model])
        return once(store / f"video-{key}.json", partial(measured, name))

    def mean(scores: dict[str, dict[str, float]]) -> dict[str, float]:
        return {metric: float(np.mean(list(of.values()))) for metric, of in scores.items()}

    scores = measured("ours")
    ours = mean(scores)
    aucs = [metric for metric in ours if metric.endswith(("_auc", "_things"))]
    references = {
        CHANCE: dict.fromkeys(aucs, 50.0),
        UNTRAINED: mean(measured_once(UNTRAINED, weights_digest(blank))),
        COLOUR: mean(measured_once(COLOUR, "")),
    }
    return ours, {"sequences": scores, "references": references}


def evaluate_features(labelled: Labelled, test: Labelled, k: int) -> dict[str, float]:
    """The two probes on `scenes`, usual and across parts; per cent.

    They learn from `labelled`. Each has features [N, D], classes [N] and parts [N].
    """
    from solo_infoaug.evaluation import knn_accuracy, linear_accuracy

    train, y, part = labelled
    asked, y_asked, part_asked = test
    across = []
    for left_out in part.unique():
        known, other = part != left_out, part_asked == left_out
        halves = (train[known], y[known]), (asked[other], y_asked[other])
        across.append((linear_accuracy(*halves), knn_accuracy(*halves, k)))
    linear, knn = (float(value) for value in np.mean(across, axis=0))
    return {
        "linear": linear_accuracy((train, y), (asked, y_asked)),
        "knn": knn_accuracy((train, y), (asked, y_asked), k),
        "linear_across": linear,
        "knn_across": knn,
    }


@hydra.main(version_base="1.2", config_path=None, config_name="solo_infoaug_compare_run")
def main(config: ProgramConfig) -> None:
    """Run, and note a failure, which stops neither this process nor the grid.

    A run whose grid was killed may continue in the background. A second process for the same run
    waits until the first ends, and takes over if it left no result.
    """
    files = RunFolder(Path(config.folder))
    with files.lock():
        run_hash = files.read_plan()["hash"]
        if files.result(run_hash) is not None:
            return
        try:
            execute(files.path)
        except Exception as error:
            traceback.print_exc()
            files.note_failure(run_hash, f"{type(error).__name__}: {error}")
        finally:
            files.end()


if __name__ == "__main__":
    main()
