"""Clips whose classes differ by the order of what moves, and by nothing that a single picture shows.

Classes come in pairs of the same motion: a backward class is a forward one played backwards. Statistics that forget the
order, of optical flow for example, can only guess which of the two they see. The camera pans and shakes, small objects pass by, a
bar may hide what moves, and the light flickers.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 176, 144
TEXELS = 4  # sprite texels a pixel along each side: nearest-texel look-up then moves in quarter pixels
CLASSES = (
    "hop-backward",
    "hop-forward",
    "pulse-backward",
    "pulse-forward",
    "slide-backward",
    "slide-forward",
)
FPS = 30
CYCLE = 54.0  # frames; a motion there and back takes 1.8 s, ± 15 %
SPEED_SPREAD = 0.15
MARGIN = 12  # pixels that the camera may look beyond the picture's edge


@dataclass(frozen=True)
class Blob:
    """One object, in pixels and radians; `texture` is (S, S, 4) float32: RGB 0–255 and alpha 0–1.

    phase: where in its motion's cycle it is at the first frame, 0–2π.
    """

    texture: np.ndarray
    radius: float
    centre: tuple[float, float]
    reach: float
    phase: float
    turn: float  # +1 or -1: the side to which it slides first
    tilt: float


def paint(canvas: np.ndarray, blob: Blob, x: float, y: float, rotation: float, scale: float) -> None:
    """Blend a blob, centred at (x, y) pixels, into the (HEIGHT, WIDTH, 3) float32 canvas, clipped at its edges."""
    extent = blob.radius * scale
    left, right = max(0, math.floor(x - extent)), min(WIDTH, math.ceil(x + extent) + 1)
    top, bottom = max(0, math.floor(y - extent)), min(HEIGHT, math.ceil(y + extent) + 1)
    if left >= right or top >= bottom:
        return
    side = blob.texture.shape[0]
    zoom = side / (2 * extent)
    cos, sin = zoom * math.cos(rotation), zoom * math.sin(rotation)
    dx = np.arange(left, right, dtype=np.float32) - x
    dy = (np.arange(top, bottom, dtype=np.float32) - y)[:, None]
    column = np.clip(cos * dx + sin * dy + side / 2, 0, side - 1).astype(np.intp)
    row = np.clip(cos * dy - sin * dx + side / 2, 0, side - 1).astype(np.intp)
    texels = blob.texture.reshape(-1, 4)[row * side + column]
    region = canvas[top:bottom, left:right]
    region += texels[..., 3:] * (texels[..., :3] - region)


def draw_background(rng: np.random.Generator, margin: int) -> np.ndarray:
    """A smooth two-coloured picture, (HEIGHT, WIDTH, 3) float32 0–255, larger by `margin` pixels on each side."""
    height, width = HEIGHT + 2 * margin, WIDTH + 2 * margin
    first, second = rng.uniform(20, 235, (2, 3))
    coarse = smooth_noise(rng, height, width, int(rng.integers(2, 6)))[..., None]
    fine = smooth_noise(rng, height, width, int(rng.integers(10, 30)))[..., None] - 0.5
    return np.clip(first + coarse * (second - first) + 40 * fine, 0, 255).astype(np.float32)


def draw_blob(
    rng: np.random.Generator,
    background: np.ndarray,
    radii: tuple[float, float] = (18, 31),
    reach: tuple[float, float] = (17, 25),
) -> Blob:
    """A blob of random shape, colours and place, whose colours stand out from the background's mean."""
    radius = float(rng.uniform(*radii))
    away = float(rng.uniform(*reach))
    return Blob(
        texture=_texture(rng, round(2 * radius * TEXELS), background.mean((0, 1))),
        radius=radius,
        centre=(float(rng.uniform(35, WIDTH - 35)), float(rng.uniform(35, HEIGHT - 35))),
        reach=away,
        phase=float(rng.uniform(0, 2 * math.pi)),
        turn=float(rng.choice((-1.0, 1.0))),
        tilt=float(rng.uniform(0, 2 * math.pi)),
    )


