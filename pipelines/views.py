"""The spec: how a method looks at a video, in words that pipelines.sampling turns into numbers.

Letters: V views, T frames a view, C channels.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines import colour


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
class ViewSpec:
    """How one method looks at a video.

    offsets: V×T frame numbers counted from the clip's first frame, whose place in the video is random.
    size: side of a view in pixels, even. area, ratio: a random-resized box takes this share of the frame's
    area, with this width:height ratio. flip: probability. rotation: degrees, one angle from [−rotation, rotation].
    lab_drop: the model is fed standardised Lab with one channel set to 0, instead of RGB.
    groups: for each view the group whose random numbers it shares where the scope is "view"; by default its own.
    flip_scope: "box" draws a flip with each box; "clip" mirrors all views of a clip or none.
    padding: a video shorter than the clip repeats its last frame ("repeat_last"), starts anywhere and loops ("wrap"), or
    is refused ("error").
    loop: a clip that runs over its video's end continues at the frame that its pace leads to ("phase"), or at the first
    frame ("restart", Pace's released code).
    modality: RGB; "difference", greyscale frame t+1 − frame t of consecutive frames, in deviations of a grey
    level (span is one more); or "flow", (u, v, 0) in −1…1 from the row's component flow.mp4.
    crop: side of a square box as a share of the stored frame's shorter side; replaces area and ratio. eval_crop: the
    same of eval_view, where it differs.
    squeeze: frames are scaled to this width:height ratio, whatever it was, before the square box is taken (Pace's
    released code).
    centre: boxes are in the middle, squares of `crop` or of the whole shorter side.
    channel_drop: two of three channels become Gaussian noise of 1/100 of the kept channel's deviation, per
    colour_scope (TCP; Doersch et al. 2015).
    start_scope: "clip" places all views together, so that offsets are distances in one clip; "view" places each view
    on its own, anywhere in the video where it fits. Views of one group of `groups` keep their distances.
    paces: every view has its own pace, a label 0 … len − 1, and its own start, start_scope is not used; frame
    numbers are then offsets times the pace, rounded down (Pace, section 3.1). circular: clips start anywhere and run
    over the video's end to its beginning (Pace's released code).
    levels: what the model is fed of RGB: normalised as for ImageNet; BGR 0–255; or standardised Lab. Of flow:
    "bgr-imagenet" is (128, v, u) normalised as for ImageNet (MemDPC's released code).
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
    flip_scope: Literal["box", "clip"] = "box"
    colour_scope: Literal["frame", "view", "clip"] = "clip"
    start_scope: Literal["view", "clip"] = "clip"
    groups: tuple[int, ...] = ()
    padding: Literal["repeat_last", "wrap", "error"] = "repeat_last"
    modality: Literal["rgb", "difference", "flow"] = "rgb"
    loop: Literal["phase", "restart"] = "phase"
    crop: float | None = None
    eval_crop: float | None = None
    squeeze: float | None = None
    centre: bool = False
    channel_drop: bool = False
    paces: tuple[float, ...] = ()
    circular: bool = False
    levels: Literal["imagenet", "bgr-255", "bgr-imagenet", "lab"] = "imagenet"

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
        for name in ("crop", "eval_crop"):
            share = getattr(self, name)
            _check(share is None or 0 < share <= 1, f"{name} {share} must be within (0, 1]")
        _check(
            self.squeeze is None or 1 <= self.squeeze < np.inf, f"squeeze {self.squeeze} must be at least 1"
        )
        _check(self.squeeze is None or bool(self.crop), "squeeze is of a square box: set crop")
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
            levels = ("imagenet", "bgr-imagenet") if self.modality == "flow" else ("imagenet",)
            sound = self.levels in levels and not self.lab_drop and not self.channel_drop
            _check(sound, f"Lab, channel drop and BGR are of RGB, not of {self.modality}")
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
    def component(self) -> str:
        """Which of a row's files is decoded."""
        return "flow.mp4" if self.modality == "flow" else "mp4"

    @property
    def planes(self) -> int:
        """Channels of the pixels that a view is made of: RGB 3, luma of a difference 1, flow 2 (u, v)."""
        return {"rgb": 3, "difference": 1, "flow": 2}[self.modality]

    @property
    def decoded(self) -> int:
        """Frames that a view is made of: T, or T + 1 for a difference."""
        return self.frames + (self.modality == "difference")

    @property
    def decoded_offsets(self) -> NDArray[np.int64]:
        """(V, decoded) offsets of the frames that the views are made of."""
        offsets = np.asarray(self.offsets)
        return np.concatenate([offsets, offsets[:, -1:] + 1], 1) if self.decoded > self.frames else offsets

    @property
    def lab(self) -> bool:
        """Whether the model is fed Lab."""
        return self.lab_drop or self.levels == "lab"

    @property
    def starts_differ(self) -> bool:
        """Whether views start independently of each other: no single frame is the clip's first."""
        return bool(self.paces) or self.start_scope == "view"

    @property
    def span(self) -> int:
        """Frames from the clip's first to its last, both included. Where views start independently, or have paces: of
        the longest view, at its fastest pace."""
        last = self.decoded_offsets.max()
        return 1 + int(paced(last, max(self.paces)) if self.paces else last)

    def scope(self, name: str) -> NDArray[np.int64]:
        """(V, T) number of the draw that each frame uses under the scope "frame", "view" or "clip"."""
        shape = (self.views, self.frames)
        if name == "frame":
            return np.arange(self.views * self.frames).reshape(shape)
        groups = self.groups or range(self.views) if name == "view" else [0] * self.views
        return np.broadcast_to(np.unique(list(groups), return_inverse=True)[1][:, None], shape)


def eval_view(spec: ViewSpec) -> ViewSpec:
    """The same frames as training shows, without its augmentation: for validation."""
    return replace(
        spec,
        centre=True,
        crop=spec.eval_crop or spec.crop,
        flip=0.0,
        rotation=0.0,
        jitter=None,
        lab_drop=False,
        channel_drop=False,
        levels="lab" if spec.lab else spec.levels,
    )


def single_start(spec: ViewSpec) -> ViewSpec:
    """The spec of a clip whose first frame the caller chooses: no paces, no wrapping. Of views that start independently
    it has the first alone, since they share no first frame."""
    placed = replace(spec, paces=(), circular=False, start_scope="clip")
    return replace(placed, offsets=spec.offsets[:1], groups=()) if spec.starts_differ else placed


def paced(offsets: ArrayLike, pace: ArrayLike) -> NDArray[np.int64]:
    """Offsets at a pace: offset · pace, rounded down; a slow pace repeats the preceding frame."""
    # 1e-6: a third of 3 is 1, also where 1/3 was rounded
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


def normalisation(spec: ViewSpec) -> str:
    """The values that a network is fed, in words."""
    if spec.modality == "difference":
        return f"luma of frame t+1 minus luma of frame t, 0–1, divided by {colour.GREY_STD:.4g}"
    imagenet = f"minus {_triple(colour.IMAGENET_MEAN)}, divided by {_triple(colour.IMAGENET_STD)}"
    if spec.levels == "bgr-imagenet":  # of flow
        return f"optical flow as a picture (128, v, u) of 8 bits, divided by 255, {imagenet}"
    if spec.modality == "flow":
        return "optical flow (u, v, 0) in −1…1"
    if spec.lab:
        return f"CIE Lab, minus {_triple(colour.LAB_MEAN)}, divided by {_triple(colour.LAB_STD)}"
    if spec.levels == "bgr-255":
        return "BGR, 0–255"
    return f"RGB, 0–1, {imagenet}"


def clip_layout(spec: ViewSpec) -> str:
    """The tensor that a network is fed, in words."""
    offsets = "; ".join(" ".join(map(str, view)) for view in spec.offsets)
    shape = f"V {spec.views}, C {spec.channels}, T {spec.frames}, H {spec.size}, W {spec.size}"
    return f"views (B, V, C, T, H, W) float32, {shape}; frames of each view, counted from the clip's first: {offsets}"


def _triple(values: object) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"  # type: ignore[attr-defined]
