"""Sampling: (seed, epoch, row) → frame numbers, crop boxes and colour maps of a row's views.

Everything random about a batch is drawn here, before a byte of video is read. The result is a pure function of
(seed, epoch, row): it is the same on any number of processes, in any order, at any prefetch depth.
Letters: B samples, V views, T frames a view, G groups of views that share a box, N colour maps, K tries of a box.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import colour
from pipelines.views import ViewSpec, paced
from shards import InputError

NOISE_FRAMES = 32  # frames of noise that channel drop chooses from
SAMPLE, ORDER, REPLACEMENT, NOISE = range(4)  # independent random streams under one seed
_BOX_TRIES = 10  # of a random-resized box before the fallback, as in torchvision


def generator(stream: int, seed: int, epoch: int, number: int = 0) -> np.random.Generator:
    """A counter-based generator that depends on nothing but its arguments (number < 2⁴⁰, epoch < 2²⁴)."""
    return np.random.Generator(
        np.random.Philox(key=[seed, (epoch << 40) | number], counter=[0, 0, 0, stream])
    )


@dataclass(frozen=True)
class ViewParams:
    """What was drawn for the views of B samples.

    frames (B, V, T) int32, frame numbers in the video; T + 1 of them for a difference. boxes (B, V, 4) int32:
    left, top, width, height in pixels of the stored frame, all even, so that both placements cut the same
    pixels of a yuv420p video. flips (B, V) bool: mirrored left to right. angles (B, V) float32, degrees
    counter-clockwise. colours (B, V, T, C, P + 1) float32: the affine map from the P planes decoded (0–255; for
    Lab (f(X), f(Y), f(Z))) to the C channels that the model is fed. noise (B, V, T) int32, with channel drop:
    which frame of noise. pace (B, V) int64, with paces: the label, an index into spec.paces.
    """

    frames: NDArray[np.int32]
    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    angles: NDArray[np.float32]
    colours: NDArray[np.float32]
    noise: NDArray[np.int32] | None = None
    pace: NDArray[np.int64] | None = None

    def sample(self, index: int) -> "ViewParams":
        """The parameters of one sample, without the batch axis."""
        return self._map(lambda values: values[index])

    def joined(self, places: NDArray[np.int64] | slice = slice(None)) -> "ViewParams":
        """Some of the samples, clips of one video, as one sample of all their views: (B, V, …) → (B·V, …)."""
        return self._map(lambda values: values[places].reshape(-1, *values.shape[2:]))

    def clips(self, count: int) -> "list[ViewParams]":
        """The reverse of `joined`: the parameters of each of the `count` clips that a sample has."""
        return [self._map(lambda values: np.split(values, count)[clip]) for clip in range(count)]  # noqa: B023

    @staticmethod
    def concatenated(parts: "list[ViewParams]", axis: int = 0) -> "ViewParams":
        """Several of them side by side along an axis, such as the clips (V, …) of one sample."""
        there = [name for name, values in vars(parts[0]).items() if values is not None]
        joined = {name: np.concatenate([vars(part)[name] for part in parts], axis) for name in there}
        return replace(parts[0], **joined)

    def _map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> "ViewParams":
        there = {name: values for name, values in vars(self).items() if values is not None}
        return replace(self, **{name: change(values) for name, values in there.items()})


def sample_params(
    spec: ViewSpec,
    rows: NDArray[np.int64],
    num_frames: NDArray[np.int64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
    clips: int = 1,
) -> ViewParams:
    """Sample the parameters of B videos; rows, num_frames, widths, heights are (B,), sizes in pixels of the stored frame.

    clips: of each video, as one sample of clips·V views: clip 0's views, clip 1's, …. An epoch is that many passes at
    once: clip c is what epoch `epoch · clips + c` of a single clip gives.
    Raises InputError for a video shorter than the spec under the policy "error".
    """
    if clips > 1:
        facts = num_frames, widths, heights
        passes = (
            sample_params(spec, rows, *facts, seed=seed, epoch=epoch * clips + clip) for clip in range(clips)
        )
        return ViewParams.concatenated(list(passes), axis=1)
    B, V, T = len(rows), spec.views, spec.frames
    box_of, colour_of = spec.scope(spec.box_scope)[:, 0], spec.scope(spec.colour_scope)
    G, N, K = int(box_of.max()) + 1, int(colour_of.max()) + 1, box_tries(spec)
    start_of = np.arange(V) if spec.paces else spec.scope(spec.start_scope)[:, 0]
    starts, paces = int(start_of.max()) + 1, V if spec.paces else 0
    # in this order for ever: a spec that adds draws at the end leaves those before them as they were
    counts = (starts, G * K * 4, G * 2, N * 7, paces, V * T * spec.channel_drop)
    uniform = np.stack([generator(SAMPLE, seed, epoch, int(row)).random(sum(counts)) for row in rows])
    start_u, box_u, turn_u, colour_u, pace_u, noise_u = np.split(uniform, np.cumsum(counts)[:-1], axis=1)
    turn_u = turn_u.reshape(B, G, 2)
    pace = np.floor(pace_u * len(spec.paces)).astype(np.int64) if spec.paces else None
    boxes = sample_boxes(spec, box_u.reshape(B, G, K, 4), widths, heights)
    flip_of = box_of if spec.flip_scope == "box" else np.zeros_like(box_of)
    flips = (turn_u[..., 0] < spec.flip)[:, flip_of]
    colours = _colours(spec, colour_u.reshape(B, N, 7))[:, colour_of]
    return ViewParams(
        frames=_frames(spec, start_u[:, start_of], start_of, pace, num_frames),
        boxes=np.ascontiguousarray(boxes[:, box_of]),
        flips=np.ascontiguousarray(flips),
        angles=(spec.rotation * (2 * turn_u[..., 1] - 1))[:, box_of].astype(np.float32, order="C"),
        colours=_of_planes(spec, colours, flips).astype(np.float32, order="C"),
        noise=np.floor(noise_u.reshape(B, V, T) * NOISE_FRAMES).astype(np.int32)
        if spec.channel_drop
        else None,
        pace=pace,
    )


def _frames(
    spec: ViewSpec,
    uniform_BV: NDArray,
    start_of_V: NDArray[np.int64],
    pace_BV: NDArray[np.int64] | None,
    num_frames_B: NDArray,
) -> NDArray[np.int32]:
    """Frame numbers (B, V, T). What fits starts anywhere where it fits; what is longer than its video starts at frame 0,
    or anywhere if it loops.

    uniform: the random number of each view's start. start_of: views with the same number start together, and fit together.
    """
    if spec.padding == "error" and (num_frames_B < spec.span).any():
        raise InputError(
            f"a video of {num_frames_B.min()} frames is shorter than the {spec.span} that the spec spans: "
            f"select videos with min_frames={spec.span}, or use the policy repeat_last or wrap (--padding)"
        )
    offsets = spec.decoded_offsets[None]
    if pace_BV is not None:
        offsets = paced(offsets, np.asarray(spec.paces)[pace_BV][..., None])
    span = offsets.max(-1) + 1
    together_VV = start_of_V[:, None] == start_of_V
    span = np.where(together_VV, span[:, None], 0).max(-1)
    length = num_frames_B[:, None]
    loops = spec.circular or spec.padding == "wrap"
    anywhere = spec.circular | ((span > length) & loops)
    room = np.where(anywhere, length, np.maximum(length - span + 1, 1))
    starts = np.floor(uniform_BV * room).astype(np.int64)[..., None]
    length = length[..., None]
    if not loops:
        return np.minimum(starts + offsets, length - 1).astype(np.int32)
    if spec.loop == "restart":
        return _restarted(starts, np.broadcast_to(offsets, (*starts.shape[:2], spec.decoded)), length)
    return ((starts + offsets) % length).astype(np.int32)


def _restarted(
    starts_BV1: NDArray[np.int64], offsets_BVT: NDArray[np.int64], length_B11: NDArray
) -> NDArray[np.int32]:
    """Frame numbers of views that begin again at frame 0, with their first offset, after each lap of their video."""
    first_BV1 = (starts_BV1 + offsets_BVT < length_B11).sum(-1, keepdims=True)
    lap_BV1 = np.maximum((offsets_BVT < length_B11).sum(-1, keepdims=True), 1)
    place_BVT = np.arange(offsets_BVT.shape[-1]) - first_BV1
    later_BVT = np.take_along_axis(offsets_BVT, place_BVT % lap_BV1, -1)
    return np.where(place_BVT < 0, starts_BV1 + offsets_BVT, later_BVT).astype(np.int32)


def _colours(spec: ViewSpec, uniform_BN7: NDArray) -> NDArray[np.float64]:
    """Colour maps (B, N, 4, 4) of three channels: jitter, then grey, then what the model is fed."""
    third = np.floor(uniform_BN7[..., 6] * 3)
    if spec.lab:
        return colour.standardised_lab(third if spec.lab_drop else np.full_like(third, -1))
    if spec.levels == "bgr-imagenet":
        last = colour.normalise() @ colour.bgr()
    elif spec.modality == "flow":
        last = colour.normalise(np.full(3, 0.5), np.full(3, 0.5))
    else:
        last = colour.normalise() if spec.levels == "imagenet" else colour.bgr()
    chain = np.broadcast_to(last, (*uniform_BN7.shape[:2], 4, 4))
    if spec.channel_drop:
        chain = colour.keep(third) @ chain
    if spec.jitter is None:
        return chain
    jitter, signed = spec.jitter, 2 * uniform_BN7 - 1
    applied = uniform_BN7[..., 0] < jitter.probability

    def factor(column: int, strength: float) -> NDArray[np.float64]:
        return np.where(applied, np.maximum(1 + strength * signed[..., column], 0), 1.0)

    is_grey = uniform_BN7[..., 5] < jitter.grey
    if jitter.grey_from == "luma":
        grey = colour.saturation(np.where(is_grey, 0.0, 1.0))
    else:
        grey = colour.copy(np.where(is_grey, third, -1))
    turned = colour.hue(np.where(applied, jitter.hue * signed[..., 4], 0.0))
    jittered = (
        turned
        @ colour.saturation(factor(3, jitter.saturation))
        @ colour.contrast(factor(2, jitter.contrast))
        @ colour.brightness(factor(1, jitter.brightness))
    )
    return chain @ grey @ jittered


def _of_planes(
    spec: ViewSpec, maps_BVT44: NDArray[np.float64], flips_BV: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Maps (B, V, T, C, P + 1) from the planes that are decoded."""
    if spec.modality == "difference":
        return np.broadcast_to([1 / (255 * colour.GREY_STD), 0.0], (*maps_BVT44.shape[:3], 1, 2))
    if spec.modality == "rgb":
        return maps_BVT44[..., :3, :]
    # the third channel, zero, lies at the level of no motion; a mirrored u changes its sign first
    u, v, third, constant = np.moveaxis(maps_BVT44[..., :3, :], -1, 0)
    mirrored = flips_BV[:, :, None, None]
    constant = constant + colour.MID_GREY * third + np.where(mirrored, 2 * colour.MID_GREY, 0.0) * u
    return np.stack([np.where(mirrored, -u, u), v, constant], axis=-1)


def box_tries(spec: ViewSpec) -> int:
    """K, how many candidates a box is drawn from."""
    return 1 if spec.crop or spec.centre else _BOX_TRIES


def sample_boxes(
    spec: ViewSpec, uniform_BGK4: NDArray, widths_B: NDArray, heights_B: NDArray
) -> NDArray[np.int32]:
    """Boxes (B, G, 4): left, top, width, height in pixels, from K tries of four uniform numbers each."""
    W, H = (np.asarray(side, dtype=np.float64)[:, None, None] for side in (widths_B, heights_B))
    if spec.crop or spec.centre:
        # 1e-6: 7/10 of 240 is 168, also where .7 was rounded
        share = spec.crop or 1.0
        if spec.squeeze:
            width, height = (np.floor(x[..., 0] * share + 1e-6) for x in (W / spec.squeeze, H))
        else:
            width = height = np.floor(np.minimum(W, H)[..., 0] * share + 1e-6)
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