def _texture(rng: np.random.Generator, side: int, behind: np.ndarray) -> np.ndarray:
    """A star-shaped blob with a soft edge and a two-coloured pattern, (side, side, 4) float32."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    distance = np.hypot(axis[None], axis[:, None])
    bearing = np.arctan2(axis[:, None], axis[None])
    edge = np.full_like(distance, 0.72)
    for lobes in (1, 2, 3, 4, 5):
        size, at = rng.uniform(0, 0.22) / lobes**0.5, rng.uniform(0, 2 * math.pi)
        edge += np.float32(size) * np.cos(lobes * bearing - np.float32(at))
    edge = np.minimum(edge, 0.93)
    alpha = np.clip((edge - distance) * side / (3 * TEXELS) + 0.5, 0, 1)
    colours = rng.uniform(0, 255, (2, 3))
    while np.abs(colours[0] - behind).max() < 70 or np.abs(colours[0] - colours[1]).max() < 70:
        colours = rng.uniform(0, 255, (2, 3))
    pattern = smooth_noise(rng, side, side, int(rng.integers(3, 7)))
    pattern = np.clip(4 * (pattern - 0.5) + 0.5, 0, 1)[..., None]
    rgb = colours[0] + pattern * (colours[1] - colours[0])
    return np.concatenate([rgb, alpha[..., None]], axis=-1).astype(np.float32)


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise in 0–1, (height, width) float32, with about `cells` hills along the width."""
    rows = max(2, round(cells * height / width))
    grid = rng.uniform(0, 1, (rows + 1, cells + 1)).astype(np.float32)
    return _blend(height, rows) @ grid @ _blend(width, cells).T


def _blend(size: int, cells: int) -> np.ndarray:
    """Weights, (size, cells + 1), of the grid points on either side of each pixel, eased in and out."""
    place = np.linspace(0, cells, size, endpoint=False, dtype=np.float32)
    cell = place.astype(np.intp)
    share = (1 - np.cos(np.pi * (place - cell))) / 2
    weights = np.zeros((size, cells + 1), np.float32)
    weights[np.arange(size), cell] = 1 - share
    weights[np.arange(size), cell + 1] = share
    return weights


Pose = tuple[float, float, float, float]  # centre x and y (pixels), rotation (radians), scale


