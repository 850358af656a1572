"""Our views against solo-learn's own (Pillow, torchvision), on patches of real video.

`parity` compares the distributions of what is seen: per operation and for the whole pipeline, the
share of patches that change, levels, sharpness, and Kolmogorov-Smirnov distances of statistics that
each view has one of. `pixels` makes the same draws on both sides and compares pixel by pixel.
`speed` counts images a second, and compares with Kornia's own modules.

    uv run python benchmarks/views.py parity [--views 4096]
    uv run python benchmarks/views.py pixels
    uv run python benchmarks/views.py speed [--threads 1 2]
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Callable
from itertools import islice
from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from kornia.color import rgb_to_hsv
from kornia.constants import Resample
from omegaconf import OmegaConf
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import ks_2samp, kstwo
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop, functional

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import load_host
from solo_infoaug.mining.samples import sample_clips
from solo_infoaug.mining.video import Video
from solo_infoaug.twin.randomness import fork_rng
from solo_infoaug.views import Pipeline, build_pipeline, make_views
from solo_infoaug.views.functional import blur, draw_boxes, jitter, resized_crop

ZERO, ONE = [0.0] * 3, [1.0] * 3
CROP = {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0}
# The whole of a square image: a box of all its area has no other aspect ratio that fits.
WHOLE = {"enabled": True, "crop_min_scale": 1.0, "crop_max_scale": 1.0}
PARTS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
JITTER = {"prob": 0.8, **PARTS}
ALL = {
    "rrc": CROP,
    "color_jitter": JITTER,
    "grayscale": {"prob": 0.2},
    "gaussian_blur": {"prob": 0.5},
    "solarization": {"prob": 0.2},
    "horizontal_flip": {"prob": 0.5},
}
OPERATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "crop": {"rrc": CROP},
    **{
        name: {"color_jitter": {"prob": 0.8, **dict.fromkeys(PARTS, 0.0), name: strength}}
        for name, strength in PARTS.items()
    },
    "colour jitter": {"color_jitter": JITTER},
    "grey": {"grayscale": ALL["grayscale"]},
    "blur": {"gaussian_blur": ALL["gaussian_blur"]},
    "solarize": {"solarization": ALL["solarization"]},
    "equalize": {"equalization": {"prob": 0.2}},
    "flip": {"horizontal_flip": ALL["horizontal_flip"]},
    "all but equalize": ALL,
    "all": {**ALL, "equalization": {"prob": 0.2}},
}


def entry(size: int, **changes: Any) -> Any:
    """One entry of `augmentations`, with nothing but `changes`; unnormalised."""
    names = ("color_jitter", "grayscale", "gaussian_blur", "solarization", "equalization")
    off = {name: {"prob": 0.0} for name in (*names, "horizontal_flip")}
    off["color_jitter"].update(PARTS)
    base = {"rrc": WHOLE, **off, "crop_size": size, "num_crops": 1, "mean": ZERO, "std": ONE}
    return OmegaConf.create({**base, **changes})


def patches(count: int, side: int) -> Tensor:
    """uint8 [count, 3, side, side] from the sample clips, as many of each, at random places."""
    choice = np.random.default_rng(0)
    found = []
    for clip in sample_clips():
        with Video(clip) as video:
            frames = [frame.image() for frame in islice(video.frames(), 0, 60, 10)]
        for _ in range(-(-count // 3)):
            frame = frames[choice.integers(len(frames))]
            y, x = (choice.integers(n - side + 1) for n in frame.shape[:2])
            found.append(torch.from_numpy(frame[y : y + side, x : x + side].copy()))
    return torch.stack(found[:: len(found) // count][:count]).permute(0, 3, 1, 2).contiguous()


def hosts_views(transform: Callable[[Any], Tensor], images: list[Any]) -> Tensor:
    return torch.stack([transform(image) for image in images])


def pillow(images: Tensor) -> list[Any]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def statistics(views: Tensor) -> dict[str, Tensor]:
    """Of each view: mean, contrast, saturation, hue and the sharpness along both axes."""
    grey = views.mean(1)
    hue, saturation, _ = rgb_to_hsv(views).unbind(1)
    where = torch.atan2(
        (hue.sin() * saturation).mean((1, 2)), (hue.cos() * saturation).mean((1, 2))
    )
    return {
        "mean": grey.mean((1, 2)),
        "contrast": grey.std((1, 2)),
        "saturation": saturation.mean((1, 2)),
        "hue": where,
        "sharpness →": grey.diff(dim=2).square().mean((1, 2)),
        "sharpness ↓": grey.diff(dim=1).square().mean((1, 2)),
    }


def compare(name: str, ours: Tensor, theirs: Tensor, sources: Tensor) -> str:
    """One row of the table."""
    limit = kstwo.isf(0.001, len(ours) // 2)  # of two samples of this size
    one, other = statistics(ours), statistics(theirs)
    # bins of half a level and 1e-6: what differs by less is the same
    steps = {"sharpness →": 1e-5, "sharpness ↓": 1e-5, "hue": 0.02}
    distances = {}
    for key in one:
        step = steps.get(key, 0.5 / 255)
        a, b = ((stats[key] / step).round().numpy() for stats in (one, other))
        distances[key] = ks_2samp(a, b, method="asymp").statistic
    changed = [
        f"{float(((v - sources).abs().amax((1, 2, 3)) > 0.5 / 255).float().mean()):.3f}"
        for v in (ours, theirs)
    ]
    cells = [" / ".join(changed)]
    cells.append(" / ".join(f"{255 * float(v.mean()):.2f}" for v in (ours, theirs)))
    cells.append(" / ".join(f"{255 * float(v.std()):.2f}" for v in (ours, theirs)))
    for key in ("sharpness →", "sharpness ↓"):
        cells.append(" / ".join(f"{1e3 * float(s[key].mean()):.3f}" for s in (one, other)))
    cells += [f"{d:.3f}" if d < limit else f"**{d:.3f}**" for d in distances.values()]
    worst = max(distances, key=lambda key: distances[key])
    verdict = "equal" if distances[worst] < limit else f"differs in {worst}"
    return f"| {name} | {' | '.join(cells)} | {verdict} |"


def kornias(size: int) -> dict[str, list[nn.Module]]:
    """What Kornia has for crop, jitter and blur."""
    return {
        "crop": [
            K.RandomResizedCrop(
                (size, size),
                scale=(0.08, 1.0),
                resample=Resample.BICUBIC,
                cropping_mode="resample",
            )
        ],
        "colour jitter": [K.ColorJitter(*PARTS.values(), p=0.8)],
        "blur": [K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=0.5)],
    }


def our_views(pipeline: Pipeline, sources: Tensor, batch: int = 256) -> Tensor:
    parts = (make_views([pipeline], part, part)[0] for part in sources.split(batch))
    return torch.cat(list(parts))


def parity(count: int) -> None:
    host = load_host()
    print(
        f"solo-learn {host.info.version} ({host.info.kind}), {count} views each of {count // 8} "
        "patches, ours / solo-learn's; bold: beyond the 0.1 % limit "
        f"{kstwo.isf(0.001, count // 2):.3f} of the KS distance\n"
    )
    print(
        "| operation, patch → view | changed | mean level | s.d. | sharpness → ×10³ | ↓ "
        "| KS: mean | contrast | saturation | hue | sharp → | ↓ | |\n" + "|---" * 13 + "|"
    )
    for side, size, chosen in (
        (32, 32, list(OPERATIONS)),
        (96, 32, ["crop", "all but equalize"]),
        (96, 96, ["crop", "colour jitter", "blur", "all but equalize"]),
    ):
        # one draw of the patches for both
        sources = patches(count // 8, side).repeat(8, 1, 1, 1)
        images = pillow(sources)
        plain = sources / 255 if side == size else torch.zeros(())
        for name in chosen:
            augmentation = entry(size, **OPERATIONS[name])
            label = f"{name}, {side} → {size}"
            try:
                transform = host.build_transform_pipeline("custom", augmentation)
            except ConfigError:
                print(f"| {label} | not in this solo-learn" + " |" * 12)
                continue
            theirs = hosts_views(transform, images)
            ours = our_views(build_pipeline(augmentation, ZERO, ONE), sources)
            print(compare(label, ours, theirs, plain), flush=True)
            if name in kornias(size):
                pipeline = Pipeline(tuple(kornias(size)[name]), size, 1)
                ours = our_views(pipeline, sources).clamp(0, 1)
                print(compare(f"*Kornia's {label}*", ours, theirs, plain), flush=True)
    boxes()


def boxes(count: int = 20_000) -> None:
    """Crop boxes against those of torchvision's `get_params`."""
    print("\n| crop box, 20 000 draws | KS: area | aspect ratio | top | left | 0.1 % limit |")
    print("|---" * 6 + "|")
    for side, scale in ((32, (0.08, 1.0)), (96, (0.08, 1.0)), (96, (0.2, 1.0))):
        image = torch.empty(3, side, side)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)]
        )
        both = (draw_boxes(count, side, side, scale, torch.default_generator), theirs)
        numbers = [(b[:, 2] * b[:, 3], b[:, 3] / b[:, 2], b[:, 0], b[:, 1]) for b in both]
        row = [f"{ks_2samp(a, b).statistic:.4f}" for a, b in zip(*numbers, strict=True)]
        limit = kstwo.isf(0.001, count // 2)
        print(f"| {side} pixels, scale {scale} | {' | '.join(row)} | {limit:.4f} |", flush=True)


def pixels(count: int = 510) -> None:
    """Differences in 8-bit levels where both sides have the same parameters."""
    print(
        "| operation, patch → view | mean difference | mean of its size | 99.9 % below | largest |"
    )
    print("|---" * 5 + "|")
    adjust = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    ]

    def row(name: str, ours: Tensor, theirs: list[Any]) -> None:
        expected = torch.stack([functional.pil_to_tensor(image) for image in theirs])
        difference = 255 * ours - expected
        size = difference.abs().flatten()
        below = float(size.kthvalue(int(0.999 * len(size))).values)
        print(
            f"| {name} | {float(difference.mean()):+.3f} | {float(size.mean()):.3f} "
            f"| {below:.2f} | {float(size.max()):.2f} |",
            flush=True,
        )

    for side, size in ((32, 32), (96, 32), (96, 96), (136, 96)):
        sources = patches(count, side)
        cut = draw_boxes(count, side, side, (0.08, 1.0), torch.default_generator)
        row(
            f"crop, {side} → {size}",
            resized_crop(sources / 255, cut, size),
            [
                functional.resized_crop(image, *box, [size, size], Image.Resampling.BICUBIC)
                for image, box in zip(pillow(sources), cut.tolist(), strict=True)
            ],
        )
    sources = patches(count, 32)
    images = pillow(sources)
    sigma = torch.rand(count) * 1.9 + 0.1
    filters = [ImageFilter.GaussianBlur(radius) for radius in sigma.tolist()]
    row(
        "blur, 32 → 32",
        blur(sources / 255, sigma),
        [image.filter(one) for image, one in zip(images, filters, strict=True)],
    )
    strengths = torch.tensor(list(PARTS.values()))
    same = torch.tensor([1.0, 1.0, 1.0, 0.0])
    factors = same + strengths * (2 * torch.rand(count, 4) - 1)
    for part, name in enumerate(PARTS):
        one = torch.where(torch.arange(4) == part, factors, same)
        row(
            f"{name}, 32 → 32",
            jitter(sources / 255, one, torch.arange(4).expand(count, 4)),
            [adjust[part](i, f) for i, f in zip(images, factors[:, part].tolist(), strict=True)],
        )
    order = torch.rand(count, 4).argsort(1)
    jittered = []
    for image, turns, own in zip(images, order.tolist(), factors.tolist(), strict=True):
        for part in turns:
            image = adjust[part](image, own[part])
        jittered.append(image)
    row("colour jitter, 32 → 32", jitter(sources / 255, factors, order), jittered)
    for name, theirs in {
        "grayscale": lambda image: functional.to_grayscale(image, 3),
        "solarization": ImageOps.solarize,
        "equalization": ImageOps.equalize,
        "horizontal_flip": ImageOps.mirror,
    }.items():
        pipeline = build_pipeline(entry(32, **{name: {"prob": 1.0}}), ZERO, ONE)
        row(f"{name}, 32 → 32", our_views(pipeline, sources), [theirs(image) for image in images])


