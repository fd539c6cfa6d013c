"""Decoding on the CPU: a video's bytes and the parameters of its views → the views' pixels.

Only the packets that the views need are decoded: from the key frame before a frame on, without B-frames that nothing
refers to. FFmpeg (in PyAV's wheel) decodes each of them once, in one thread and without the GIL: run it in a pool of
threads. No container is opened: pipelines.trim knows where the packets lie.

All frames that are looked at through one box go through one filter graph in one call, which crops them and resizes them
in YUV; only the views' own pixels become RGB. Channels lie in planes: swscale has vector code for planar RGB, and scalar
code for packed. Each call and each copy takes the GIL: with one a frame, threads waited for each other
(docs/notes/cpu-loader.md).
"""

import ctypes
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import av
import av.filter
import av.logging
import numpy as np
from numpy.typing import NDArray

from pipelines.sampling import ViewParams
from pipelines.trim import runs
from shards.tar import Excerpt, indexed
from shards.video.mp4 import DecodeError, PacketIndex, damage_named

av.logging.set_level(av.logging.FATAL)

# Without these two, swscale rounds down and shares chroma between neighbours: RGB is 1.4 levels too dark on
# average. With them the views equal a float computation within rounding (tests/pipelines/test_decode.py).
RESIZE_FLAGS = "bilinear+accurate_rnd+full_chroma_int"
_DECODERS = {"av1": "libdav1d"}  # by name, FFmpeg picks one that needs a GPU
_TIME_BASE = Fraction(1, 1000)

# How FFmpeg writes a modality: pixel format, the channel of each of its planes, and how many pictures a frame holds,
# one below the other.
_FORMATS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "rgb": ("gbrp", (1, 2, 0), 1),
    "difference": ("gray", (0,), 1),
    "flow": ("gray", (0,), 2),
}

FramesOf = Callable[[list[int]], Iterable[tuple[int, av.VideoFrame]]]
"""A source of frames: ascending frame numbers → (number, frame) of each."""


