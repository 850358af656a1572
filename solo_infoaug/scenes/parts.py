"""Objects of a class, with parts that move together: their textures, stills and videos.

What the benchmark `scenes` is made of; see `benchmark`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from solo_infoaug._checks import require
from solo_infoaug._files import digest
from solo_infoaug.mining.encoding import write_video
from solo_infoaug.scenes.generated import pose_of

VERSION = 3
"""Part of the digest; it changes if the generator makes something else of the same settings."""

PATCH = 32
"""Side of stills and patches, pixels."""

# In the middle frame parts lie on the miner's grid, but for `_OFF` pixels: a patch shows one part
# or none.
_PART = 36  # side of a part
_OFF = 2
_GAP = 3 * PATCH  # between the centres of an object's parts
_CELL = (8 * PATCH, 6 * PATCH)  # each object's room in the frame
_PLACES = np.array([(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]) * _GAP
_REACH = 16.0  # how far an object strays from its first frame, pixels
_WAVES = 3


@dataclass(frozen=True)
class ScenesConfig:
    """The settings of the benchmark. The same settings make the same data.

    Raises:
        ConfigError: a value cannot be used.
    """

    classes: int = 4
    # Parts of an object: 2 to 4.
    parts: int = 3
    # Videos, one scene each, and objects in a scene.
    videos: int = 80
    objects: int = 4
    frames: int = 64
    # Stills of each part of each class: for pretraining; how many of them have a label that the
    # probes learn from; and to test.
    train_stills: int = 150
    labelled_stills: int = 20
    test_stills: int = 50
    # How far a texture is turned (radians) and scaled (log) either way; noise, grey levels.
    rotation: float = 0.15
    scale: float = 0.1
    # How far the two colours of a texture are from grey, grey levels.
    tint: float = 15.0
    noise: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {"classes": (2, 100), "parts": (2, len(_PLACES)), "videos": (1, 100_000)}
        bounds |= {"objects": (1, 9), "frames": (32, 1000), "train_stills": (1, 100_000)}
        bounds |= {"labelled_stills": (1, self.train_stills), "test_stills": (1, 100_000)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            require(low <= value <= high, f"scenes.{name}", f"{low} to {high}", value)

    @property
    def digest(self) -> str:
        """A short hash of the settings and of the generator's version."""
        return digest([VERSION, dataclasses.asdict(self)])


# --- textures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A texture: waves [K, 2] in radians a pixel, and their phases [K]."""

    waves: np.ndarray
    phases: np.ndarray


def families(config: ScenesConfig) -> list[list[Family]]:
    """The texture of each part of each class, drawn independently of one another."""
    rng = np.random.default_rng([config.seed, 0])
    return [[_family(rng) for _ in range(config.parts)] for _ in range(config.classes)]


def _family(rng: np.random.Generator) -> Family:
    angle = rng.uniform(0, np.pi, _WAVES)
    length = 2 * np.pi / rng.uniform(5.0, 14.0, _WAVES)
    waves = length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Family(waves, rng.uniform(0, 2 * np.pi, _WAVES))


def paint(
    family: Family, height: int, width: int, config: ScenesConfig, rng: np.random.Generator
) -> np.ndarray:
    """float32 [H, W, 3] in grey levels: the texture in a new place, pose and colours."""
    turn = rng.uniform(-config.rotation, config.rotation)
    size = np.exp(rng.uniform(-config.scale, config.scale))
    c, s = np.cos(turn) / size, np.sin(turn) / size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + rng.uniform(0, 1000), y + rng.uniform(0, 1000)
    x, y = c * x + s * y, c * y - s * x
    value = sum(
        np.cos(kx * x + ky * y + phase)
        for (kx, ky), phase in zip(family.waves, family.phases, strict=True)
    )
    mix = (0.5 + 0.5 * np.tanh(1.5 * value))[..., None].astype(np.float32)
    first, second = _colours(config.tint, rng)
    return mix * first + (1 - mix) * second


