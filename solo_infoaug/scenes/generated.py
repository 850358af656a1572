"""Generated scenes whose truth is known: which object every patch lies on, and where it goes.

Textured objects, rigid and articulated, move independently over a still background. For tests and
benchmarks of the miner.

Everything is a plane: a sprite whose inverse depth is linear in the pixels of the first frame. For
a moving camera, each view of a plane is a homography of the first view (Hartley and Zisserman,
Multiple View Geometry, section 13.1), so the parallax is exact.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from solo_infoaug._checks import require
from solo_infoaug.mining.encoding import write_video

CAMERAS = ("still", "pan", "zoom", "shake", "all", "sideways", "forward", "walk")
TRAVELLING = CAMERAS[-3:]
# Where the ground meets the background, as a part of the frame's height.
_WALL = 0.55


@dataclass(frozen=True)
class SceneConfig:
    """The settings of a generated scene; a ConfigError if a value cannot be used."""

    frames: int = 96
    height: int = 360
    width: int = 640
    # Objects that move, each in a region of its own, and how many have a second, hinged part.
    objects: int = 4
    articulated: int = 1
    # Standard deviation of an object's velocity, pixels a frame, and how long it lasts, frames.
    # At speed 0 objects rest; otherwise they turn as well.
    speed: float = 1.5
    persistence: float = 6.0
    # The same of a motion that all objects share, added to that of each.
    drift: float = 0.0
    # Objects are boxes, each with a border in common with its neighbours.
    touching: bool = False
    # Standard deviation of the change of an object's light from frame to frame, as a part of it:
    # brightness, and half as much of each colour. Each object's is its own.
    light: float = 0.0
    # The same of the whole frame's brightness.
    exposure: float = 0.0
    # "still", "pan", "zoom", "shake" or "all" three at once; "sideways", "forward" or "walk" (both)
    # for a camera that travels, unevenly, and shakes.
    camera: str = "still"
    # How fast it travels: pixels a frame that it moves the nearest things past it.
    travel: float = 2.0
    # How many times further the background is than the nearest things. Beyond 1, there is ground in
    # the frame's lower half, and objects stand at depths between.
    depth: float = 1.0
    # Textured boxes on the ground, which rest, at depths between.
    boxes: int = 0
    # Poles in front of everything, which do not move.
    poles: int = 0
    # Standard deviation of noise in every frame, grey levels of 255.
    noise: float = 2.0
    # Quality of the H.264 stream: 18 is good, 35 poor.
    crf: int = 23
    seed: int = 0

    def __post_init__(self) -> None:
        way = self.frames * self.travel if self.camera in TRAVELLING else 0
        half, hinged = self.width // 2, 0 <= self.articulated <= self.objects
        deep = self.depth > 1 if self.boxes else self.depth >= 1
        for name, good, expected, value in (
            ("camera", self.camera in CAMERAS, f"one of {', '.join(CAMERAS)}", self.camera),
            ("frames", self.frames >= 1, "at least 1", self.frames),
            ("height", self.height >= 96, "at least 96 pixels", self.height),
            ("width", self.width >= 96, "at least 96 pixels", self.width),
            ("depth", deep, f"at least 1, and more with {self.boxes} boxes", self.depth),
            ("frames × travel", way <= half, f"at most {half}, or it leaves the scene", way),
            ("articulated", hinged, f"a number in [0, objects={self.objects}]", self.articulated),
        ):
            require(good, name, expected, value)


@dataclass
class _Sprite:
    """A textured shape: `image` float32 [h, w, 3], `alpha` float32 [h, w], where it is over time.

    `poses` are matrices [T, 3, 3] from the sprite's pixels to those of the first frame, as a camera
    sees them that travels but does not turn. `nearness` is inverse depth: `nearness @ (x, y, 1)` at
    the pixel (x, y) of the first frame, 1 for the nearest things. `light` is float32 [T, 3], a
    factor of the colours.
    """

    owner: int
    image: np.ndarray
    alpha: np.ndarray
    poses: np.ndarray
    nearness: np.ndarray
    light: np.ndarray


@dataclass
class Scene:
    """A generated scene: render its `frames`, `write` them, ask for the truth."""

    config: SceneConfig
    # The background first, then from back to front.
    _sprites: list[_Sprite] = field(repr=False)
    # [T, 3, 3]: pan, zoom and shake, from the pixels of the first frame to those of each.
    camera: np.ndarray = field(repr=False)
    # float32 [T], a factor of all colours.
    exposure: np.ndarray = field(repr=False)

    @classmethod
    def make(cls, config: SceneConfig) -> Scene:
        """Make the scene that `config` describes; the same seed makes the same scene."""
        rng, sprites = np.random.default_rng(config.seed), list[_Sprite]()
        background = _backdrop(config, rng)
        for owner, (centre, half) in enumerate(_regions(config), start=1):
            sprites += _object(owner, centre, half, owner <= config.articulated, config, rng)
        poles = [_pole(index, config, rng) for index in range(config.poles)]
        camera = _camera(config, rng)
        # What is added has random numbers of its own, and leaves what there is as it was.
        _drift(sprites, config)
        _light(sprites, config)
        if config.depth > 1:
            sprites = sorted(_boxes(config) + sprites, key=lambda sprite: sprite.nearness[2])
            sprites.insert(0, _ground(config))
        sprites = [background, *sprites, *poles]
        if config.camera in TRAVELLING:
            travelled = _travel(config)
            for sprite in sprites:
                # A plane with n·(x, y, 1) = 1 / depth, seen by a camera that has moved by c, is
                # shown by I − K c nᵀ.
                sprite.poses = (np.eye(3) - travelled[:, :, None] * sprite.nearness) @ sprite.poses
        return cls(config, sprites, camera, _exposure(config))

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] RGB, with noise."""
        rng = np.random.default_rng([self.config.seed, 1])
        for t in range(self.config.frames):
            image = self._render(t)
            image += rng.normal(0, self.config.noise, image.shape).astype(np.float32)
            yield np.clip(np.round(image), 0, 255).astype(np.uint8)

    def owners(self, t: int = 0) -> np.ndarray:
        """int32 [H, W]: the object at each pixel of frame `t`; 0 background, −1 a pole."""
        owner = np.array([sprite.owner for sprite in self._sprites], np.int32)
        return owner[self._parts(t)]

    def paths(
        self, points: np.ndarray, at: int = 0, frames: range | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where `points` [N, 2], (x, y), of frame `at` are in each of `frames`; None for all.

        float64 [T, N, 2], and bool [T, N]: in the frame, and nothing before it.
        """
        frames = range(self.config.frames) if frames is None else frames
        part = self._parts(at)[_pixel(points, self.config)]
        start = np.column_stack([points, np.ones(len(points))])
        paths = np.empty((len(frames), len(points), 2))
        visible = np.empty(paths.shape[:2], bool)
        for row, t in enumerate(frames):
            moved = np.empty_like(start)
            for index in np.unique(part):
                poses, mine = self._sprites[index].poses, part == index
                motion = self.camera[t] @ poses[t] @ np.linalg.inv(self.camera[at] @ poses[at])
                moved[mine] = start[mine] @ motion.T
            paths[row] = moved[:, :2] / moved[:, 2:]
            x, y = paths[row].T
            inside = (x >= 0) & (y >= 0) & (x < self.config.width) & (y < self.config.height)
            top = self._parts(t)[_pixel(paths[row], self.config)]
            visible[row] = inside & (top == part)
        return paths, visible

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Encode the scene as H.264, 25 frames a second."""
        options = {"crf": str(self.config.crf), "preset": "veryfast"}
        size = (self.config.width, self.config.height)
        write_video(self.frames(), target := Path(path), size, options)
        return target

    def _render(self, t: int) -> np.ndarray:
        """float32 [H, W, 3] without noise."""
        image = np.zeros((self.config.height, self.config.width, 3), np.float32)
        for index, sprite in enumerate(self._sprites):
            colours = self._warp(sprite.image, sprite, t) * sprite.light[t]
            alpha = self._warp(sprite.alpha, sprite, t)[..., None] if index else 1.0
            image = alpha * colours + (1 - alpha) * image
        return image * self.exposure[t]

    def _parts(self, t: int) -> np.ndarray:
        """int32 [H, W]: index of the sprite on top of each pixel."""
        parts = np.zeros((self.config.height, self.config.width), np.int32)
        for index, sprite in enumerate(self._sprites[1:], start=1):
            parts[self._warp(sprite.alpha, sprite, t) > 0.5] = index
        return parts

    def _warp(self, image: np.ndarray, sprite: _Sprite, t: int) -> np.ndarray:
        """The part of a sprite's `image` that is in frame `t`, where it is; 0 around it."""
        size = (self.config.width, self.config.height)
        pose = self.camera[t] @ sprite.poses[t]
        pose /= pose[2, 2]
        if np.any(pose[2, :2]):
            return cv2.warpPerspective(image, pose, size)
        return cv2.warpAffine(image, pose[:2], size)


def _pixel(points: np.ndarray, config: SceneConfig) -> tuple[np.ndarray, np.ndarray]:
    x = np.clip(np.round(points[:, 0]).astype(int), 0, config.width - 1)
    y = np.clip(np.round(points[:, 1]).astype(int), 0, config.height - 1)
    return y, x


def _regions(config: SceneConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Centre (x, y) and half the sides of a rectangle for each object; they do not overlap.

    They fill the frame; those of objects that touch leave background around them.
    """
    if config.objects == 0:
        return []
    aspect = config.width / config.height
    columns = max(1, round(np.sqrt(config.objects * aspect)))
    rows = -(-config.objects // columns)
    columns = -(-config.objects // rows)
    cell = np.array([config.width / columns, config.height / rows])
    places = [np.array([c + 0.5, r + 0.5]) for r in range(rows) for c in range(columns)]
    centres = [place * cell for place in places[: config.objects]]
    if config.touching:
        middle = 0.5 * np.array([config.width, config.height])
        return [(middle + 0.6 * (centre - middle), 0.3 * cell) for centre in centres]
    return [(centre, cell / 2) for centre in centres]


def _backdrop(config: SceneConfig, rng: np.random.Generator) -> _Sprite:
    margin = max(config.height, config.width) // 2
    image = _texture(config.height + 2 * margin, config.width + 2 * margin, rng, contrast=45.0)
    pose = np.array([[1, 0, -margin], [0, 1, -margin], [0, 0, 1.0]])
    return _resting(0, image, pose, 1 / config.depth, config)


def _resting(
    owner: int, image: np.ndarray, pose: np.ndarray, nearness: float, config: SceneConfig
) -> _Sprite:
    """A rectangle that faces the camera and does not move."""
    return _Sprite(
        owner,
        image,
        alpha=np.ones(image.shape[:2], np.float32),
        poses=np.repeat(pose[None], config.frames, axis=0),
        nearness=np.array([0, 0, nearness]),
        light=np.ones((config.frames, 3), np.float32),
    )


def _object(
    owner: int,
    centre: np.ndarray,
    half: np.ndarray,
    articulated: bool,
    config: SceneConfig,
    rng: np.random.Generator,
) -> list[_Sprite]:
    """An ellipse that strays within its room; an articulated one has a second, hinged ellipse.

    Objects that touch are boxes that reach into each other, so that none moves off its neighbours.
    """
    room = float(half.min())
    radius = 0.62 * room
    reach, turning = (0.15 * room, 0.03) if config.touching else (0.3 * room, 0.25)
    path = centre + _wander(config.frames, 2, config.speed, config.persistence, reach, rng)
    angle = _wander(config.frames, 1, 0.01, config.persistence, turning, rng)[:, 0]
    angle *= config.speed > 0
    radii = radius * np.array([1.0, rng.uniform(0.75, 1.0)])
    if articulated:
        radii = radius * np.array([0.75, 0.75])
    if config.touching:
        radii = half + 0.25 * room
    body = _ellipse(owner, radii, config, rng, power=12 if config.touching else 2)
    # Beyond depth 1: evenly from near the background to near the nearest things.
    body.nearness[2] = 1 / config.depth + (1 - 1 / config.depth) * (owner - 0.5) / config.objects
    body.poses = _poses(path, angle, body)
    if not articulated:
        return [body]
    limb = _ellipse(owner, radius * np.array([0.6, 0.3]), config, rng)
    limb.nearness = body.nearness
    swing = _wander(config.frames, 1, 0.03, config.persistence, 0.6, rng)[:, 0]
    swing = angle + swing * (config.speed > 0)
    joint = path + 0.55 * radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    middle = joint + 0.5 * radius * np.stack([np.cos(swing), np.sin(swing)], axis=1)
    limb.poses = _poses(middle, swing, limb)
    return [body, limb]


def _poses(path: np.ndarray, angle: np.ndarray, sprite: _Sprite) -> np.ndarray:
    return np.stack([pose_of(p, a, sprite.alpha.shape) for p, a in zip(path, angle, strict=True)])


def _drift(objects: list[_Sprite], config: SceneConfig) -> None:
    """Add the motion that all objects share."""
    rng = np.random.default_rng([config.seed, 2])
    reach = 0.1 * min(config.height, config.width)
    path = _wander(config.frames, 2, config.drift, config.persistence, reach, rng)
    for sprite in objects:
        sprite.poses[:, :2, 2] += path


def _light(objects: list[_Sprite], config: SceneConfig) -> None:
    """Set the light of each object: the logarithms of brightness and of the colours wander."""
    rng = np.random.default_rng([config.seed, 3])
    for owner in range(1, config.objects + 1):
        brightness = _wander(config.frames, 1, config.light, config.persistence, 0.25, rng)
        colour = _wander(config.frames, 3, config.light / 2, config.persistence, 0.25, rng)
        for sprite in (sprite for sprite in objects if sprite.owner == owner):
            sprite.light = np.exp(brightness + colour).astype(np.float32)


def _exposure(config: SceneConfig) -> np.ndarray:
    rng = np.random.default_rng([config.seed, 4])
    change = _wander(config.frames, 1, config.exposure, config.persistence, 0.15, rng)[:, 0]
    return np.exp(change).astype(np.float32)


def _ground(config: SceneConfig) -> _Sprite:
    """A plane from the foot of the background to the nearest things, at the frame's lower edge."""
    rng = np.random.default_rng([config.seed, 5])
    top, margin = round(_WALL * config.height), config.width // 2
    depth = config.height - 1 - top
    image = _texture(depth + config.height // 3, config.width + 2 * margin, rng, contrast=40.0)
    pose = np.array([[1, 0, -margin], [0, 1, top], [0, 0, 1.0]])
    slope = (1 - 1 / config.depth) / depth
    ground = _resting(0, image, pose, 1 / config.depth, config)
    ground.nearness = np.array([0, slope, 1 / config.depth - slope * top])
    return ground


def _boxes(config: SceneConfig) -> list[_Sprite]:
    """Boxes that stand on the ground, smaller with distance; some come into view later."""
    rng = np.random.default_rng([config.seed, 6])
    boxes = []
    for index, column in enumerate(rng.permutation(config.boxes)):
        way = (index + rng.uniform(0.2, 0.8)) / config.boxes  # of the way to the nearest things
        nearness = 1 / config.depth + (1 - 1 / config.depth) * way
        height = max(16, round(0.8 * config.height * nearness * rng.uniform(0.6, 1.0)))
        width = max(12, round(height * rng.uniform(0.3, 0.6)))
        foot = config.height * (_WALL + (1 - _WALL) * way)
        across = (column + rng.uniform(0, 1)) / config.boxes
        middle = np.array([config.width * (1.2 * across - 0.1), foot - height / 2])
        image = _texture(height, width, rng, contrast=50.0)
        pose = pose_of(middle, 0.0, image.shape)
        boxes.append(_resting(0, image, pose, nearness, config))
    return boxes


def _travel(config: SceneConfig) -> np.ndarray:
    """[T, 3]: K·c, where c is the camera's place, in units in which the nearest depth is 1."""
    rng, speed = np.random.default_rng([config.seed, 7]), config.travel
    way = _wander(config.frames, 3, 0.3 * speed, config.persistence, 10 * speed, rng)
    along = speed * np.arange(config.frames)
    if config.camera in ("sideways", "walk"):
        way[:, 0] += along * rng.choice([-1, 1])
    if config.camera in ("forward", "walk"):
        way[:, 2] += along
    focal, height = config.width, config.height  # as long as the frame is wide
    inner = np.array([[focal, 0, config.width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    return way / focal @ inner.T


def _pole(index: int, config: SceneConfig, rng: np.random.Generator) -> _Sprite:
    width = max(8, config.width // 32)
    image = _texture(config.height * 3, width, rng, contrast=40.0)
    x = config.width * (index + 1) / (config.poles + 1)
    pose = pose_of(np.array([x, config.height / 2]), 0.0, image.shape)
    return _resting(-1, image, pose, 1.0, config)


def _ellipse(
    owner: int, radii: np.ndarray, config: SceneConfig, rng: np.random.Generator, power: int = 2
) -> _Sprite:
    """An ellipse that does not move; with a higher power, a box with round corners."""
    width, height = (int(2 * r) + 5 for r in radii)
    y, x = np.mgrid[:height, :width]
    across, down = (x - width / 2 + 0.5) / radii[0], (y - height / 2 + 0.5) / radii[1]
    inside = across**power + down**power
    made = _resting(owner, _texture(height, width, rng, contrast=55.0), np.eye(3), 1.0, config)
    made.alpha = np.clip((1.0 - inside) * radii.min() / power + 0.5, 0, 1).astype(np.float32)
    return made


def pose_of(centre: np.ndarray, angle: float, shape: tuple[int, ...]) -> np.ndarray:
    """[3, 3]: turns a sprite about its middle and puts that at `centre`."""
    c, s = np.cos(angle), np.sin(angle)
    pose = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    pose[:2, 2] = centre - pose[:2, :2] @ (np.array([shape[1] - 1, shape[0] - 1]) / 2)
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
    pan, shake = np.zeros((2, frames, 2))
    zoom, turn = np.ones(frames), np.zeros(frames)
    if config.camera in ("pan", "all"):
        pan[:, 0] = 0.0015 * config.width * rng.choice([-1, 1]) * np.arange(frames)
    if config.camera in ("zoom", "all"):
        zoom = 1.0 + 0.12 * np.sin(np.linspace(0, np.pi, frames))
    if config.camera in ("shake", "all", *TRAVELLING):
        shake = _wander(frames, 2, 1.2, 2.0, 8.0, rng)
        turn = _wander(frames, 1, 0.003, 2.0, 0.02, rng)[:, 0]
    made = np.repeat(np.eye(3)[None], frames, axis=0)
    for t in range(frames):
        c, s = zoom[t] * np.cos(turn[t]), zoom[t] * np.sin(turn[t])
        made[t, :2, :2] = linear = np.array([[c, -s], [s, c]])
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