def best(run: Callable[[], Any], turns: int = 4) -> float:
    """Seconds of the fastest of a few runs, the first of which warms up."""
    seconds = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def speed(threads: list[int], batch: int = 256) -> None:
    host = load_host()
    ways = [f"ours, threads: {count}" for count in threads]
    print(f"Images a second, batches of {batch}, the best of 4\n")
    print(f"| pipeline, patch → view | {' | '.join(ways)} | solo-learn's, one core |")
    print("|---" * (len(ways) + 2) + "|")
    for name, side, size in (
        ("all but equalize", 32, 32),
        ("all but equalize", 96, 32),
        ("all but equalize", 96, 96),
    ):
        sources = patches(batch, side)
        images = pillow(sources)
        augmentation = entry(size, **OPERATIONS[name])
        pipeline = build_pipeline(augmentation, ZERO, ONE)
        cells = []
        for count in threads:
            torch.set_num_threads(count)
            cells.append(best(lambda p=pipeline, s=sources: make_views([p], s, s)))
        torch.set_num_threads(1)
        transform = host.build_transform_pipeline("custom", augmentation)
        cells.append(best(lambda t=transform, i=images: hosts_views(t, i)))
        rates = [f"{batch / seconds:.0f}" for seconds in cells]
        print(f"| {name}, {side} → {size} | {' | '.join(rates)} |", flush=True)
    print("\n| module, one thread, ms a batch | ours | Kornia's |\n|---|---|---|")
    for name, side, size in (
        ("crop", 32, 32),
        ("crop", 96, 32),
        ("crop", 96, 96),
        ("crop", 224, 96),
        ("colour jitter", 32, 32),
        ("colour jitter", 96, 96),
        ("blur", 32, 32),
        ("blur", 96, 96),
    ):
        images = torch.rand(batch, 3, side, side)
        place = 0 if name == "crop" else 1
        ours = build_pipeline(entry(size, **OPERATIONS[name]), ZERO, ONE).operations[place]
        theirs = kornias(size)[name][0]

        def operate(o: Any = ours, i: Tensor = images) -> Tensor:
            return o.change_(i.clone(), o.draw(i.shape, torch.default_generator))

        pair = (operate, lambda t=theirs, i=images: t(i))
        cells = [f"{1e3 * best(work):.1f}" for work in pair]
        print(f"| {name}, {side} → {size} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["parity", "pixels", "speed"])
    parser.add_argument("--views", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    random.seed(0)  # solo-learn's blur draws from it
    with torch.no_grad(), fork_rng(0, torch.device("cpu")):
        if options.what == "parity":
            parity(options.views)
        elif options.what == "pixels":
            pixels()
        else:
            speed(options.threads)


if __name__ == "__main__":
    main()
