"""Generated scenes whose truth is known: which object every patch lies on, and where it goes.

Textured objects, rigid and articulated, move independently over a still background, seen by a
camera that may pan, zoom and shake. For tests and benchmarks of the miner.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np

from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.errors import ConfigError
from solo_infoaug.mining.tracking import grid

CAMERAS = ("still", "pan", "zoom", "shake", "all")


@dataclass(frozen=True)
class SceneConfig:
    """What a generated scene looks like.

    Raises:
        ConfigError: a value cannot be used.
    """

    frames: int = 96
    height: int = 360
    width: int = 640
    # Objects that move, each in a region of its own; so many of them have a second, hinged part.
    objects: int = 4
    articulated: int = 1
    # Standard deviation of an object's velocity, pixels a frame, and how long it lasts, frames.
    speed: float = 1.5
    persistence: float = 6.0
    # "still", "pan", "zoom", "shake" or "all" three at once.
    camera: str = "still"
    # Poles in front of everything, which do not move.
    poles: int = 0
    # Standard deviation of noise in every frame, grey levels of 255.
    noise: float = 2.0
    # Quality of the H.264 stream: 18 is good, 35 poor.
    crf: int = 23
    seed: int = 0

    def __post_init__(self) -> None:
        if self.camera not in CAMERAS:
            raise ConfigError(f"camera must be one of {', '.join(CAMERAS)}, not {self.camera!r}")
        if self.frames < 1 or min(self.height, self.width) < 96:
            raise ConfigError(
                "a scene needs at least 1 frame of 96×96 pixels, not "
                f"{self.frames} of {self.width}×{self.height}"
            )
        if self.objects < 0 or not 0 <= self.articulated <= self.objects:
            raise ConfigError(
                f"articulated must be in [0, objects={self.objects}], not {self.articulated!r}"
            )


@dataclass
class _Sprite:
    """A textured shape: `image` float32 [h, w, 3], `alpha` float32 [h, w], where it is over time.

    `poses` are affine matrices [T, 3, 3] from the sprite's pixels to the world's.
    """

    owner: int
    image: np.ndarray
    alpha: np.ndarray
    poses: np.ndarray


@dataclass
class Scene:
    """A generated scene: render its `frames`, `write` them, ask for the truth."""

    config: SceneConfig
    _background: np.ndarray = field(repr=False)
    _margin: int
    _sprites: list[_Sprite] = field(repr=False)
    # [T, 3, 3], from the world (the first frame's pixels) to the pixels of each frame.
    camera: np.ndarray = field(repr=False)

    @classmethod
    def make(cls, config: SceneConfig) -> Scene:
        """Make the scene that `config` describes; the same seed makes the same scene."""
        rng = np.random.default_rng(config.seed)
        margin = max(config.height, config.width) // 2
        background = _texture(
            config.height + 2 * margin, config.width + 2 * margin, rng, contrast=45.0
        )
        sprites: list[_Sprite] = []
        for owner, (centre, room) in enumerate(_regions(config), start=1):
            sprites += _object(owner, centre, room, owner <= config.articulated, config, rng)
        sprites += [_pole(index, config, rng) for index in range(config.poles)]
        return cls(config, background, margin, sprites, _camera(config, rng))

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] RGB, with noise."""
        rng = np.random.default_rng([self.config.seed, 1])
        for t in range(self.config.frames):
            image = self._render(t)[0]
            image += rng.normal(0, self.config.noise, image.shape).astype(np.float32)
            yield np.clip(np.round(image), 0, 255).astype(np.uint8)

    def owners(self, t: int = 0) -> np.ndarray:
        """int32 [H, W]: the object at each pixel of frame `t`; 0 background, −1 a pole."""
        return self._render(t)[1]

    def paths(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points of the first frame go.

        Args:
            points: [N, 2], (x, y) in pixels of the first frame.

        Returns:
            float64 [T, N, 2], and bool [T, N]: in the frame, and nothing before it.
        """
        count = len(points)
        part = self._parts(0)[_pixel(points, self.config)]
        world = np.concatenate([points, np.ones((count, 1))], axis=1)
        paths = np.empty((self.config.frames, count, 2))
        seen = np.empty((self.config.frames, count), bool)
        for t in range(self.config.frames):
            moved = world.copy()
            for index, sprite in enumerate(self._sprites):
                mine = part == index
                motion = sprite.poses[t] @ np.linalg.inv(sprite.poses[0])
                moved[mine] = world[mine] @ motion.T
            paths[t] = (moved @ self.camera[t].T)[:, :2]
            x, y = paths[t].T
            inside = (x >= 0) & (y >= 0) & (x < self.config.width) & (y < self.config.height)
            top = self._parts(t)[_pixel(paths[t], self.config)]
            seen[t] = inside & (top == part)
        return paths, seen

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Encode the scene as H.264, 25 frames a second."""
        target = Path(path)
        with av.open(str(target), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height = self.config.width, self.config.height
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": str(self.config.crf), "preset": "veryfast"}
            for image in self.frames():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        return target

    def _render(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        size = (self.config.width, self.config.height)
        origin = np.array([[1, 0, -self._margin], [0, 1, -self._margin], [0, 0, 1.0]])
        image = cv2.warpAffine(self._background, (self.camera[t] @ origin)[:2], size)
        for sprite in self._sprites:
            pose = (self.camera[t] @ sprite.poses[t])[:2]
            alpha = cv2.warpAffine(sprite.alpha, pose, size)[..., None]
            image = alpha * cv2.warpAffine(sprite.image, pose, size) + (1 - alpha) * image
        parts = self._parts(t)
        owner = np.array([sprite.owner for sprite in self._sprites] + [0], np.int32)
        return image, owner[parts]

    def _parts(self, t: int) -> np.ndarray:
        """int32 [H, W]: index of the sprite on top of each pixel, −1 where there is none."""
        size = (self.config.width, self.config.height)
        parts = np.full(size[::-1], -1, np.int32)
        for index, sprite in enumerate(self._sprites):
            pose = (self.camera[t] @ sprite.poses[t])[:2]
            parts[cv2.warpAffine(sprite.alpha, pose, size) > 0.5] = index
        return parts


@dataclass(frozen=True)
class Score:
    """How well twins fit the truth of a scene; counts of patches, by what they lie on.

    A patch lies on an object if three quarters of it do, on the background if no pixel of it
    belongs to an object or a pole. A twin is right if the most of it belongs to the same object.
    """

    objects: int  # on an object, and visible for the shortest track that is mined
    with_twin: int  # of these, have a twin
    right: int  # of these, on the same object
    background: int
    background_with_twin: int
    chance: float  # the share of right twins if they were drawn from all patches in the dictionary

    @property
    def purity(self) -> float:
        """The share of the objects' twins that lie on the same object."""
        return self.right / self.with_twin if self.with_twin else float("nan")

    @property
    def recall(self) -> float:
        """The share of trackable patches on objects that have a twin."""
        return self.with_twin / self.objects if self.objects else float("nan")

    @property
    def false_alarms(self) -> float:
        """The share of background patches that have a twin."""
        return self.background_with_twin / self.background if self.background else float("nan")

    def __add__(self, other: Score) -> Score:
        both = self.with_twin + other.with_twin
        chance = (self.chance * self.with_twin + other.chance * other.with_twin) / max(both, 1)
        return Score(
            self.objects + other.objects,
            both,
            self.right + other.right,
            self.background + other.background,
            self.background_with_twin + other.background_with_twin,
            chance,
        )


def score(scene: Scene, dictionary: TwinDictionary, min_frames: int = 32) -> Score:
    """Compare the twins of a dictionary mined from `scene`, one shot, with the truth.

    Patches of the grid that are not in the dictionary, because they were lost, have no twin.
    """
    size = int(dictionary.patches["size"][0])
    centres = grid(scene.config.height, scene.config.width, size)
    owner, share, clean = _ownership(scene, centres, size)
    _, seen = scene.paths(centres)
    trackable = np.logical_and.accumulate(seen).sum(axis=0) >= min_frames

    stored = np.stack([dictionary.patches["x"], dictionary.patches["y"]], axis=1)
    near = np.abs(stored[:, None] - centres[None]).max(axis=2)
    if near.min(axis=1).max() > 0.5:
        raise ValueError("the dictionary's patches do not lie on the grid of its patch size")
    place = near.argmin(axis=1)  # of a stored patch in the grid
    twin = np.full(len(centres), -1)
    found = dictionary.twins[:, 0].numpy()
    twin[place] = np.where(found >= 0, place[found], -1)

    objects = (owner > 0) & (share >= 0.75) & trackable
    background = (owner == 0) & clean
    anchored = objects & (twin >= 0)
    same = owner[place][None] == owner[anchored][:, None]
    return Score(
        objects=int(objects.sum()),
        with_twin=int(anchored.sum()),
        right=int((owner[twin[anchored]] == owner[anchored]).sum()),
        background=int(background.sum()),
        background_with_twin=int((background & (twin >= 0)).sum()),
        chance=float(((same.sum(axis=1) - 1) / (len(place) - 1)).mean()) if len(same) else 0.0,
    )


def _ownership(
    scene: Scene, centres: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What owns most of each patch, the share that it owns, and whether nothing else has any."""
    labels = scene.owners(0)
    owner, share = np.zeros(len(centres), np.int64), np.zeros(len(centres))
    for index, (left, top) in enumerate(np.round(centres - size / 2).astype(int)):
        values, counts = np.unique(labels[top : top + size, left : left + size], return_counts=True)
        owner[index] = values[counts.argmax()]
        share[index] = counts.max() / counts.sum()
    return owner, share, share == 1.0


def _pixel(points: np.ndarray, config: SceneConfig) -> tuple[np.ndarray, np.ndarray]:
    x = np.clip(np.round(points[:, 0]).astype(int), 0, config.width - 1)
    y = np.clip(np.round(points[:, 1]).astype(int), 0, config.height - 1)
    return y, x


def _regions(config: SceneConfig) -> list[tuple[np.ndarray, float]]:
    """Centre (x, y) and half the side of a square for each object, none overlapping."""
    if config.objects == 0:
        return []
    aspect = config.width / config.height
    columns = max(1, round(np.sqrt(config.objects * aspect)))
    rows = -(-config.objects // columns)
    columns = -(-config.objects // rows)
    cell = np.array([config.width / columns, config.height / rows])
    places = [np.array([c + 0.5, r + 0.5]) for r in range(rows) for c in range(columns)]
    return [(place * cell, float(cell.min() / 2)) for place in places[: config.objects]]


def _object(
    owner: int,
    centre: np.ndarray,
    room: float,
    articulated: bool,
    config: SceneConfig,
    rng: np.random.Generator,
) -> list[_Sprite]:
    """An ellipse that strays within its room; an articulated one has a second, hinged ellipse."""
    radius = 0.62 * room
    reach = 0.3 * room
    path = centre + _wander(config.frames, 2, config.speed, config.persistence, reach, rng)
    angle = _wander(config.frames, 1, 0.01, config.persistence, 0.25, rng)[:, 0]
    radii = radius * np.array([1.0, rng.uniform(0.75, 1.0)])
    if articulated:
        radii = radius * np.array([0.75, 0.75])
    body = _ellipse(owner, radii, rng)
    body.poses = np.stack([_pose(p, a, body.alpha.shape) for p, a in zip(path, angle, strict=True)])
    if not articulated:
        return [body]
    limb = _ellipse(owner, radius * np.array([0.6, 0.3]), rng)
    swing = angle + _wander(config.frames, 1, 0.03, config.persistence, 0.6, rng)[:, 0]
    joint = path + 0.55 * radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    middle = joint + 0.5 * radius * np.stack([np.cos(swing), np.sin(swing)], axis=1)
    limb.poses = np.stack(
        [_pose(p, a, limb.alpha.shape) for p, a in zip(middle, swing, strict=True)]
    )
    return [body, limb]


def _pole(index: int, config: SceneConfig, rng: np.random.Generator) -> _Sprite:
    width = max(8, config.width // 32)
    image = _texture(config.height * 3, width, rng, contrast=40.0)
    alpha = np.ones(image.shape[:2], np.float32)
    x = config.width * (index + 1) / (config.poles + 1)
    pose = _pose(np.array([x, config.height / 2]), 0.0, alpha.shape)
    return _Sprite(-1, image, alpha, np.repeat(pose[None], config.frames, axis=0))


def _ellipse(owner: int, radii: np.ndarray, rng: np.random.Generator) -> _Sprite:
    width, height = (int(2 * r) + 5 for r in radii)
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2 + 0.5) / radii[0]) ** 2 + ((y - height / 2 + 0.5) / radii[1]) ** 2
    alpha = np.clip((1.0 - inside) * radii.min() / 2 + 0.5, 0, 1).astype(np.float32)
    return _Sprite(owner, _texture(height, width, rng, contrast=55.0), alpha, np.empty((0, 3, 3)))


def _pose(centre: np.ndarray, angle: float, shape: tuple[int, ...]) -> np.ndarray:
    """[3, 3]: turns a sprite about its middle and puts that at `centre`."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    middle = np.array([shape[1] - 1, shape[0] - 1]) / 2
    pose = np.eye(3)
    pose[:2, :2] = turn
    pose[:2, 2] = centre - turn @ middle
    return pose


def _wander(
    frames: int, d: int, speed: float, persistence: float, reach: float, rng: np.random.Generator
) -> np.ndarray:
    """float64 [T, d]: a random path from 0 with smooth velocity, pulled back beyond `reach`."""
    keep = np.exp(-1.0 / persistence)
    velocity = rng.normal(0, speed, d)
    path = np.zeros((frames, d))
    for t in range(1, frames):
        velocity = keep * velocity + np.sqrt(1 - keep**2) * rng.normal(0, speed, d)
        path[t] = path[t - 1] + velocity
        far = np.abs(path[t]) > reach
        velocity[far & (np.sign(velocity) == np.sign(path[t]))] *= -0.5
        path[t] = np.clip(path[t], -1.3 * reach, 1.3 * reach)
    return path


def _camera(config: SceneConfig, rng: np.random.Generator) -> np.ndarray:
    """[T, 3, 3] from the world to each frame; the first is the identity."""
    frames, middle = config.frames, np.array([config.width, config.height]) / 2
    pan, shake, zoom = np.zeros((frames, 2)), np.zeros((frames, 2)), np.ones(frames)
    turn = np.zeros(frames)
    if config.camera in ("pan", "all"):
        speed = 0.0015 * config.width * rng.choice([-1, 1])
        pan[:, 0] = speed * np.arange(frames)
    if config.camera in ("zoom", "all"):
        zoom = 1.0 + 0.12 * np.sin(np.linspace(0, np.pi, frames))
    if config.camera in ("shake", "all"):
        shake = _wander(frames, 2, 1.2, 2.0, 8.0, rng)
        turn = _wander(frames, 1, 0.003, 2.0, 0.02, rng)[:, 0]
    made = np.empty((frames, 3, 3))
    for t in range(frames):
        c, s = zoom[t] * np.cos(turn[t]), zoom[t] * np.sin(turn[t])
        linear = np.array([[c, -s], [s, c]])
        made[t] = np.eye(3)
        made[t, :2, :2] = linear
        made[t, :2, 2] = middle - linear @ middle + pan[t] + shake[t]
    return made


def _texture(height: int, width: int, rng: np.random.Generator, contrast: float) -> np.ndarray:
    """float32 [H, W, 3]: faintly coloured noise at three scales, of a mean colour of its own."""
    image = np.zeros((height, width, 3), np.float32)
    for scale, weight in ((1.5, 0.5), (4.0, 0.7), (12.0, 1.0)):
        small = (max(2, int(height / scale)), max(2, int(width / scale)), 3)
        noise = rng.normal(0, 1, small).astype(np.float32)
        noise = 0.35 * noise + noise.mean(axis=2, keepdims=True)
        image += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    image *= contrast / image.std()
    return np.clip(image + rng.uniform(90, 165, 3).astype(np.float32), 0, 255)
