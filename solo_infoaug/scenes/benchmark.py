"""`scenes`: a benchmark that needs no download, made on the spot from a seed.

An object belongs to a class and has parts. Each (class, part) has a texture of its own: three
waves, the same but for rotation, scale, place, colours and light on every object. The textures of
one class have nothing in common, and colour, background, place and size are independent of class
and part. No patch shows two parts. Only common motion links the parts of a class. The probe *across
parts*, which learns the classes from some parts and is tested on the others, is therefore at chance
for every method that does not use motion.

The backbone is pretrained on stills of parts, its twin branch on a dictionary that `mine` makes of
the videos, and probed on further stills.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from solo_infoaug._files import mark_as_made, write_json
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.mining import MineConfig, mine
from solo_infoaug.scenes.parts import PATCH, ScenesConfig, SceneVideo, stills


@dataclass(frozen=True)
class Benchmark:
    """What `prepare_scenes` made."""

    stills: Path
    """The image folder to pretrain on."""
    twins: Path
    """The dictionary that `mine` made of the videos."""
    oracle: Path
    """The same patches with the true twins: other parts of the same object."""
    truth: dict[str, float]
    """Quality of the mined twins; see `compare_with_truth`."""


def mine_config(config: ScenesConfig) -> MineConfig:
    """How the videos are mined: patches of the size of the stills."""
    height = SceneVideo.make(config, 0).size[1]
    return MineConfig(
        context=1.0,
        patch_fraction=PATCH / height,
        crop_size=PATCH,
        window=max(config.frames, 32),
        stride=max(config.frames, 32),
        min_frames=max(32, config.frames // 2),
        grid_step=1.0,
        # A patch covers a part, and no neighbour need move with it. The fast flow loses most parts.
        flow="medium",
        min_support=0,
        # Parts of one object turn against each other: they are far apart, and their steps differ
        motion_over_noise=5.0,
        max_difference=0.3,
        max_drift=2.0,
        max_twin_error_ratio=1.0,
        mi_of_distance=0.0,
        mi_tolerance=0.0,
        camera="none",
        parallax=0,
        temporal_crops=2,
        seed=config.seed,
    )


def prepare_scenes(folder: Path, config: ScenesConfig, workers: int = 1) -> Benchmark:
    """Make the benchmark in `folder`, or reuse the one there; `workers` processes mine.

    Raises:
        ConfigError: the folder holds a benchmark of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / "scenes.json"
    with FileLock(f"{folder}.lock"):
        if not marker.is_file():
            scenes = [SceneVideo.make(config, number) for number in range(config.videos)]
            _write_stills(folder / "stills", config)
            mark_as_made(folder)
            videos = folder / "videos"
            videos.mkdir(exist_ok=True)
            for number, scene in enumerate(scenes):
                scene.write(videos / f"scene-{number:04d}.mp4")
            how = mine_config(config)
            mined = mine(videos, folder / "twins", how, workers=workers, overwrite=True)
            shutil.rmtree(folder / "oracle", ignore_errors=True)
            write_oracle(mined, scenes, folder / "oracle")
            content = {"digest": config.digest, "config": dataclasses.asdict(config)}
            write_json(marker, {**content, "truth": compare_with_truth(mined, scenes)})
    known = json.loads(marker.read_text(encoding="utf-8"))
    if known["digest"] != config.digest:
        raise ConfigError(
            f"scenes: {folder} holds a benchmark of other settings; choose another folder"
        )
    made = folder / "stills" / "train", folder / "twins", folder / "oracle"
    return Benchmark(*made, known["truth"])


def _write_stills(folder: Path, config: ScenesConfig) -> None:
    """Write the stills as one image folder per split: `train/class-0/part-1-0042.png`."""
    shutil.rmtree(folder, ignore_errors=True)
    for split in ("train", "test"):
        images, classes, parts = stills(config, split)
        for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            target = folder / split / f"class-{int(classes[number])}"
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target / f"part-{int(parts[number])}-{number:05d}.png")


def _truth(mined: TwinDictionary, scenes: list[SceneVideo]) -> tuple[np.ndarray, np.ndarray]:
    """For each patch the object (over all scenes) and the part that it lies on, −1 for neither."""
    objects, parts = np.full((2, len(mined)), -1)
    for number, name in enumerate(mined.videos):
        scene = scenes[int(Path(name).stem.rsplit("-", 1)[1])]
        rows = np.flatnonzero(mined.patches["video"] == number)
        points = np.stack([mined.patches["x"][rows], mined.patches["y"][rows]], axis=1)
        frames = mined.patches["frame"][rows]
        for frame in np.unique(frames):
            here = frames == frame
            part = scene.part_at(points[here], int(frame))
            on, places = part >= 0, rows[here]
            objects[places[on]] = scene.objects[part[on]] + 100 * number
            parts[places[on]] = scene.parts[part[on]]
    return objects, parts


def compare_with_truth(mined: TwinDictionary, scenes: list[SceneVideo]) -> dict[str, float]:
    """Quality of mined twins.

    How many `anchors` have a twin; of these the share `on_parts`, three quarters of the patch at
    least; of these the share whose twin shows the `same_object`; and of those the share whose twin
    shows `another_part` of it, which is what the probe across parts lives by.
    """
    objects, parts = _truth(mined, scenes)
    anchors = mined.anchors.numpy()
    twin = mined.twins[mined.anchors, 0].numpy()
    on = objects[anchors] >= 0
    same = on & (objects[anchors] == objects[twin])
    other = same & (parts[anchors] != parts[twin])
    return {
        "anchors": float(len(anchors)),
        "on_parts": float(on.mean()),
        "same_object": float(same.sum() / max(1, on.sum())),
        "another_part": float(other.sum() / max(1, same.sum())),
    }


def write_oracle(mined: TwinDictionary, scenes: list[SceneVideo], folder: Path) -> TwinDictionary:
    """The patches of `mined` that lie on a part; their twins lie on other parts of the object."""
    objects, parts = _truth(mined, scenes)
    rows = np.flatnonzero(objects >= 0)
    twins = np.full((len(rows), 4), -1)
    for index, row in enumerate(rows):
        mates = np.flatnonzero((objects[rows] == objects[row]) & (parts[rows] != parts[row]))
        twins[index, : min(4, len(mates))] = mates[:4]
    keep = twins[:, 0] >= 0
    return TwinDictionary.create(
        folder,
        mined.crops(torch.from_numpy(rows))[:, None],
        torch.from_numpy(twins),
        torch.from_numpy(keep[:, None] * (twins >= 0)).float(),
        windows=np.unique(mined.patches["window"][rows], return_inverse=True)[1].tolist(),
        name="oracle",
    )
