"""Augmentation as DALI graph nodes. Nothing here is random: every argument comes from the spec (see pipelines.sampling).

All functions take and return DataNodes of layout FHWC, on the CPU or on the GPU.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, types

from pipelines import colour
from pipelines.streams import NOISE, generator

Node = Any  # nvidia.dali.data_node.DataNode
NOISE_SCALE = 30  # levels of 8 bits to a deviation


def box_and_flip(view: Node, box: Node, flip: Node, size: int) -> Node:
    """Cut box (4,) = left, top, width, height, scale it to size² and mirror it where flip () is 1.

    The box is cut before it is scaled, so that, as in FFmpeg's crop, nothing beyond its edge is sampled.
    """
    view = fn.slice(
        view, box[0:2], box[2:4], axis_names="WH", normalized_anchor=False, normalized_shape=False
    )
    view = fn.resize(view, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.flip(view, horizontal=flip)


def rotate(view: Node, angle: Node) -> Node:
    """Turn each frame about its centre by angle (), degrees counter-clockwise; the corners become black."""
    return fn.rotate(view, angle=angle, keep_size=True, fill_value=0, interp_type=types.INTERP_LINEAR)


def cube_root_xyz(frames: Node) -> Node:
    """RGB 0–255 (sRGB) → float (f(X), f(Y), f(Z)) of CIE Lab; white is (1, 1, 1), black 4/29 each."""
    rgb = fn.cast(frames, dtype=types.FLOAT) / 255.0
    bright = fn.cast(rgb > 0.04045, dtype=types.FLOAT)
    linear = bright * ((rgb + 0.055) / 1.055) ** 2.4 + (1.0 - bright) * rgb / 12.92
    matrix = [*colour.XYZ_OVER_WHITE.ravel().tolist()]
    xyz = fn.reinterpret(fn.coord_transform(linear, M=matrix), layout="FHWC")
    large = fn.cast(xyz > (6 / 29) ** 3, dtype=types.FLOAT)
    root = math.cbrt(math.max(xyz, 1e-6))
    return large * root + (1.0 - large) * (xyz * ((29 / 6) ** 2 / 3) + 4 / 29)


def recolour(frames: Node, colours: Node) -> Node:
    """Apply colours (F, C, P + 1), one affine map a frame, to frames of P channels; returns C, float32."""
    return fn.coord_transform(frames, MT=fn.per_frame(colours), dtype=types.FLOAT)


def luma(frames: Node) -> Node:
    """RGB 0–255 → luma (F, H, W, 1), float32."""
    return fn.coord_transform(frames, M=colour.LUMA.tolist(), dtype=types.FLOAT)


def u_and_v(frames: Node, count: int) -> Node:
    """RGB of 2·count grey pictures, all of u before all of v → (count, H, W, 2)."""
    grey = frames[:, :, :, 0:1]
    return fn.cat(grey[:count], grey[count:], axis=3)


def difference(grey: Node, views: int, size: int) -> Node:
    """Grey (V·(T + 1), H, W, 1) → frame t + 1 minus frame t of each view, (V·T, H, W, 1) float32."""
    by_view = fn.reshape(grey, shape=[views, -1, size, size], layout="VFHW")
    change = fn.cast(by_view[:, 1:], dtype=types.FLOAT) - by_view[:, :-1]
    return fn.reshape(change, shape=[-1, size, size, 1], layout="FHWC")


def fill_dropped(frames: Node, dropped: Node, noise: Node, parts: int) -> Node:
    """Fill dropped channels with noise of 1/100 of the deviation of the channel that is kept.

    frames (F, H, W, 3) float32, 0 in two channels of each; dropped (F, 3), 1 for these two and 0 for the kept one;
    noise (F, H, W, 3), of deviation 1 when divided by NOISE_SCALE. The deviation is that over each of `parts`
    equal parts of the F frames. TCP, after Doersch et al. 2015, section 3.
    """
    flat = fn.reshape(frames, shape=[parts, -1])
    # two thirds of the values are 0, so that the kept channel's moments are three times those of all
    mean = fn.reductions.mean(flat, axes=[1], keep_dims=True)
    square = fn.reductions.mean_square(flat, axes=[1], keep_dims=True)
    deviation = math.sqrt(math.max(3 * square - 9 * mean * mean, 0.0))
    strength = fn.reshape(dropped, shape=[parts, -1]) * deviation * (0.01 / NOISE_SCALE)
    return frames + noise * fn.reshape(strength, shape=[-1, 1, 1, 3], layout="FHWC")


def noise_bank(count: int, size: int) -> NDArray[np.int8]:
    """Gaussian noise (count, size, size, 3) of deviation NOISE_SCALE, the same for ever."""
    noise = NOISE_SCALE * generator(NOISE, 0, 0).standard_normal((count, size, size, 3), dtype=np.float32)
    return np.clip(np.rint(noise), -127, 127).astype(np.int8)