def draw_clip(motion: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A clip of one class of CLASSES, uint8 RGB of shape (frames, HEIGHT, WIDTH, 3).

    Everything but the motion is drawn alike for all classes: background, camera, light, number of blobs, their shape,
    texture, colour, size, place, phase, and the period. Left-right mirrored, every class is itself.
    """
    background = draw_background(rng, MARGIN)
    view = background[MARGIN:-MARGIN, MARGIN:-MARGIN]
    blobs = [draw_blob(rng, view) for _ in range(rng.integers(1, 3))]
    passers = [_Passer.draw(rng, view) for _ in range(rng.integers(1, 3))]
    bars = [_Bar.draw(rng) for _ in range(rng.integers(0, 2))]
    cycle = CYCLE * rng.uniform(1 - SPEED_SPREAD, 1 + SPEED_SPREAD)
    camera_T2 = _camera(frames, rng)
    light_T = _light(frames, rng)
    clip = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
    for t, (right, down) in enumerate(camera_T2.tolist()):
        canvas = _window(background, MARGIN + down, MARGIN + right)
        # half of the passing objects lie behind what moves, half before it
        for passer in passers[::2]:
            paint(canvas, passer.blob, *passer.pose(t, right, down))
        for blob in blobs:
            x, y, rotation, scale = pose(motion, blob, t / cycle)
            paint(canvas, blob, x - right, y - down, rotation, scale)
        for passer in passers[1::2]:
            paint(canvas, passer.blob, *passer.pose(t, right, down))
        for bar in bars:
            bar.paint(canvas, t, right)
        canvas *= light_T[t]
        np.add(canvas, 0.5, out=canvas)
        np.minimum(canvas, 255, out=canvas)
        clip[t] = canvas
    return clip


def pose(motion: str, blob: Blob, cycles: float) -> Pose:
    """The pose of a blob after some cycles; each motion ends where it began.

    Forward, a hop or a slide is at once at full speed and slows down until it rests, to one side and then to the other;
    a pulse is slowly larger and quickly smaller.
    """
    name, order = motion.split("-")
    place = (cycles + blob.phase / (2 * math.pi)) % 1
    if order == "backward":
        place = (1 - place) % 1
    x, y = blob.centre
    if name == "pulse":
        size = place / 0.75 if place < 0.75 else (1 - place) / 0.25
        return x, y, blob.tilt, 0.65 + 0.7 * size
    share = 2 * place % 1
    away = (1 - 2 * (1 - share) ** 3) * (1 if place < 0.5 else -1)
    if name == "slide":
        return x + blob.turn * blob.reach * away, y, blob.tilt, 1.0
    return x, y + blob.reach * away, blob.tilt, 1.0


@dataclass(frozen=True)
class _Passer:
    """A small object that crosses the scene at a constant speed, turns, and comes back on the other side."""

    blob: Blob
    velocity: tuple[float, float]  # pixels a frame
    turn: float  # radians a frame

    @classmethod
    def draw(cls, rng: np.random.Generator, background: np.ndarray) -> "_Passer":
        speed, bearing = rng.uniform(0.5, 2.2), rng.uniform(0, 2 * math.pi)
        velocity = float(speed * math.cos(bearing)), float(speed * math.sin(bearing))
        return cls(draw_blob(rng, background, (8, 15)), velocity, float(rng.uniform(-0.12, 0.12)))

    def pose(self, t: int, right: float, down: float) -> Pose:
        edge = self.blob.radius
        x, y = (
            (at + speed * t - camera + edge) % (side + 2 * edge) - edge
            for at, speed, camera, side in zip(
                self.blob.centre, self.velocity, (right, down), (WIDTH, HEIGHT), strict=True
            )
        )
        return x, y, self.blob.tilt + self.turn * t, 1.0


@dataclass(frozen=True)
class _Bar:
    """An upright bar, as high as the picture, in front of everything; it drifts from its place, `left`, in pixels."""

    texture: np.ndarray  # (HEIGHT, width, 3) float32
    left: float
    drift: float  # pixels a frame

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Bar":
        width = int(rng.integers(10, 23))
        colours = rng.uniform(20, 235, (2, 3))
        pattern = smooth_noise(rng, HEIGHT, width, int(rng.integers(1, 4)))[..., None]
        texture = (colours[0] + pattern * (colours[1] - colours[0])).astype(np.float32)
        return cls(texture, float(rng.uniform(0, WIDTH)), float(rng.uniform(-0.4, 0.4)))

    def paint(self, canvas: np.ndarray, t: int, right: float) -> None:
        """The nearest whole pixel is precise enough: a bar has no details across its width."""
        width = self.texture.shape[1]
        left = round((self.left + self.drift * t - right + width) % (WIDTH + width) - width)
        shown = slice(max(0, left), min(WIDTH, left + width))
        canvas[:, shown] = self.texture[:, shown.start - left : shown.stop - left]


def _camera(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Where the camera looks, (frames, 2) float64, pixels right and down: a slow swing and a hand's shaking."""
    t = np.arange(frames)
    reach, period = rng.uniform((2, 1), (8, 4)), rng.uniform(90, 260, 2)
    pan_T2 = reach * np.sin(2 * np.pi * (t[:, None] / period + rng.uniform(0, 1, 2)))
    shake_T2 = _wander(frames, 2, rng) * rng.uniform(0.1, 0.5)
    return np.clip(pan_T2 + shake_T2, -MARGIN, MARGIN)


def _light(frames: int, rng: np.random.Generator) -> np.ndarray:
    """A factor a frame, (frames,) float32: a slow wave of up to 10 % and flicker of up to 4 %."""
    wave = rng.uniform(0, 0.1) * np.sin(
        2 * np.pi * (np.arange(frames) / rng.uniform(20, 90) + rng.uniform(0, 1))
    )
    flicker = rng.uniform(0, 0.04) * rng.standard_normal(frames)
    return np.clip(1 + wave + flicker, 0.7, 1.3).astype(np.float32)


def _wander(frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of deviation 1 that forgets nine tenths in ten frames, (frames, count)."""
    steps = rng.standard_normal((frames, count)) * (1 - 0.8**2) ** 0.5
    for before, step in itertools.pairwise(steps):
        step += 0.8 * before
    return steps


def _window(picture: np.ndarray, top: float, left: float) -> np.ndarray:
    """The (HEIGHT, WIDTH, 3) part of a larger picture at a place between pixels, blended linearly."""
    y, x = min(int(top), picture.shape[0] - HEIGHT - 1), min(int(left), picture.shape[1] - WIDTH - 1)
    part = picture[y : y + HEIGHT + 1, x : x + WIDTH + 1]
    rows = part[:-1] + np.float32(top - y) * (part[1:] - part[:-1])
    return rows[:, :-1] + np.float32(left - x) * (rows[:, 1:] - rows[:, :-1])