def decode_views(
    video: bytes | Excerpt,
    params: ViewParams,
    size: int,
    modality: str = "rgb",
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The pixels of one sample's views.

    video: an mp4 file, or what of it the frames need. params: of one sample (frames (V, T), boxes (V, 4), flips (V,)).
    size: side of a view in pixels. Returns (V·T, size, size, P), uint8, 0–255: RGB; luma (P = 1) for a difference; (u, v) for flow, whose
    video holds u above v. In memory it is (V·T, P, size, size): `out`, where that is given.
    Raises DecodeError if the file is damaged, as far as FFmpeg can tell, or lacks a frame or a part of the frame
    that the parameters ask for.
    """
    return crop_views(partial(decode_frames, indexed(video)), params, size, modality, out)


def keep_freed_memory() -> None:
    """Tell the allocator (glibc's) to keep what decoders free, for the next clip.

    By default it gives frames back to the system, and each clip pays for fresh pages: 1 to 4 of a DPC clip's 12 ms.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 2**25)
        libc.mallopt(trim_threshold, 2**28)


def decode_frames(video: bytes | Excerpt, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame) for each of the ascending frame numbers; raises DecodeError as decode_views does."""
    video = indexed(video)
    index, data = video.index, video.data
    shown = np.sort(index.ranks[index.numbers >= 0])  # of each frame number
    if numbers and numbers[-1] >= len(shown):
        raise DecodeError(f"frame {numbers[-1]} is not there, the video has {len(shown)}")
    wanted = dict(zip(shown[numbers].tolist(), numbers, strict=True))
    with damage_named():
        for run in runs(index, data, np.asarray(numbers)):
            decoder = open_decoder(index)
            for packet in packets_of(index, data, run):
                for frame in decoder.decode(packet):
                    number = wanted.pop(frame.pts, None)
                    if frame.is_corrupt:
                        raise DecodeError(f"the frame of rank {frame.pts} is damaged")
                    if number is not None:
                        yield number, frame
    if wanted:
        raise DecodeError(f"frame {min(wanted.values())} does not decode")


def packets_of(index: PacketIndex, data: bytes, run: NDArray[np.int64]) -> Iterator[av.Packet | None]:
    """The packets of a run, with ranks as time stamps, and None for the end."""
    for place, first, size in zip(
        index.ranks[run].tolist(), index.offsets[run].tolist(), index.sizes[run].tolist(), strict=True
    ):
        packet = av.Packet(size)  # Packet(bytes) has no padding behind the data, which decoders read over
        packet.update(data[first : first + size])
        packet.pts = place
        yield packet
    yield None


def open_decoder(index: PacketIndex) -> av.VideoCodecContext:
    """A new decoder: it costs 0.03 ms."""
    decoder = av.CodecContext.create(_DECODERS.get(index.codec, index.codec), "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.width, decoder.height = index.width, index.height
    if index.extradata:
        decoder.extradata = index.extradata
    if index.full_range is not None:
        decoder.color_range = 2 if index.full_range else 1
    if index.colorspace is not None:
        decoder.colorspace = index.colorspace
    decoder.thread_count = 1
    # by default FFmpeg fills in what is damaged (all codecs), or says nothing of it (MJPEG)
    decoder.options = {"err_detect": "explode"}
    return decoder


def crop_views(
    frames_of: FramesOf,
    params: ViewParams,
    size: int,
    modality: str = "rgb",
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """As decode_views, from any source of frames of one size."""
    format_, channels, stacked = _FORMATS[modality]
    if out is None:
        out = np.empty((params.frames.size, stacked * len(channels), size, size), np.uint8)
    graphs: dict[tuple, _CropResize] = {}
    with damage_named():
        decoded = dict(frames_of(np.unique(params.frames).tolist()))
        for box in boxes_of(params):
            frames = [decoded[number] for number in box.numbers.tolist()]
            height = frames[0].height // stacked
            check_size(box, frames[0].width, height)
            key = (box.size, box.flip, len(frames))
            if key not in graphs:
                graphs[key] = _CropResize(frames[0], *key, size, format_)
            rows, places = _as_slice(box.rows), _as_slice(np.searchsorted(box.numbers, box.shown))
            for part in range(stacked):
                column = graphs[key](frames, box.left, box.top + part * height)
                for channel, plane in zip(channels, column.planes, strict=True):
                    lines = np.asarray(memoryview(plane)).reshape(-1, size, plane.line_size)  # type: ignore[arg-type]
                    out[rows, part + channel] = lines[places, :, :size]
    return out.transpose(0, 2, 3, 1)


@dataclass(frozen=True)
class Box:
    """The views that look through one box, mirrored or not.

    size: the box's width and height. rows: places of its frames among the sample's V·T. shown: their frame numbers.
    numbers: each of these once, ascending.
    """

    left: int
    top: int
    size: tuple[int, int]
    flip: bool
    rows: NDArray[np.int64]
    shown: NDArray[np.int32]
    numbers: NDArray[np.int32]


def boxes_of(params: ViewParams) -> list[Box]:
    """The different boxes of a sample, in the order of the views that they are first of."""
    views_of: dict[tuple, list[int]] = defaultdict(list)
    for view, (box, flip) in enumerate(zip(params.boxes.tolist(), params.flips.tolist(), strict=True)):
        views_of[(*box, flip)].append(view)
    row_numbers = np.arange(params.frames.size).reshape(params.frames.shape)
    found = []
    for (left, top, width, height, flip), views in views_of.items():
        shown = params.frames[views].ravel()
        rows = row_numbers[views].ravel()
        found.append(Box(left, top, (width, height), flip, rows, shown, np.unique(shown)))
    return found


def _as_slice(index: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """As a slice, which needs no copy, where the index is a run of neighbours."""
    first, count = int(index[0]), len(index)
    return slice(first, first + count) if (index == np.arange(first, first + count)).all() else index


def check_size(box: Box, width: int, height: int) -> None:
    """Raise DecodeError where a box reaches over a frame's edge. FFmpeg's crop would move it, DALI's fail a whole batch."""
    right, bottom = box.left + box.size[0], box.top + box.size[1]
    if right > width or bottom > height:
        raise DecodeError(
            f"the video is {width}×{height} and the box ends at {right}×{bottom}: the table has another size"
        )


class _CropResize:
    """A filter graph that crops boxes of one size from `count` frames, resizes them, mirrors them or not, and stacks them."""

    def __init__(
        self, frame: av.VideoFrame, box: tuple[int, int], flip: bool, count: int, size: int, format_: str
    ) -> None:
        self._graph = av.filter.Graph()
        self._graph.threads = 1  # by default each graph has one for every core
        # a filter graph asks for a time base; crops and sizes do not depend on it
        node = self._graph.add_buffer(None, frame.width, frame.height, frame.format, None, _TIME_BASE)
        self._at = {"x": 0, "y": 0}
        filters = [
            ("crop", f"{box[0]}:{box[1]}:0:0"),
            ("scale", f"{size}:{size}:flags={RESIZE_FLAGS}"),
            ("format", format_),
            *([("hflip", "")] if flip else []),
            ("tile", f"1x{count}"),
            ("buffersink", ""),
        ]
        nodes = [self._graph.add(name, arguments or None) for name, arguments in filters]
        self._crop = nodes[0]
        self._graph.link_nodes(node, *nodes).configure()

    def __call__(self, frames: list[av.VideoFrame], left: int, top: int) -> av.VideoFrame:
        """One picture, size × (count·size): what the frames show in the box, the first on top."""
        for side, at in (("x", left), ("y", top)):  # moving a box costs a hundredth of another graph
            if at != self._at[side]:
                self._crop.process_command(side, str(at))
                self._at[side] = at
        for frame in frames:
            self._graph.vpush(frame)
        return self._graph.vpull()
