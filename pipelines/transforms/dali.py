"""Augmentation as a DALI graph: decoded frames → views. The twin of transforms.numpy.

Nothing here is random: every argument is one of the samples' ViewParams. The graph has no state.
All functions take and return DataNodes of layout FHWC, on the CPU or on the GPU.

    pixels   what FFmpeg cropped and resized on the CPU → rotation, colour
    frames   4:2:0 frames that lie in the device's memory → crop, resize, flip, RGB, rotation, colour
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, types

from pipelines import colour
from pipelines.sampling import ViewParams
from pipelines.transforms.numpy import NOISE_SCALE
from pipelines.views import ViewSpec

Node = Any  # nvidia.dali.data_node.DataNode
Source = Literal["pixels", "frames"]


def define(spec: ViewSpec, source: Source, device: str = "gpu", clips: int = 1) -> Node:
    """The graph's output node, float32 FHWC with F = clips·V·T; to be called inside a DALI pipeline scope.

    device: gpu, or cpu for tests. clips: of the spec in a sample.
    """
    if clips > 1:
        spec = _repeated(spec, clips)
    colours = fn.external_source(name="colours", dtype=types.FLOAT, ndim=3)
    angles = fn.external_source(name="angles", dtype=types.FLOAT, ndim=1) if spec.rotation else None
    groups = _groups(spec)
    if source == "pixels":
        parts = _pixels(spec, device, groups if angles is not None else [list(range(spec.views))])
    else:
        parts = _cropped(spec, device, groups)
    if angles is not None:
        parts = [rotate(part, angles[views[0]]) for part, views in zip(parts, groups, strict=True)]
    shown = fn.cat(*parts, axis=0) if len(parts) > 1 else parts[0]
    if spec.modality == "difference":
        grey = shown if source == "pixels" else luma(shown)
        shown = difference(grey, spec.views, spec.size)
    coloured = recolour(cube_root_xyz(shown) if spec.lab else shown, colours)
    return _fill_dropped(spec, coloured, clips, device) if spec.channel_drop else coloured


def inputs(
    spec: ViewSpec, source: Source, params: list[ViewParams], clips: int = 1
) -> dict[str, list[NDArray[Any]]]:
    """What `define` takes of the samples' parameters, by the names of its inputs.

    order: for each group of views that share a box, the places of its pictures among the sample's, whose frames come in
    ascending order and each once. A picture is a frame, or for flow half of one: first all of u, then all of v.
    """
    found: dict[str, list[NDArray[Any]]] = {
        "colours": [p.colours.reshape(-1, *p.colours.shape[2:]) for p in params]
    }
    if spec.rotation:
        found["angles"] = [p.angles for p in params]
    if spec.channel_drop:
        # a kept channel's row is not all 0: normalisation has an offset
        maps = [p.colours.reshape(-1, 3, 4) for p in params]
        found["dropped"] = [(rows == 0).all(-1).astype(np.float32) for rows in maps]
        found["noise_order"] = [p.noise.ravel() for p in params if p.noise is not None]
    if source == "pixels":
        return found
    groups = _groups(_repeated(spec, clips))
    heads = [views[0] for views in groups]
    found |= {"order": [], "boxes": [], "flips": []}
    for p in params:
        places = np.unique(p.frames, return_inverse=True)[1].reshape(p.frames.shape)
        parts = [places[views].ravel() for views in groups]
        if spec.modality == "flow":
            parts = [np.concatenate([2 * part, 2 * part + 1]) for part in parts]
        found["order"].append(np.concatenate(parts).astype(np.int32))
        found["boxes"].append(p.boxes[heads].astype(np.float32))
        found["flips"].append(p.flips[heads].astype(np.int32))
    return found


def _repeated(spec: ViewSpec, clips: int) -> ViewSpec:
    """The spec of a sample: the views of `clips` clips, one clip after the other; each has boxes of its own."""
    boxes = spec.scope(spec.box_scope)[:, 0]
    groups = tuple(int(box + clip * (boxes.max() + 1)) for clip in range(clips) for box in boxes)
    return replace(spec, offsets=spec.offsets * clips, box_scope="view", groups=groups)


def _groups(spec: ViewSpec) -> list[list[int]]:
    """The views that share a box, a flip and an angle, as far as they follow each other: one chain of operators each."""
    box_of = spec.scope(spec.box_scope)[:, 0].tolist()
    groups: list[list[int]] = []
    for view, box in enumerate(box_of):
        if view and box == box_of[view - 1]:
            groups[-1].append(view)
        else:
            groups.append([view])
    return groups


def _pixels(spec: ViewSpec, device: str, groups: list[list[int]]) -> list[Node]:
    """The frames that FFmpeg has cropped, for each group of views."""
    planes = fn.external_source(name="pixels", dtype=types.UINT8, layout="FCHW")
    frames = fn.transpose(planes if device == "cpu" else planes.gpu(), perm=[0, 2, 3, 1])
    if len(groups) == 1:
        return [frames]
    return [frames[views[0] * spec.decoded : (views[-1] + 1) * spec.decoded] for views in groups]


def _cropped(spec: ViewSpec, device: str, groups: list[list[int]]) -> list[Node]:
    """Crop, resize and flip the frames of each group of views."""
    order = fn.external_source(
        name="order", dtype=types.INT32, ndim=1
    )  # places in the frames, group after group
    boxes = fn.external_source(name="boxes", dtype=types.FLOAT, ndim=2)
    flips = fn.external_source(name="flips", dtype=types.INT32, ndim=1)
    crop = _from_frames(spec, device)
    parts, first = [], 0
    pictures = 2 if spec.modality == "flow" else 1
    for group, views in enumerate(groups):
        count = len(views) * spec.decoded
        places = order[first : first + count * pictures]
        first += count * pictures
        part = crop(places, boxes[group], flips[group])
        parts.append(u_and_v(part, count) if spec.modality == "flow" else part)
    return parts


def _from_frames(spec: ViewSpec, device: str) -> Callable[[Node, Node, Node], Node]:
    """(order, box, flip) of a group → its pixels, RGB, of 4:2:0 frames; boxes are even, so chroma's are whole pixels."""
    luma_node, chroma = (
        _pictures(spec, fn.external_source(name=name, device=device, dtype=types.UINT8, layout="FHWC"))
        for name in ("luma", "chroma")
    )
    to_rgb = fn.external_source(name="to_rgb", dtype=types.FLOAT, ndim=2)

    def crop(order: Node, box: Node, flip: Node) -> Node:
        yuv = [
            box_and_flip(fn.sequence_rearrange(plane, new_order=order), part, flip, spec.size)
            for plane, part in ((luma_node, box), (chroma, box * 0.5))
        ]
        return fn.coord_transform(fn.cat(*yuv, axis=3), MT=to_rgb, dtype=types.UINT8)

    return crop


def _pictures(spec: ViewSpec, video: Node) -> Node:
    """A video's frames; of flow, a frame of u above v becomes two, at places 2n and 2n + 1."""
    if spec.modality != "flow":
        return video
    return fn.reshape(video, rel_shape=[2.0, 0.5, 1.0, 1.0], layout="FHWC")


def _fill_dropped(spec: ViewSpec, frames: Node, clips: int, device: str) -> Node:
    dropped = fn.external_source(name="dropped", dtype=types.FLOAT, ndim=2)
    order = fn.external_source(name="noise_order", dtype=types.INT32, ndim=1)
    # fed with one array, which stays on the device, for all samples
    bank = fn.external_source(name="noise_bank", device=device, dtype=types.INT8, layout="FHWC", no_copy=True)
    if device == "gpu":
        dropped = dropped.gpu()
    parts = {"frame": spec.views * spec.frames, "view": spec.views, "clip": clips}[spec.colour_scope]
    noise = fn.sequence_rearrange(bank, new_order=order)
    return fill_dropped(frames, dropped, noise, parts)


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
