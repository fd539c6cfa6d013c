"""Clips whose classes differ by motion alone: textured blobs sway, bounce, circle, pulse, spin or swing."""

import math
from dataclasses import dataclass

import numpy as np

CLASSES = ("bounce", "circle", "pulse", "spin", "sway", "swing")
WIDTH, HEIGHT, FPS = 176, 144, 30
PERIOD = 36.0  # frames; all motions at natural speed take 1.2 s ± 15 %
SPEED_SPREAD = 0.15
TEXELS = 4  # sprite texels a pixel along each side: nearest-texel look-up then moves in quarter pixels


@dataclass(frozen=True)
class Blob:
    """One object, in pixels and radians; `texture` is (S, S, 4) float32: RGB 0–255 and alpha 0–1."""

    texture: np.ndarray
    radius: float
    centre: tuple[float, float]
    reach: float
    phase: float
    turn: float  # +1 or -1: the sense of rotation
    tilt: float


def draw_clip(motion: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A clip of one motion, uint8 RGB of shape (frames, HEIGHT, WIDTH, 3).

    Everything but the motion is drawn alike for all classes: background, number of blobs, their shape,
    texture, colour, size, place, phase, and the period. Left-right mirrored, every class is itself.
    """
    background = _background(rng)
    blobs = [_blob(rng, background) for _ in range(rng.integers(1, 4))]
    step = 2 * math.pi / (PERIOD * rng.uniform(1 - SPEED_SPREAD, 1 + SPEED_SPREAD))
    clip = np.empty((frames, HEIGHT, WIDTH, 3), np.uint8)
    for t in range(frames):
        canvas = background.copy()
        for blob in blobs:
            _paint(canvas, blob, *_pose(motion, blob, step * t))
        np.add(canvas, 0.5, out=canvas)
        clip[t] = canvas
    return clip


def _pose(motion: str, blob: Blob, angle: float) -> tuple[float, float, float, float]:
    """Centre x and y (pixels), rotation (radians) and scale of a blob, `angle` into its motion's cycle."""
    x, y = blob.centre
    angle = blob.turn * angle + blob.phase
    wave = math.sin(angle)
    if motion == "sway":
        return x + blob.reach * wave, y, blob.tilt, 1.0
    if motion == "bounce":
        # |sin| of half the angle: one hop a period, sharp on the ground, slow at the top
        return x, y + blob.reach * (1 - 2 * abs(math.sin(angle / 2))), blob.tilt, 1.0
    if motion == "circle":
        return x + blob.reach * math.cos(angle), y + blob.reach * wave, blob.tilt, 1.0
    if motion == "pulse":
        return x, y, blob.tilt, 1.0 + 0.35 * wave
    if motion == "spin":
        return x, y, blob.tilt + angle, 1.0
    if motion == "swing":
        # a pendulum hung above: the blob turns with its rod, unlike in sway
        swing, rod = 0.7 * wave, 1.5 * blob.reach
        return x + rod * math.sin(swing), y + rod * (math.cos(swing) - 0.87), blob.tilt - swing, 1.0
    raise ValueError(f"motion {motion!r}: not one of {', '.join(CLASSES)}")


def _paint(canvas: np.ndarray, blob: Blob, x: float, y: float, rotation: float, scale: float) -> None:
    """Blend a blob into the (HEIGHT, WIDTH, 3) float32 canvas, clipped at its edges."""
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


def _background(rng: np.random.Generator) -> np.ndarray:
    first, second = rng.uniform(20, 235, (2, 3))
    coarse = _noise(rng, HEIGHT, WIDTH, int(rng.integers(2, 6)))[..., None]
    fine = _noise(rng, HEIGHT, WIDTH, int(rng.integers(10, 30)))[..., None] - 0.5
    return np.clip(first + coarse * (second - first) + 40 * fine, 0, 255).astype(np.float32)


def _blob(rng: np.random.Generator, background: np.ndarray) -> Blob:
    radius = float(rng.uniform(18, 31))
    reach = float(rng.uniform(14, 21))
    return Blob(
        texture=_texture(rng, round(2 * radius * TEXELS), background.mean((0, 1))),
        radius=radius,
        centre=(float(rng.uniform(35, WIDTH - 35)), float(rng.uniform(35, HEIGHT - 35))),
        reach=reach,
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
    pattern = _noise(rng, side, side, int(rng.integers(3, 7)))
    pattern = np.clip(4 * (pattern - 0.5) + 0.5, 0, 1)[..., None]
    rgb = colours[0] + pattern * (colours[1] - colours[0])
    return np.concatenate([rgb, alpha[..., None]], axis=-1).astype(np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
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
