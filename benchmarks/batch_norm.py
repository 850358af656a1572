"""How the backbone's batch norms should deal with twins: `infoaug.batch_norm`, measured.

The run's images are scikit-learn's digits, the twins crops of the sample clips: two distributions
as different as they come. k-NN and linear probe on digits that training has not seen.

    uv run python benchmarks/batch_norm.py [--methods simclr byol] [--seeds 0 1] [--epochs 4]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from solo_infoaug import evaluation, mine
from solo_infoaug.mining.samples import sample_clips
from solo_infoaug.resources import config_folder
from solo_infoaug.training import load_config, pretrain

HEADS = {
    "simclr": ["++method_kwargs.temperature=0.2"],
    "byol": ["++method_kwargs.pred_hidden_dim=512", "++momentum={base_tau: 0.99, final_tau: 1.0}"],
    "vicreg": ["++method_kwargs={proj_hidden_dim: 512, proj_output_dim: 512, "
               "sim_loss_weight: 25.0, var_loss_weight: 25.0, cov_loss_weight: 1.0}"],
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any] | None] = {
    "baseline": None,
    "shared": {"batch_norm": "shared"},
    "separate": {"batch_norm": "separate"},
    "frozen": {"batch_norm": "frozen"},
}


def train(
    method: str, setting: dict[str, Any] | None, seed: int, options: Any, folder: Path
) -> Any:
    """The trained backbone's checkpoint."""
    overrides = [
        f"data.train_path={folder / 'digits'}",
        f"checkpoint.dir={folder / 'runs'}",
        f"method={method}",
        f"seed={seed}",
        f"max_epochs={options.epochs}",
        "++logger=none",
        "++enable_progress_bar=false",
        "++enable_model_summary=false",
        "augmentations.0.horizontal_flip.prob=0.0",
        *HEADS[method],
    ]
    cfg = load_config(config_folder() / "demo", "simclr", overrides)
    if setting is not None:
        cfg.infoaug = {**setting, "twins": str(folder / "twins"), "weight": options.weight}
    return pretrain(cfg).checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=["simclr", "byol"], choices=list(HEADS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=4, help="of 30 steps, batch 32")
    parser.add_argument("--weight", type=float, default=1.0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    learn, test = evaluation.digits()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "digits" / "all").mkdir(parents=True)
        for i, image in enumerate(learn[0]):
            pixels = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32), Image.BICUBIC)
            pixels.save(folder / "digits" / "all" / f"{i}.png")
        twins = mine(sample_clips(), folder / "twins")
        print(f"digits, {len(learn[0])} images; {twins.summary}")
        print(f"{options.epochs * 30} steps of 32 images and 32 pairs, λ {options.weight:g}, "
              f"seeds {options.seeds}; torch {torch.__version__}; mean (spread)\n")  # fmt: skip
        print("| method | batch norm | k-NN | linear |\n|---|---|---|---|")
        for method in options.methods:
            for label, setting in SETTINGS.items():
                scores = []
                for seed in options.seeds:
                    backbone = evaluation.load_backbone(
                        train(method, setting, seed, options, folder)
                    )
                    halves = [
                        (evaluation.extract_features(backbone, x), y) for x, y in (learn, test)
                    ]
                    scores.append(
                        (evaluation.knn_accuracy(*halves), evaluation.linear_accuracy(*halves))
                    )
                cells = [
                    f"{statistics.mean(column):.1f} ({max(column) - min(column):.1f})"
                    for column in zip(*scores, strict=True)
                ]
                print(f"| {method} | {label} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
