"""Frames → the views' pixels: cut, scaled and mirrored by FFmpeg's filter graphs.

All frames that are looked at through one box go through one filter graph in one call, which scales them in YUV; only
the views' own pixels become RGB. Channels lie in planes: swscale has vector code for planar RGB, and scalar code for
packed. FFmpeg works without the GIL, but each call and each copy takes it again: with those of every frame, threads
waited for each other (docs/fast-path.md).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

from pipelines.damage import DecodeError
from pipelines.sampling import ViewParams

# Without these two, swscale rounds down and shares chroma between neighbours: RGB is 1.4 levels too dark on
# average. With them the views equal a float computation within rounding (tests/pipelines/test_decode.py).
SCALE_FLAGS = "bilinear+accurate_rnd+full_chroma_int"

# What a look of a modality is in FFmpeg's words: pixel format, the channel of each of its planes, and how many
# pictures lie below each other.
_LOOKS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "rgb": ("gbrp", (1, 2, 0), 1),
    "difference": ("gray", (0,), 1),
    "flow": ("gray", (0,), 2),
}

FramesOf = Callable[[list[int]], Iterable[tuple[int, av.VideoFrame]]]
"""A source of frames: ascending frame numbers → (number, frame) of each."""


class Picture(Protocol):
    """What a filter graph must know of the frames that it is given: a video stream, or frames kept in memory."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def format(self) -> av.VideoFormat: ...
    @property
    def time_base(self) -> Fraction | None: ...


def cut_views(
    picture: Picture,
    frames_of: FramesOf,
    params: ViewParams,
    size: int,
    modality: str = "rgb",
) -> NDArray[np.uint8]:
    """As decode.decode_views, from any source of frames."""
    format_, channels, stacked = _LOOKS[modality]
    _check_size(picture, params.boxes, stacked)
    out = np.empty((params.frames.size, stacked * len(channels), size, size), np.uint8)
    cutters: dict[tuple, _Cutter] = {}
    for shot, frames in _shots_as_decoded(frames_of, _shots(params)):
        shape = (*shot.shape, len(frames))
        if shape not in cutters:
            cutters[shape] = _Cutter(picture, *shape, size, format_)
        rows, places = _as_slice(shot.rows), _as_slice(np.searchsorted(shot.numbers, shot.params))
        for part in range(stacked):
            column = cutters[shape].cut(frames, shot.left, shot.top + part * picture.height // stacked)
            for channel, plane in zip(channels, column.planes, strict=True):
                lines = np.asarray(memoryview(plane)).reshape(-1, size, plane.line_size)  # type: ignore[arg-type]
                out[rows, part + channel] = lines[places, :, :size]
    return out.transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class _Shot:
    """The views that look through one box, mirrored or not.

    shape: the box's width and height, and whether it is mirrored. rows: of the frames params, in the sample's V·T.
    params: their numbers. numbers: each of these once, ascending.
    """

    left: int
    top: int
    shape: tuple[int, int, bool]
    rows: NDArray[np.int64]
    params: NDArray[np.int32]
    numbers: NDArray[np.int32]


def _shots(params: ViewParams) -> list[_Shot]:
    views_of: dict[tuple, list[int]] = defaultdict(list)
    for view, (box, flip) in enumerate(zip(params.boxes.tolist(), params.flips.tolist(), strict=True)):
        views_of[(*box, flip)].append(view)
    row_numbers = np.arange(params.frames.size).reshape(params.frames.shape)
    shots = []
    for (left, top, *shape), views in views_of.items():
        drawn = params.frames[views].ravel()
        rows = row_numbers[views].ravel()
        shots.append(_Shot(left, top, (*shape,), rows, drawn, np.unique(drawn)))
    return shots


def _shots_as_decoded(frames_of: FramesOf, shots: list[_Shot]) -> Iterator[tuple[_Shot, list[av.VideoFrame]]]:
    """Yield each shot with the frames of its numbers, once the last one is there: DPC's 40 of 340×256 are 5 MB."""
    waiting, held = list(shots), dict[int, av.VideoFrame]()
    for number, frame in frames_of(np.unique(np.concatenate([shot.numbers for shot in shots])).tolist()):
        held[number] = frame
        ready = [shot for shot in waiting if shot.numbers[-1] == number]
        if ready:
            yield from ((shot, [held[n] for n in shot.numbers.tolist()]) for shot in ready)
            waiting = [shot for shot in waiting if shot.numbers[-1] > number]
            first = min((shot.numbers[0] for shot in waiting), default=number)
            held = {n: kept for n, kept in held.items() if n >= first}


def _as_slice(index: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """As a slice, which needs no copy, where the index is a run of neighbours."""
    first, count = int(index[0]), len(index)
    return slice(first, first + count) if (index == np.arange(first, first + count)).all() else index


def _check_size(picture: Picture, boxes_V4: NDArray[np.int32], stacked: int) -> None:
    # FFmpeg's crop would move a box that does not fit, and fail only for one that is too large
    width, height = picture.width, picture.height // stacked
    right, bottom = (boxes_V4[:, :2] + boxes_V4[:, 2:]).max(0).tolist()
    if right > width or bottom > height:
        raise DecodeError(
            f"the video is {width}×{height} and the box ends at {right}×{bottom}: the table has another size"
        )


class _Cutter:
    """A filter graph that cuts boxes of one size from `count` frames, scales them, mirrors them or not, and stacks them."""

    def __init__(
        self, picture: Picture, width: int, height: int, flip: bool, count: int, size: int, format_: str
    ) -> None:
        self._graph = av.filter.Graph()
        self._graph.threads = 1  # by default each graph has one for every core
        node = self._graph.add_buffer(
            None, picture.width, picture.height, picture.format, None, picture.time_base
        )
        self._at = {"x": 0, "y": 0}
        filters = [
            ("crop", f"{width}:{height}:0:0"),
            ("scale", f"{size}:{size}:flags={SCALE_FLAGS}"),
            ("format", format_),
            *([("hflip", "")] if flip else []),
            ("tile", f"1x{count}"),
            ("buffersink", ""),
        ]
        nodes = [self._graph.add(name, arguments or None) for name, arguments in filters]
        self._crop = nodes[0]
        self._graph.link_nodes(node, *nodes).configure()

    def cut(self, frames: list[av.VideoFrame], left: int, top: int) -> av.VideoFrame:
        """One picture, size × (count·size): the frames' cuts, the first on top."""
        for side, at in (("x", left), ("y", top)):  # moving a box costs a hundredth of another graph
            if at != self._at[side]:
                self._crop.process_command(side, str(at))
                self._at[side] = at
        for frame in frames:
            self._graph.vpush(frame)
        return self._graph.vpull()
