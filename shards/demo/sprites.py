"""What a rendered clip is made of: smooth noise, blobs with a texture, and how a blob is painted."""

import math
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 176, 144
TEXELS = 4  # sprite texels a pixel along each side: nearest-texel look-up then moves in quarter pixels


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
    turn: float  # +1 or -1: the sense of rotation
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


def draw_background(rng: np.random.Generator, margin: int = 0) -> np.ndarray:
    """A smooth two-coloured picture, (HEIGHT, WIDTH, 3) float32 0–255, larger by `margin` pixels on each side."""
    height, width = HEIGHT + 2 * margin, WIDTH + 2 * margin
    first, second = rng.uniform(20, 235, (2, 3))
    coarse = smooth_noise(rng, height, width, int(rng.integers(2, 6)))[..., None]
    fine = smooth_noise(rng, height, width, int(rng.integers(10, 30)))[..., None] - 0.5
    return np.clip(first + coarse * (second - first) + 40 * fine, 0, 255).astype(np.float32)


def draw_blob(
    rng: np.random.Generator, background: np.ndarray, radii: tuple[float, float] = (18, 31)
) -> Blob:
    """A blob of random shape, colours and place, whose colours stand out from the background's mean."""
    radius = float(rng.uniform(*radii))
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
