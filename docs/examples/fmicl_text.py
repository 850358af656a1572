"""f-MICL on sentence pairs, at toy size: no download, under a minute on two CPU cores.

A small grammar says one meaning (who, does what, to what, where, when) in many wordings. Two
wordings of one meaning are a positive pair, the rest of the batch are the negatives, as in the
sentence experiment of the f-MICL paper; an embedding bag with two layers stands in for BERT. The
setting is the paper's for text, 1/(2σ²) = 20 and α = 409600 (`TEXT`), against 1 and 40 for images.

The first steps are of KL for all (`--warm`): they stand in for the pretrained encoder that the
paper starts from. Divergences whose positive gradient dies where a pair is far apart (Pearson,
Tsallis, Vincze–Le Cam) need such a start; `--warm 0` shows it.

The score is that of the sentence-similarity benchmarks: Spearman's correlation of the cosine of
two sentences with how many parts of their meaning agree, over meanings that were not trained on.

    uv run python docs/examples/fmicl_text.py [--warm 200] [--steps 400] [--divergence js]
"""

from __future__ import annotations

import argparse
import random

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from solo_infoaug.objectives import (
    DIVERGENCES,
    TEXT,
    FMICLLoss,
    alignment,
    uniformity,
)

# Each part of a meaning: its values, and the wordings of each value.
GRAMMAR = (
    (("the child", "a kid"), ("the doctor", "a physician"), ("the cat", "a kitten"),
     ("the teacher", "an instructor"), ("the farmer", "a grower"), ("the thief", "a robber")),
    (("finds", "discovers"), ("breaks", "smashes"), ("buys", "purchases"),
     ("hides", "conceals"), ("fixes", "repairs"), ("watches", "observes")),
    (("the stone", "a rock"), ("the car", "an automobile"), ("the cup", "a mug"),
     ("the picture", "an image"), ("the sofa", "a couch"), ("the present", "a gift")),
    (("at the shop", "in a store"), ("in the woods", "in a forest"), ("by the road", "on a street"),
     ("at sea", "on the ocean"), ("at home", "in the house"), ("at the pub", "in a bar")),
    (("today", "this day"), ("quickly", "with speed"), ("at dusk", "in the evening"),
     ("at last", "finally"), ("often", "frequently"), ("at dawn", "in the morning")),
)  # fmt: skip
WORDS = sorted({w for part in GRAMMAR for value in part for says in value for w in says.split()})
INDEX = {word: i for i, word in enumerate(WORDS)}

Meaning = tuple[int, ...]


def say(meaning: Meaning, rng: random.Random) -> str:
    """One wording of a meaning; the time may come first."""
    *rest, time = (rng.choice(part[value]) for part, value in zip(GRAMMAR, meaning, strict=True))
    return " ".join([time, *rest] if rng.random() < 0.5 else [*rest, time])


class Encoder(nn.Module):
    """Sentences → [N, dim]."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(len(WORDS), dim)
        self.head = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim)
        )

    def forward(self, sentences: list[str]) -> Tensor:
        tokens = [[INDEX[word] for word in sentence.split()] for sentence in sentences]
        starts = torch.tensor([0] + [len(t) for t in tokens[:-1]]).cumsum(0)
        out: Tensor = self.head(self.words(torch.tensor([i for t in tokens for i in t]), starts))
        return out


def split(rng: random.Random, held_out: int = 500) -> tuple[list[Meaning], list[Meaning]]:
    """All meanings, shuffled, into those to train on and those to test on."""
    meanings: list[Meaning] = [()]
    for part in GRAMMAR:
        meanings = [(*m, value) for m in meanings for value in range(len(part))]
    rng.shuffle(meanings)
    return meanings[held_out:], meanings[:held_out]


@torch.no_grad()
def score(encoder: Encoder, meanings: list[Meaning], seed: int) -> tuple[float, float, float]:
    """Spearman's ρ over pairs of sentences, and alignment and uniformity of the features."""
    rng = random.Random(seed)
    encoder.eval()
    x, y = (encoder([say(m, rng) for m in meanings]) for _ in range(2))
    cosine = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    parts = torch.tensor(meanings)
    agree = (parts[:, None] == parts[None]).sum(-1)
    rho = spearmanr(cosine.flatten().numpy(), agree.flatten().numpy()).statistic
    encoder.train()
    return float(rho), float(alignment(x, y)), float(uniformity(x))


def train(divergence: str, steps: int, warm: int, batch: int, seed: int) -> tuple[float, ...]:
    """Spearman's ρ before and after the warm start, then ρ, alignment and uniformity at the end."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    seen, unseen = split(rng)
    encoder = Encoder()
    criteria = [FMICLLoss(d, alpha=TEXT.alpha, sigma=TEXT.sigma) for d in ("kl", divergence)]
    optimiser = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    before, _, _ = score(encoder, unseen, seed)
    warmed = before
    for step in range(warm + steps):
        if step == warm:
            warmed, _, _ = score(encoder, unseen, seed)
        meanings = rng.sample(seen, batch)
        x, y = (encoder([say(m, rng) for m in meanings]) for _ in range(2))
        optimiser.zero_grad()
        criteria[step >= warm](x, y).backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
    return before, warmed, *score(encoder, unseen, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--warm", type=int, default=200, help="steps of KL first")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--divergence", choices=DIVERGENCES, help="one of them alone")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are too small to share
    print(f"α = {TEXT.alpha:g}, σ = {TEXT.sigma:.4f} (1/(2σ²) = {1 / (2 * TEXT.sigma**2):g})")
    print("| divergence | ρ before | ρ warm | ρ after | alignment | uniformity |")
    print("|---|---|---|---|---|---|")
    for name in [options.divergence] if options.divergence else DIVERGENCES:
        found = train(name, options.steps, options.warm, options.batch, options.seed)
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found) + " |", flush=True)


if __name__ == "__main__":
    main()
