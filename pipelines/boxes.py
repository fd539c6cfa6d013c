"""Boxes: the part of the stored frame that a view shows. All sides are even numbers of pixels."""

import numpy as np
from numpy.typing import NDArray

from pipelines.views import ViewSpec

_TRIES = 10  # of a random-resized box before the fallback, as in torchvision


def tries(spec: ViewSpec) -> int:
    """K, how many candidates a box is drawn from."""
    return 1 if spec.crop or spec.centre else _TRIES


def sample_boxes(
    spec: ViewSpec, uniform_BGK4: NDArray, widths_B: NDArray, heights_B: NDArray
) -> NDArray[np.int32]:
    """Boxes (B, G, 4): left, top, width, height in pixels, from K tries of four uniform numbers each."""
    W, H = (np.asarray(side, dtype=np.float64)[:, None, None] for side in (widths_B, heights_B))
    if spec.crop or spec.centre:
        # 1e-6: 7/10 of 240 is 168, whatever the rounding of .7
        width = height = np.floor(np.minimum(W, H)[..., 0] * (spec.crop or 1.0) + 1e-6)
        u_left, u_top = uniform_BGK4[..., 0, 2], uniform_BGK4[..., 0, 3]
    else:
        width, height, u_left, u_top = _random_resized(spec, uniform_BGK4, W, H)
    if spec.centre:
        u_left, u_top = np.full_like(u_left, 0.5), np.full_like(u_top, 0.5)
    width, height = (np.maximum(2 * np.floor(side / 2), 2) for side in (width, height))
    left, top = (
        2 * np.floor(u * (np.floor((full[..., 0] - side) / 2) + 1))
        for u, full, side in ((u_left, W, width), (u_top, H, height))
    )
    return np.stack(np.broadcast_arrays(left, top, width, height), axis=-1).astype(np.int32)


def _random_resized(
    spec: ViewSpec, uniform_BGK4: NDArray, W_B11: NDArray, H_B11: NDArray
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """The first of K tries that fits, else the largest centred one allowed: width, height, u_left, u_top (B, G)."""
    W, H = W_B11, H_B11
    area = W * H * (spec.area[0] + (spec.area[1] - spec.area[0]) * uniform_BGK4[..., 0])
    low, high = np.log(spec.ratio)
    ratio = np.exp(low + (high - low) * uniform_BGK4[..., 1])
    width, height = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (width <= W) & (height <= H)
    first = fits.argmax(-1)[..., None]
    width, height = (
        np.take_along_axis(width, first, -1)[..., 0],
        np.take_along_axis(height, first, -1)[..., 0],
    )
    u_left, u_top = (np.take_along_axis(uniform_BGK4[..., k], first, -1)[..., 0] for k in (2, 3))
    W, H, none_fits = W[..., 0], H[..., 0], ~fits.any(-1)
    width = np.where(none_fits, np.minimum(W, H * spec.ratio[1]), width)
    height = np.where(none_fits, np.minimum(H, W / spec.ratio[0]), height)
    return width, height, np.where(none_fits, 0.5, u_left), np.where(none_fits, 0.5, u_top)
