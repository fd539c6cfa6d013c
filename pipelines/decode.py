"""Decoding on the CPU: a video's bytes and a draw → the views' pixels, cut, scaled and mirrored.

FFmpeg (through PyAV's wheel) decodes each needed stretch once; for every view a filter graph crops and scales
in YUV, and only the view's own pixels become RGB. Decoding releases the GIL: run it in a pool of threads.
Channels lie in planes: swscale has vector code for planar RGB, and scalar code for packed.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Protocol

import av
import av.filter
import av.logging
import numpy as np
from numpy.typing import NDArray

from pipelines.draw import Draw

av.logging.set_level(av.logging.FATAL)

# Without these two, swscale rounds down and shares chroma between neighbours: RGB is 1.4 levels too dark on
# average. With them the views equal a float computation within rounding (tests/pipelines/test_decode.py).
_SCALE_FLAGS = "bilinear+accurate_rnd+full_chroma_int"
_SEEK_COST = 2  # frames that could be decoded in the time of a seek


class DecodeError(Exception):
    """A video that cannot be decoded as its row of the table promises."""


@contextmanager
def damage_named() -> Iterator[None]:
    """What FFmpeg and PyAV raise for a damaged video, as DecodeError."""
    try:
        yield
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error


# What a look of a modality is in FFmpeg's words: pixel format, the channel of each of its planes, and how many
# pictures lie below each other.
_LOOKS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "rgb": ("gbrp", (1, 2, 0), 1),
    "difference": ("gray", (0,), 1),
    "flow": ("gray", (0,), 2),
}


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


def decode_views(video: bytes, draw: Draw, size: int, modality: str = "rgb") -> NDArray[np.uint8]:
    """The pixels of one sample's views.

    video: an encoded file (constant frame rate). draw: that of one sample (frames (V, T), boxes (V, 4),
    flips (V,)). size: side of a view in pixels. Returns (V·T, size, size, P), uint8, 0–255: RGB; luma (P = 1)
    for a difference; (u, v) for flow, whose video holds u above v. In memory it is (V·T, P, size, size).
    Raises DecodeError if the file is damaged, as far as FFmpeg can tell, or lacks a frame or a part of the frame
    that the draw asks for.
    """
    with damage_named(), _opened(video) as container:
        stream = container.streams.video[0]
        return cut_views(stream, partial(_decode_frames, container, stream), draw, size, modality)


def cut_views(
    picture: Picture,
    frames_of: Callable[[list[int]], Iterable[tuple[int, av.VideoFrame]]],
    draw: Draw,
    size: int,
    modality: str = "rgb",
) -> NDArray[np.uint8]:
    """As decode_views, from any source of frames; frames_of: ascending frame numbers → (number, frame) of each."""
    format_, channels, stacked = _LOOKS[modality]
    _check_size(picture, draw.boxes, stacked)
    out = np.empty((draw.frames.size, stacked * len(channels), size, size), np.uint8)
    cutters: dict[tuple, _Cutter] = {}
    for shot, frames in _shots_as_decoded(frames_of, _shots(draw)):
        shape = (*shot.shape, len(frames))
        if shape not in cutters:
            cutters[shape] = _Cutter(picture, *shape, size, format_)
        rows, places = _as_slice(shot.rows), _as_slice(np.searchsorted(shot.numbers, shot.drawn))
        for part in range(stacked):
            column = cutters[shape].cut(frames, shot.left, shot.top + part * picture.height // stacked)
            for channel, plane in zip(channels, column.planes, strict=True):
                lines = np.asarray(memoryview(plane)).reshape(-1, size, plane.line_size)  # type: ignore[arg-type]
                out[rows, part + channel] = lines[places, :, :size]
    return out.transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class _Shot:
    """The views that look through one box, mirrored or not.

    shape: the box's width and height, and whether it is mirrored. rows: of the frames drawn, in the sample's V·T.
    drawn: their numbers. numbers: each of these once, ascending.
    """

    left: int
    top: int
    shape: tuple[int, int, bool]
    rows: NDArray[np.int64]
    drawn: NDArray[np.int32]
    numbers: NDArray[np.int32]


def _shots(draw: Draw) -> list[_Shot]:
    views_of: dict[tuple, list[int]] = defaultdict(list)
    for view, (box, flip) in enumerate(zip(draw.boxes.tolist(), draw.flips.tolist(), strict=True)):
        views_of[(*box, flip)].append(view)
    row_numbers = np.arange(draw.frames.size).reshape(draw.frames.shape)
    shots = []
    for (left, top, *shape), views in views_of.items():
        drawn = draw.frames[views].ravel()
        rows = row_numbers[views].ravel()
        shots.append(_Shot(left, top, (*shape,), rows, drawn, np.unique(drawn)))
    return shots


def _shots_as_decoded(
    frames_of: Callable[[list[int]], Iterable[tuple[int, av.VideoFrame]]], shots: list[_Shot]
) -> Iterator[tuple[_Shot, list[av.VideoFrame]]]:
    """Yield each shot with the frames of its numbers, once the last one is there."""
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


def decode_frames(video: bytes, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame) for each of the ascending frame numbers; raises DecodeError as decode_views does."""
    with damage_named(), _opened(video) as container:
        yield from _decode_frames(container, container.streams.video[0], numbers)


