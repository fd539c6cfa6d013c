"""The plan: which frames of which video, cut, mirrored, turned and coloured how.

Everything random about a batch is drawn here, before a byte of video is read, as a pure function of
(seed, epoch, row): the same on any number of processes, in any order, at any prefetch depth.
Letters: B samples, V views, T frames a view, G groups of views that share one draw.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import colour
from shards import InputError

SAMPLE, ORDER, REPLACEMENT = range(3)  # independent streams of random numbers under one seed
_TRIES = 10  # of a random-resized box before the fallback, as in torchvision


def generator(stream: int, seed: int, epoch: int, number: int = 0) -> np.random.Generator:
    """A counter-based generator that depends on nothing but its arguments (number < 2⁴⁰, epoch < 2²⁴)."""
    return np.random.Generator(
        np.random.Philox(key=[seed, (epoch << 40) | number], counter=[0, 0, 0, stream])
    )


@dataclass(frozen=True)
class Jitter:
    """Random colour: factors from [1 − x, 1 + x]; hue from [−x, x] of the circle; both with a probability."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    probability: float = 0.8
    grey: float = 0.2


@dataclass(frozen=True)
class ViewPlan:
    """How one method looks at a video.

    offsets: V×T frame numbers counted from the clip's first frame, whose place in the video is drawn.
    size: side of a view in pixels. area, ratio: a random-resized box takes this share of the frame's area,
    with this width:height ratio. flip: probability. rotation: degrees, one angle from [−rotation, rotation].
    groups: for each view the group whose draws it shares where the scope is "view"; by default its own.
    short: a video shorter than the clip repeats its last frame ("edge"), starts over ("loop"), or is refused
    ("reject"). lab_drop: the model is fed standardised Lab with one channel set to 0, instead of RGB.
    """

    offsets: tuple[tuple[int, ...], ...]
    size: int
    area: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (0.7, 1.4)
    flip: float = 0.5
    rotation: float = 0.0
    jitter: Jitter | None = None
    lab_drop: bool = False
    box_scope: Literal["view", "clip"] = "clip"
    colour_scope: Literal["frame", "view", "clip"] = "clip"
    groups: tuple[int, ...] = ()
    short: Literal["edge", "loop", "reject"] = "edge"

    def __post_init__(self) -> None:
        lengths = {len(view) for view in self.offsets}
        if len(lengths) != 1 or min(lengths) < 1 or min(min(view) for view in self.offsets) < 0:
            raise ValueError(f"offsets must be V equally long rows of numbers ≥ 0, not {self.offsets}")
        if self.groups and len(self.groups) != self.views:
            raise ValueError(f"groups names {len(self.groups)} views, offsets {self.views}")
        if not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"area {self.area} must rise within (0, 1], ratio {self.ratio} must rise above 0"
            )
        if self.lab_drop and self.jitter:
            raise ValueError("Lab channel drop replaces jitter and grey: choose one of the two")

    @property
    def views(self) -> int:
        return len(self.offsets)

    @property
    def frames(self) -> int:
        """T, frames a view."""
        return len(self.offsets[0])

    @property
    def span(self) -> int:
        """Frames from the clip's first to its last, both counted."""
        return max(max(view) for view in self.offsets) + 1

    def scope(self, name: str) -> NDArray[np.int64]:
        """(V, T) number of the draw that each frame uses under the scope "frame", "view" or "clip"."""
        shape = (self.views, self.frames)
        if name == "frame":
            return np.arange(self.views * self.frames).reshape(shape)
        groups = self.groups or range(self.views) if name == "view" else [0] * self.views
        return np.broadcast_to(np.unique(list(groups), return_inverse=True)[1][:, None], shape)


