"""The plan: which frames of which video, cut, mirrored, turned and coloured how.

Everything random about a batch is drawn here, before a byte of video is read, as a pure function of
(seed, epoch, row): the same on any number of processes, in any order, at any prefetch depth.
Letters: B samples, V views, T frames a view, G groups of views that share one draw.
"""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    """Random colour: factors from [1 − x, 1 + x]; hue from [−x, x] of the circle; both with a probability.

    grey: the probability of a grey picture, made from luma, or, as DPC's released code has it, from one of
    the three channels at random.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    probability: float = 0.8
    grey: float = 0.2
    grey_from: Literal["luma", "channel"] = "luma"

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("brightness", "contrast", "saturation", "hue"):
            _check(0 <= getattr(self, name) < np.inf, f"{name} {getattr(self, name)} must be at least 0")
        for name in ("probability", "grey"):
            _check(0 <= getattr(self, name) <= 1, f"{name} {getattr(self, name)} must be within [0, 1]")


@dataclass(frozen=True)
class ViewPlan:
    """How one method looks at a video.

    offsets: V×T frame numbers counted from the clip's first frame, whose place in the video is drawn.
    size: side of a view in pixels, even. area, ratio: a random-resized box takes this share of the frame's
    area, with this width:height ratio. flip: probability. rotation: degrees, one angle from [−rotation, rotation].
    lab_drop: the model is fed standardised Lab with one channel set to 0, instead of RGB.
    groups: for each view the group whose draws it shares where the scope is "view"; by default its own.
    short: a video shorter than the clip repeats its last frame ("edge"), starts over ("loop"), or is refused
    ("reject").
    modality: RGB; "difference", greyscale frame t+1 − frame t of consecutive frames, in deviations of a grey
    level (span is one more); or "flow", (u, v, 0) in −1…1 from the row's component flow.mp4.
    crop: side of a square box as a share of the stored frame's shorter side; replaces area and ratio.
    centre: boxes are in the middle, squares of `crop` or of the whole shorter side.
    channel_drop: two of three channels become Gaussian noise of 1/100 of the kept channel's deviation, per
    colour_scope (TCP; Doersch et al. 2015).
    paces: every view draws its own pace, a label 0 … len − 1, and its own start; frame numbers are then
    offsets times the pace, rounded down (Pace, section 3.1). wrap: clips start anywhere and run over the
    video's end to its beginning (Pace's released code).
    levels: what the model is fed of RGB: normalised as for ImageNet; BGR 0–255; or standardised Lab.
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
    modality: Literal["rgb", "difference", "flow"] = "rgb"
    crop: float | None = None
    centre: bool = False
    channel_drop: bool = False
    paces: tuple[float, ...] = ()
    wrap: bool = False
    levels: Literal["imagenet", "bgr-255", "lab"] = "imagenet"

    def __post_init__(self) -> None:
        _check_choices(self)
        lengths = {len(view) for view in self.offsets}
        sound = len(lengths) == 1 and min(lengths) >= 1 and min(min(view) for view in self.offsets) >= 0
        _check(sound, f"offsets must be V equally long rows of numbers ≥ 0, not {self.offsets}")
        _check(
            not self.groups or len(self.groups) == self.views,
            f"groups names {len(self.groups)} views, offsets {self.views}",
        )
        _check(self.size >= 2 and self.size % 2 == 0, f"size {self.size} must be an even number of pixels")
        (small, large), (narrow, wide) = self.area, self.ratio
        _check(0 < small <= large <= 1, f"area {self.area} must rise within (0, 1]")
        _check(0 < narrow <= wide < np.inf, f"ratio {self.ratio} must rise above 0")
        _check(0 <= self.flip <= 1, f"flip {self.flip} must be a probability, within [0, 1]")
        _check(0 <= self.rotation <= 180, f"rotation {self.rotation} must be degrees within [0, 180]")
        _check(self.crop is None or 0 < self.crop <= 1, f"crop {self.crop} must be within (0, 1]")
        _check(all(0 < pace < np.inf for pace in self.paces), f"paces {self.paces} must be above 0")
        self._check_combinations()

    def _check_combinations(self) -> None:
        colours = self.jitter is not None or self.channel_drop
        _check(
            not (self.lab and colours), "Lab replaces jitter, grey and channel drop: choose one of the two"
        )
        _check(
            not self.lab_drop or self.levels != "bgr-255", "lab_drop feeds Lab, and levels asks for BGR 0–255"
        )
        if self.modality != "rgb":
            _check(
                not (self.lab or self.channel_drop or self.levels != "imagenet"),
                f"Lab, channel drop and BGR are of RGB, not of {self.modality}",
            )
        if self.modality == "difference":
            _check(self.jitter is None and not self.paces, "a difference takes neither jitter nor paces")
            steps = {later - earlier for view in self.offsets for earlier, later in pairwise(view)}
            _check(steps <= {1}, "a difference is that of consecutive frames: offsets must rise by 1")
        if self.modality == "flow":
            _check(self.rotation == 0, "rotation would have to turn the flow's vectors too: set it to 0")
        if self.channel_drop:
            _check(self.levels == "imagenet", "channel drop puts noise about 0: it needs normalised levels")

    @property
    def views(self) -> int:
        return len(self.offsets)

    @property
    def frames(self) -> int:
        """T, frames a view."""
        return len(self.offsets[0])

    @property
    def channels(self) -> int:
        """C of a view: RGB 3, difference 1, flow 3 (u, v, 0)."""
        return 1 if self.modality == "difference" else 3

    @property
    def lab(self) -> bool:
        """Whether the model is fed Lab."""
        return self.lab_drop or self.levels == "lab"

    @property
    def span(self) -> int:
        """Frames from the clip's first to its last, both counted; at the fastest pace where it is drawn."""
        last = max(max(view) for view in self.offsets)
        if self.paces:
            last = int(paced(last, max(self.paces)))
        return last + 1 + (self.modality == "difference")

    def scope(self, name: str) -> NDArray[np.int64]:
        """(V, T) number of the draw that each frame uses under the scope "frame", "view" or "clip"."""
        shape = (self.views, self.frames)
        if name == "frame":
            return np.arange(self.views * self.frames).reshape(shape)
        groups = self.groups or range(self.views) if name == "view" else [0] * self.views
        return np.broadcast_to(np.unique(list(groups), return_inverse=True)[1][:, None], shape)


def plain(plan: ViewPlan) -> ViewPlan:
    """The same frames as training shows, without its augmentation: for validation."""
    return replace(
        plan,
        centre=True,
        flip=0.0,
        rotation=0.0,
        jitter=None,
        lab_drop=False,
        channel_drop=False,
        levels="lab" if plan.lab else plan.levels,
    )


def paced(offsets: ArrayLike, pace: ArrayLike) -> NDArray[np.int64]:
    """Offsets at a pace: offset · pace, rounded down; a slow pace repeats the preceding frame."""
    # 1e-6: a third of 3 is 1, whatever the rounding of 1/3
    return np.floor(np.multiply(offsets, pace) + 1e-6).astype(np.int64)


def _check(sound: bool, complaint: str) -> None:
    if not sound:
        raise ValueError(complaint)


def _check_choices(config: Any) -> None:
    """Every field that is a Literal holds one of its values."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            value, choices = getattr(config, name), get_args(kind)
            _check(value in choices, f"{name} {value!r}: choose one of {', '.join(choices)}")


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
