"""Frames made fit for the encoder: upright, of one size whose sides are multiples, at a steady rate.

The rate has to count what a container counts and does not hold, "show the last one again": an AVI has a chunk for each
tick of its clock, and an empty one where nothing new is shown: 25 frames a second are stored as 30. Theora has packets of
no bytes for the same. Neither is a frame that is missing; each is time that passes.
"""

import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from shards.video.encode import Codec, Encoding, house_frame
from shards.video.read import Rejected, Tally, watched

MULTIPLE = 16  # pixels: H.264 codes pictures in blocks of 16×16
LONGEST_PIXEL = 8
MOST_COPIES = 100  # output frames a decoded frame; more means broken time stamps, not slow motion
FOURCC = re.compile(rb"[\x20-\x7e]{4}")
USUAL_RATES = (5, 10, 12, 15, 20, 24, 25, 30, 50, 60)  # frames a second
LISTS = (b"RIFF", b"LIST")  # what holds chunks; its own data begins with the four letters of its kind


def fitted(width: int, height: int, short_side: int, multiple: int = 1) -> tuple[int, int]:
    """The even size, in pixels, that a whole picture is scaled to: aspect kept, never larger.

    Its short side is the largest multiple of `multiple` that is at most `short_side` and at most the picture's own.
    So the later crop takes nothing from the short side. A picture whose short side is below `multiple` keeps its
    size, less an odd line or column.
    """
    short = min(width, height)
    if 2 < multiple <= short:
        scale = min(short, short_side) // multiple * multiple / short
    else:
        scale = min(1.0, short_side // 2 * 2 / short)
    even = [max(2, min(round(side * scale / 2) * 2, side // 2 * 2)) for side in (width, height)]
    return even[0], even[1]


def cropped(width: int, height: int, multiple: int) -> tuple[int, int]:
    """The size, in pixels, that is cut from the centre of a fitted picture: each side the largest multiple.

    Fewer than `multiple` pixels of the long side are lost, half of them at either end. Where the short side is below
    `multiple` nothing is cut: a crop of the long side alone would lose picture and gain nothing.
    """
    if min(width, height) < multiple:
        return width, height
    return width // multiple * multiple, height // multiple * multiple


def uneven(width: NDArray[np.integer], height: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether a side, in pixels, is no multiple of 16; element by element."""
    return (width % MULTIPLE != 0) | (height % MULTIPLE != 0)


def sides_remark(width: NDArray[np.integer], height: NDArray[np.integer]) -> str:
    """One line on how many of these videos have uneven sides, (rows,) pixels each, and what that costs DALI's readers; ""
    for none.

    DALI keeps an NVDEC decoder and compares the size that it was made for, which is coded and so a multiple of 16,
    with the size that the next video is shown at. Where they differ it makes another.
    """
    rows = np.flatnonzero(uneven(width, height))
    if not len(rows):
        return ""
    first = f"the first is {width[rows[0]]}×{height[rows[0]]}"
    return (
        f"{len(rows)} of {len(width)} videos have a side that is no multiple of {MULTIPLE} ({first}): DALI's readers open "
        "an NVDEC decoder for each of them, 50 to 70 ms on an H100, instead of reusing one; "
        f"tools/make_shards.py crops to such multiples (--multiple {MULTIPLE}, without --copy)"
    )


def squared(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """The size, in square pixels, of a picture whose pixels are `aspect` times as wide as high; never scaled up.

    What no camera makes (beyond 8:1) is taken for a mistake, as None is for "not said".
    """
    if not aspect or not 1 / LONGEST_PIXEL <= aspect <= LONGEST_PIXEL:
        return width, height
    one = Fraction(1)
    return max(1, round(width * min(aspect, one))), max(1, round(height / max(aspect, one)))


def turn(frame: av.VideoFrame) -> str:
    """FFmpeg's filters that show a frame as its display matrix says, to a quarter turn, mirrored or not; "" for none."""
    try:
        tag = frame.side_data["DISPLAYMATRIX"]  # type: ignore[typeddict-item]
    except KeyError:
        return ""
    except ValueError:  # PyAV refuses them all where it does not know one of them, such as a picture's EXIF
        return {90: "transpose=cclock", -90: "transpose=clock", 180: "hflip,vflip", -180: "hflip,vflip"}.get(
            frame.rotation, ""
        )
    # a point (x, y) of the picture, y downwards, is shown at (a x + c y, b x + d y)
    a, b, _, c, d = struct.unpack("=5i", bytes(tag)[:20])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return _TRANSPOSED[b > 0, c > 0]
    return ",".join(["hflip"] * (a < 0) + ["vflip"] * (d < 0))


# FFmpeg's names: clock is a quarter turn clockwise, _flip mirrors top and bottom before it
_TRANSPOSED = {
    (True, True): "transpose=cclock_flip",
    (True, False): "transpose=clock",
    (False, True): "transpose=cclock",
    (False, False): "transpose=clock_flip",
}


def upright(
    frames: Iterator[av.VideoFrame], encoding: Encoding, aspect: Fraction | None = None
) -> Iterator[av.VideoFrame]:
    """House frames, scaled, cropped and turned as a player would show them; all have the size of the first.

    aspect: width over height of the source's pixels, None for square ones.
    """
    reformatter = VideoReformatter()
    codec: Codec = encoding.codec
    graph: _Graph | None = None
    size: tuple[int, int] | None = None
    chain = ""
    for frame in frames:
        if size is None:
            square = squared(frame.width, frame.height, aspect)
            size = fitted(*square, encoding.short_side, encoding.multiple)
            chain = ",".join(filter(None, [_centre(*size, encoding.multiple), turn(frame)]))
        scaled = house_frame(frame, *size, codec, reformatter)
        if chain:
            graph = graph or _Graph(scaled, chain)
            yield from graph.through(scaled)
        else:
            yield scaled


def _centre(width: int, height: int, multiple: int) -> str:
    """FFmpeg's filter for the crop, or "". Its offsets are even, so that no chroma sample is cut in half."""
    kept_width, kept_height = cropped(width, height, multiple)
    if (kept_width, kept_height) == (width, height):
        return ""
    left, top = ((side - kept) // 4 * 2 for side, kept in ((width, kept_width), (height, kept_height)))
    return f"crop={kept_width}:{kept_height}:{left}:{top}:exact=1"


def resampled(
    frames: Iterator[av.VideoFrame], rate: Fraction, tally: Tally, stays: Fraction = Fraction(0)
) -> Iterator[av.VideoFrame]:
    """At n / rate the last frame that began by then, to half a step: FFmpeg's `fps` filter. Raises Rejected.

    stays: seconds that the last frame is shown for beyond its own duration.
    """
    graph: _Graph | None = None
    start: int | None = None
    count = 0
    for frame, after in itertools.pairwise(itertools.chain(frames, [None])):
        assert frame is not None
        # counted from the first frame: a late start must not move the grid
        if frame.pts is not None:
            start = frame.pts if start is None else start
            frame.pts -= start
        if after is None and stays and frame.time_base:
            frame.duration += round(stays / frame.time_base)
        graph = graph or _Graph(frame, f"fps={rate.numerator}/{rate.denominator}")
        for steady in graph.through(frame):
            count += 1
            if count > MOST_COPIES * (tally.frames + 10):
                raise Rejected("bad_times", f"{count} output frames from {tally.frames} decoded ones")
            yield steady
    if graph is not None:
        yield from graph.through(None)


class _Graph:
    """One chain of FFmpeg filters for frames of one size, format and clock."""

    def __init__(self, like: av.VideoFrame, chain: str) -> None:
        self._graph = av.filter.Graph()
        nodes = [self._graph.add_buffer(None, like.width, like.height, like.format, None, like.time_base)]
        for step in chain.split(","):
            name, _, arguments = step.partition("=")
            nodes.append(self._graph.add(name, arguments or None))
        self._graph.link_nodes(*nodes, self._graph.add("buffersink")).configure()

    def through(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Push one frame, or the end; pull what comes out."""
        self._graph.vpush(frame)
        while True:
            try:
                yield self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return


@dataclass(frozen=True)
class Repeats:
    """What a container counts between its coded frames.

    coded: packets with data. count: empty ones after the first coded one, of which `trailing` come after the last.
    """

    coded: int = 0
    count: int = 0
    trailing: int = 0

    @classmethod
    def of_sizes(cls, sizes: Iterator[int]) -> "Repeats":
        """From the bytes of each packet, in their order. What comes before the first frame repeats nothing."""
        coded = count = trailing = 0
        for size in sizes:
            coded += size > 0
            trailing = 0 if size > 0 else trailing + (coded > 0)
            count += size == 0 and coded > 0
        return cls(coded, count, trailing)

    def rate(self, stored: Fraction) -> Fraction:
        """The rate at which the coded frames last as long as coded and repeated ones do at `stored`.

        A usual rate where it is right to less than a tick: 33 frames in 40 ticks at 30 are 25 a second, not 24.75.
        """
        if self.count == 0 or self.coded == 0:
            return stored
        ticks = self.coded + self.count
        exact = self.coded * stored / ticks
        for usual in sorted(USUAL_RATES, key=lambda rate: abs(rate - exact)):
            if abs(self.coded * stored / usual - ticks) < 1:
                return Fraction(usual)
        return exact.limit_denominator(100_000)


def find_repeats(source: Path | bytes, stream: av.VideoStream) -> Repeats:
    """The repeats of a stream of an open file. Other containers than AVI and Ogg have time stamps instead.

    They are counted in the file itself, chunk by chunk, not taken from its index or its time stamps: both may be
    damaged.
    """
    kind, theora = stream.container.format.name, stream.codec_context.name == "theora"
    if kind != "avi" and not (kind == "ogg" and theora):
        return Repeats()
    with watched(source) as handle:
        sizes = _avi_sizes if kind == "avi" else _packet_sizes
        return Repeats.of_sizes(sizes(handle, stream.index))


def _avi_sizes(handle: BinaryIO, stream: int) -> Iterator[int]:
    """Bytes of each chunk of a video stream, up to the end of the file or to what is no chunk."""
    ours = {b"%02d%s" % (stream, kind) for kind in (b"dc", b"db")}
    position, filled_up = 0, False
    while True:
        header = _header(handle, position)
        if header is None and filled_up:  # some writers leave out the byte that makes an odd chunk even
            position -= 1
            header = _header(handle, position)
        if header is None:
            return
        name, size = header
        if name in ours:
            yield size
        filled_up = name not in LISTS and size % 2 == 1
        position += 12 if name in LISTS else 8 + size + size % 2


def _header(handle: BinaryIO, position: int) -> tuple[bytes, int] | None:
    handle.seek(position)
    header = handle.read(8)
    if len(header) < 8 or not FOURCC.fullmatch(header[:4]):
        return None
    name, size = struct.unpack("<4sI", header)
    return name, size


def _packet_sizes(handle: BinaryIO, stream: int) -> Iterator[int]:
    options = {"protocol_whitelist": "none"}
    try:
        with av.open(handle, "r", metadata_errors="ignore", options=options) as container:
            for packet in container.demux(container.streams[stream]):
                if packet.buffer_ptr:  # the last one, which has no data, only says that it is the end
                    yield packet.size
    except (av.FFmpegError, OSError):
        return
