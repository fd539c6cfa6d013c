"""Frames made fit for the encoder: upright, even, of one size, at a steady rate."""

from collections.abc import Iterator
from fractions import Fraction

import av
from av.video.reformatter import VideoReformatter

from shards.encode import Codec, Encoding, house_frame
from shards.reading import Rejected, Tally

MOST_COPIES = 100  # output frames a decoded frame; more means broken time stamps, not slow motion


def fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """The even size, in pixels, with the short side at most `short_side`: aspect kept, never scaled up."""
    scale = min(1.0, (short_side // 2 * 2) / min(width, height))
    even = [max(2, min(round(side * scale / 2) * 2, side // 2 * 2)) for side in (width, height)]
    return even[0], even[1]


def upright(frames: Iterator[av.VideoFrame], encoding: Encoding) -> Iterator[av.VideoFrame]:
    """House frames, scaled and turned as a player would show them; all have the size of the first."""
    reformatter = VideoReformatter()
    codec: Codec = encoding.codec
    graph: _Graph | None = None
    size: tuple[int, int] | None = None
    for frame in frames:
        if size is None:
            size = fitted(frame.width, frame.height, encoding.short_side)
            turn = {90: "transpose=cclock", -90: "transpose=clock"}.get(frame.rotation, "")
            turn = "hflip,vflip" if abs(frame.rotation) == 180 else turn
        standing = house_frame(frame, *size, codec, reformatter)
        if turn:
            graph = graph or _Graph(standing, turn)
            yield from graph.through(standing)
        else:
            yield standing


def resampled(frames: Iterator[av.VideoFrame], rate: Fraction, tally: Tally) -> Iterator[av.VideoFrame]:
    """At n / rate the last frame that began by then, to half a step: FFmpeg's `fps` filter. Raises Rejected."""
    graph: _Graph | None = None
    start: int | None = None
    count = 0
    for frame in frames:
        # counted from the first frame: a late start must not move the grid
        if frame.pts is not None:
            start = frame.pts if start is None else start
            frame.pts -= start
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
