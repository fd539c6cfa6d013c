"""Augmentation as DALI graph nodes. Nothing here is random: every argument comes from the plan (see plan.Draw).

All functions take and return DataNodes of layout FHWC, on the CPU or on the GPU.
"""

from typing import Any

from nvidia.dali import fn, math, types

from pipelines import colour

Node = Any  # nvidia.dali.data_node.DataNode


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
    """Apply colours (F, 3, 4), one affine map a frame; returns float32."""
    return fn.coord_transform(frames, MT=fn.per_frame(colours), dtype=types.FLOAT)