def _colours(tint: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two tinted greys far enough apart to see, either of them the lighter."""
    while True:
        light = rng.uniform(20, 235, 2)
        if abs(light[0] - light[1]) > 60:
            first, second = light[:, None] + rng.uniform(-tint, tint, (2, 3))
            return first.astype(np.float32), second.astype(np.float32)


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W, 3]: coloured noise at three scales."""
    image = np.zeros((height, width, 3), np.float32)
    for scale in (2, 6, 24):
        small = rng.normal(0, 1, (height // scale + 2, width // scale + 2, 3))
        small = (0.3 * small + small.mean(axis=2, keepdims=True)).astype(np.float32)
        image += cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(rng.uniform(80, 175) + 30 * image, 0, 255).astype(np.float32)


def _finish(image: np.ndarray, config: ScenesConfig, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(image.shape, np.float32) * config.noise
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


# --- stills ------------------------------------------------------------------------------------


def stills(config: ScenesConfig, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Stills of single parts, uint8 [N, 3, 32, 32]; their classes and parts, int64 [N].

    `split` is "train", "labelled" (the first of "train", for the probes) or "test".
    """
    count = getattr(config, f"{split}_stills")
    images, labels = [], []
    for number, of_class in enumerate(families(config)):
        for part, family in enumerate(of_class):
            rng = np.random.default_rng([config.seed, 2 if split == "test" else 1, number, part])
            for _ in range(count):
                images.append(_still(family, config, rng))
                labels.append((number, part))
    classes, parts = torch.tensor(labels).unbind(1)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), classes, parts


def _still(family: Family, config: ScenesConfig, rng: np.random.Generator) -> np.ndarray:
    """A patch that lies on a part."""
    canvas = _background(_PART + PATCH, _PART + PATCH, rng)
    middle = (_PART + PATCH) / 2
    sprite = _PartImage.make(family, config, rng)
    sprite.draw(canvas, np.array([middle, middle]), rng.uniform(-0.15, 0.15))
    left, top = np.round(middle - PATCH / 2 + rng.uniform(-_OFF, _OFF, 2)).astype(int)
    return _finish(canvas[top : top + PATCH, left : left + PATCH], config, rng)


# --- scenes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PartImage:
    """A part: its texture float32 [S, S, 3] and where it is, float32 [S, S] in [0, 1]."""

    image: np.ndarray
    alpha: np.ndarray

    @classmethod
    def make(cls, family: Family, config: ScenesConfig, rng: np.random.Generator) -> _PartImage:
        side = _PART + 4
        distance = (np.abs(np.arange(side) - (side - 1) / 2) - _PART / 2 + 8).clip(0)
        corner = np.hypot(distance[:, None], distance[None])
        alpha = np.clip(8.5 - corner, 0, 1).astype(np.float32)
        return cls(paint(family, side, side, config, rng), alpha)

    def draw(self, canvas: np.ndarray, centre: np.ndarray, angle: float) -> None:
        """Draw into `canvas` float32 [H, W, 3] with the middle at `centre` (x, y), turned."""
        side = int(np.ceil(1.5 * _PART))
        left, top = np.floor(centre - side / 2).astype(int)
        pose = pose_of(centre - (left, top), angle, self.alpha.shape)[:2]
        alpha = cv2.warpAffine(self.alpha, pose, (side, side))[..., None]
        image = cv2.warpAffine(self.image, pose, (side, side), borderMode=cv2.BORDER_REPLICATE)
        height, width = canvas.shape[:2]
        rows = slice(max(top, 0), min(top + side, height))
        columns = slice(max(left, 0), min(left + side, width))
        inside = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        canvas[rows, columns] += alpha[inside] * (image[inside] - canvas[rows, columns])


@dataclass(frozen=True)
class SceneVideo:
    """One video and its truth.

    Attributes:
        objects: int64 [P]: the object of each part in the scene.
        classes: int64 [P]: its class.
        parts: int64 [P]: which part of its object it is.
        centres: float64 [T, P, 2]: its middle (x, y) in each frame, pixels.
        angles: float64 [T, P], radians.
    """

    config: ScenesConfig
    seed: tuple[int, ...]
    objects: np.ndarray
    classes: np.ndarray
    parts: np.ndarray
    centres: np.ndarray
    angles: np.ndarray

    @classmethod
    def make(cls, config: ScenesConfig, number: int) -> SceneVideo:
        """SceneVideo `number` of the benchmark."""
        rng = np.random.default_rng([config.seed, 3, number])
        columns = int(np.ceil(np.sqrt(config.objects)))
        made = []
        for index in range(config.objects):
            row, column = divmod(index, columns)
            middle = (np.array([column, row]) + 0.5) * _CELL
            stray = _wander(config.frames, 2, 1.5, _REACH, rng)
            turn = _wander(config.frames, 1, 0.008, 0.1, rng)[:, 0]
            path = middle + rng.uniform(-_OFF, _OFF, 2) + stray - stray[config.frames // 2]
            turn -= turn[config.frames // 2]
            places = rng.permutation(_PLACES)[: config.parts]
            class_ = int(rng.integers(config.classes))
            for part, corner in enumerate(places):
                c, s = np.cos(turn), np.sin(turn)
                offset = np.stack([c * corner[0] - s * corner[1], s * corner[0] + c * corner[1]], 1)
                made.append((index, class_, part, path + offset, turn))
        *numbers, centres, angles = zip(*made, strict=True)
        truth = *map(np.array, numbers), np.stack(centres, axis=1), np.stack(angles, axis=1)
        return cls(config, (config.seed, 4, number), *truth)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        columns = int(np.ceil(np.sqrt(self.config.objects)))
        rows = -(-self.config.objects // columns)
        return columns * _CELL[0], rows * _CELL[1]

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] RGB."""
        rng = np.random.default_rng(self.seed)
        width, height = self.size
        background = _background(height, width, rng)
        known = families(self.config)
        sprites = [
            _PartImage.make(known[class_][part], self.config, rng)
            for class_, part in zip(self.classes, self.parts, strict=True)
        ]
        for centres, angles in zip(self.centres, self.angles, strict=True):
            canvas = background.copy()
            for sprite, centre, angle in zip(sprites, centres, angles, strict=True):
                sprite.draw(canvas, centre, float(angle))
            yield _finish(canvas, self.config, rng)

    def write(self, path: Path) -> None:
        """Encode as H.264, 25 frames a second."""
        options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        write_video(self.frames(), path, self.size, options)

    def part_at(self, points: np.ndarray, frame: int = 0) -> np.ndarray:
        """int64 [N]: the part that a patch at `points` [N, 2] of a frame lies on, or −1.

        A patch lies on a part if at most a quarter of it is outside.
        """
        distance = np.abs(points[:, None] - self.centres[frame][None]).max(axis=2)
        nearest = distance.argmin(axis=1)
        return np.where(distance.min(axis=1) <= (_PART - PATCH) / 2 + PATCH / 4, nearest, -1)


def _wander(
    frames: int, d: int, speed: float, reach: float, rng: np.random.Generator
) -> np.ndarray:
    """float64 [T, d]: a random path that starts at 0, turns smoothly and stays within `reach`."""
    keep = np.exp(-1 / 5)
    path, velocity = np.zeros((frames, d)), rng.normal(0, speed, d)
    for t in range(1, frames):
        velocity = keep * velocity + np.sqrt(1 - keep**2) * rng.normal(0, speed, d)
        beyond = np.abs(path[t - 1] + velocity) > reach
        velocity[beyond] *= -1
        path[t] = np.clip(path[t - 1] + velocity, -reach, reach)
    return path