def check_whole(video: bytes) -> None:
    """Decode the whole file; raises DecodeError if FFmpeg finds anything wrong with it."""
    with damage_named(), _opened(video) as container:
        for frame in container.decode(container.streams.video[0]):
            _check_frame(frame)


def _opened(video: bytes) -> av.container.InputContainer:
    container = av.open(io.BytesIO(video), "r", metadata_errors="ignore")
    stream = container.streams.video[0]
    stream.thread_count = 1
    # by default FFmpeg fills in what is damaged (all codecs), or says nothing of it (MJPEG)
    stream.codec_context.options = {"err_detect": "explode"}
    return container


def _check_frame(frame: av.VideoFrame) -> None:
    if frame.is_corrupt:
        raise DecodeError(f"the frame at {frame.time} s is damaged")


def _check_size(picture: Picture, boxes_V4: NDArray[np.int32], stacked: int) -> None:
    # FFmpeg's crop would move a box that does not fit, and fail only for one that is too large
    width, height = picture.width, picture.height // stacked
    right, bottom = (boxes_V4[:, :2] + boxes_V4[:, 2:]).max(0).tolist()
    if right > width or bottom > height:
        raise DecodeError(
            f"the video is {width}×{height} and the box ends at {right}×{bottom}: the table has another size"
        )


class _Cutter:
    """A filter graph that cuts boxes of one size from `count` frames, scales them, mirrors them or not, and stacks them.

    All of it happens in one call without the GIL: called once a frame, threads wait for each other.
    """

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
            ("scale", f"{size}:{size}:flags={_SCALE_FLAGS}"),
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


def _decode_frames(
    container: av.container.InputContainer, stream: av.VideoStream, numbers: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame) for each of the ascending frame numbers, seeking over the gaps."""
    if not stream.average_rate or not stream.time_base:
        raise DecodeError("the stream has no frame rate")
    ticks = float(1 / (stream.average_rate * stream.time_base))  # a frame
    origin = stream.start_time or 0
    index = stream.index_entries

    def skipped(now: int, target: int) -> int:
        """Ticks from now to the key frame that the decoder would go on from; below 0 if that is past."""
        entry = index.search_timestamp(target)
        return int(index[entry].timestamp) - now if entry >= 0 else 0

    remaining = list(reversed(numbers))
    while remaining:
        target = remaining[-1]
        container.seek(origin + int(target * ticks), stream=stream)
        position = -1
        for frame in container.decode(stream):
            if frame.pts is None:
                raise DecodeError("a frame has no time stamp")
            _check_frame(frame)
            position = round((frame.pts - origin) / ticks)
            if position > remaining[-1]:
                break
            if position == remaining[-1]:
                yield remaining.pop(), frame
                if (
                    not remaining
                    or skipped(frame.pts, origin + int(remaining[-1] * ticks)) > _SEEK_COST * ticks
                ):
                    break
        if remaining and remaining[-1] == target:
            raise DecodeError(f"frame {target} is not there (the last one seen is {position})")