@dataclass(frozen=True)
class Draw:
    """What was drawn for B samples.

    frames (B, V, T) int32, frame numbers in the video. boxes (B, V, 4) int32: left, top, width, height in
    pixels of the stored frame, all even, so that both placements cut the same pixels of a yuv420p video.
    flips (B, V) bool: mirrored left to right. angles (B, V) float32, degrees counter-clockwise.
    colours (B, V, T, 3, 4) float32: the affine map to what the model is fed, from RGB 0–255,
    or from (f(X), f(Y), f(Z)) where the plan is for Lab.
    """

    frames: NDArray[np.int32]
    boxes: NDArray[np.int32]
    flips: NDArray[np.bool_]
    angles: NDArray[np.float32]
    colours: NDArray[np.float32]

    def sample(self, index: int) -> "Draw":
        """The draw of one sample, without the batch axis."""
        return Draw(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def draw(
    plan: ViewPlan,
    rows: NDArray[np.int64],
    num_frames: NDArray[np.int64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
) -> Draw:
    """Draw for B samples; rows, num_frames, widths, heights are (B,), sizes in pixels of the stored frame.

    Raises InputError for a video shorter than the plan under the policy "reject".
    """
    box_of, colour_of = plan.scope(plan.box_scope)[:, 0], plan.scope(plan.colour_scope)
    boxes_drawn, colours_drawn = int(box_of.max()) + 1, int(colour_of.max()) + 1
    counts = (1, boxes_drawn * _TRIES * 4, boxes_drawn * 2, colours_drawn * 7)
    uniform = np.stack([generator(SAMPLE, seed, epoch, int(row)).random(sum(counts)) for row in rows])
    start_u, box_u, turn_u, colour_u = np.split(uniform, np.cumsum(counts)[:-1], axis=1)
    turn_u = turn_u.reshape(len(rows), boxes_drawn, 2)
    boxes = _boxes(plan, box_u.reshape(len(rows), boxes_drawn, _TRIES, 4), widths, heights)
    colours = _colours(plan, colour_u.reshape(len(rows), colours_drawn, 7))
    return Draw(
        frames=_frames(plan, start_u[:, 0], num_frames),
        boxes=np.ascontiguousarray(boxes[:, box_of]),
        flips=np.ascontiguousarray((turn_u[..., 0] < plan.flip)[:, box_of]),
        angles=(plan.rotation * (2 * turn_u[..., 1] - 1))[:, box_of].astype(np.float32, order="C"),
        colours=colours[:, colour_of].astype(np.float32, order="C"),
    )


def _frames(plan: ViewPlan, uniform_B: NDArray, num_frames_B: NDArray) -> NDArray[np.int32]:
    """Frame numbers (B, V, T). A clip that fits starts anywhere it fits; a longer one starts at frame 0."""
    if plan.short == "reject" and (num_frames_B < plan.span).any():
        raise InputError(
            f"a video of {num_frames_B.min()} frames is shorter than the {plan.span} that the plan spans: "
            f"select videos with min_frames={plan.span}, or use the policy edge or loop (--short)"
        )
    starts = np.floor(uniform_B * np.maximum(num_frames_B - plan.span + 1, 1)).astype(np.int64)
    numbers = starts[:, None, None] + np.asarray(plan.offsets)
    length = num_frames_B[:, None, None]
    numbers = numbers % length if plan.short == "loop" else np.minimum(numbers, length - 1)
    return numbers.astype(np.int32)


def _boxes(plan: ViewPlan, uniform_BGK4: NDArray, widths_B: NDArray, heights_B: NDArray) -> NDArray[np.int32]:
    """Random-resized boxes (B, G, 4): the first of K tries that fits, else the largest centred one allowed."""
    W, H = (np.asarray(side, dtype=np.float64)[:, None, None] for side in (widths_B, heights_B))
    area = W * H * (plan.area[0] + (plan.area[1] - plan.area[0]) * uniform_BGK4[..., 0])
    low, high = np.log(plan.ratio)
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
    width = np.where(none_fits, np.minimum(W, H * plan.ratio[1]), width)
    height = np.where(none_fits, np.minimum(H, W / plan.ratio[0]), height)
    u_left, u_top = np.where(none_fits, 0.5, u_left), np.where(none_fits, 0.5, u_top)
    width, height = (np.maximum(2 * np.floor(side / 2), 2) for side in (width, height))
    left, top = (
        2 * np.floor(u * (np.floor((full - side) / 2) + 1))
        for u, full, side in ((u_left, W, width), (u_top, H, height))
    )
    return np.stack([left, top, width, height], axis=-1).astype(np.int32)


def _colours(plan: ViewPlan, uniform_BN7: NDArray) -> NDArray[np.float64]:
    """Colour maps (B, N, 3, 4): jitter, then grey, then normalisation; or Lab with a channel dropped."""
    if plan.lab_drop:
        return colour.standardised_lab(np.floor(uniform_BN7[..., 6] * 3))[..., :3, :]
    chain = np.broadcast_to(colour.normalise(), (*uniform_BN7.shape[:2], 4, 4))
    if plan.jitter is None:
        return chain[..., :3, :]
    jitter, signed = plan.jitter, 2 * uniform_BN7 - 1
    applied = uniform_BN7[..., 0] < jitter.probability

    def factor(column: int, strength: float) -> NDArray[np.float64]:
        return np.where(applied, np.maximum(1 + strength * signed[..., column], 0), 1.0)

    grey = colour.saturation(np.where(uniform_BN7[..., 5] < jitter.grey, 0.0, 1.0))
    turned = colour.hue(np.where(applied, jitter.hue * signed[..., 4], 0.0))
    jittered = (
        turned
        @ colour.saturation(factor(3, jitter.saturation))
        @ colour.contrast(factor(2, jitter.contrast))
        @ colour.brightness(factor(1, jitter.brightness))
    )
    return (chain @ grey @ jittered)[..., :3, :]
