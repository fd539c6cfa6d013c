"""Decoding on the CPU: a video's bytes and a draw → the views' pixels, cut, scaled and mirrored.

FFmpeg (through PyAV's wheel) decodes each needed stretch once; for every view a filter graph crops and scales
in YUV, and only the view's own pixels become RGB. Decoding releases the GIL: run it in a pool of threads.
"""

import io
from collections import defaultdict
from collections.abc import Iterator

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
_SEEK_GAP = 48  # frames: seeking over a shorter gap would decode about as much, given groups of 16


class DecodeError(Exception):
    """A video that cannot be decoded as its row of the table promises."""


def decode_views(video: bytes, draw: Draw, size: int) -> NDArray[np.uint8]:
    """The pixels of one sample's views.

    video: an encoded file (constant frame rate). draw: that of one sample (frames (V, T), boxes (V, 4),
    flips (V,)). size: side of a view in pixels. Returns RGB (V·T, size, size, 3), uint8, 0–255.
    Raises DecodeError if the file is damaged or lacks a frame that the draw asks for.
    """
    views, frames = draw.frames.shape
    out = np.empty((views * frames, size, size, 3), np.uint8)
    # Views that look at a frame through the same box share one conversion.
    wanted: dict[int, dict[tuple, list[int]]] = defaultdict(lambda: defaultdict(list))
    for view in range(views):
        look = (*draw.boxes[view].tolist(), bool(draw.flips[view]))
        for frame, number in enumerate(draw.frames[view].tolist()):
            wanted[number][look].append(view * frames + frame)
    try:
        with av.open(io.BytesIO(video), "r", metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            graphs: dict[tuple, av.filter.Graph] = {}
            for number, frame_ in _decode_frames(container, stream, sorted(wanted)):
                for look, places in wanted[number].items():
                    if look not in graphs:
                        graphs[look] = _view_graph(stream, look, size)
                    graphs[look].push(frame_)
                    out[places] = graphs[look].pull().to_ndarray()
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    return out


def _view_graph(stream: av.VideoStream, look: tuple, size: int) -> av.filter.Graph:
    left, top, width, height, flip = look
    graph = av.filter.Graph()
    node = graph.add_buffer(template=stream)
    filters = [("crop", f"{width}:{height}:{left}:{top}"), ("scale", f"{size}:{size}:flags={_SCALE_FLAGS}")]
    filters += [("format", "rgb24"), *([("hflip", "")] if flip else []), ("buffersink", "")]
    for name, arguments in filters:
        following = graph.add(name, arguments or None)
        node.link_to(following)
        node = following
    graph.configure()
    return graph


def _decode_frames(
    container: av.container.InputContainer, stream: av.VideoStream, numbers: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame) for each of the ascending frame numbers, seeking over the gaps."""
    if not stream.average_rate or not stream.time_base:
        raise DecodeError("the stream has no frame rate")
    ticks = float(1 / (stream.average_rate * stream.time_base))  # a frame
    origin = stream.start_time or 0
    remaining = list(reversed(numbers))
    while remaining:
        target = remaining[-1]
        container.seek(origin + int(target * ticks), stream=stream)
        position = -1
        for frame in container.decode(stream):
            if frame.pts is None:
                raise DecodeError("a frame has no time stamp")
            position = round((frame.pts - origin) / ticks)
            if position > remaining[-1]:
                break
            if position == remaining[-1]:
                yield remaining.pop(), frame
                if not remaining or remaining[-1] - position > _SEEK_GAP:
                    break
        if remaining and remaining[-1] == target:
            raise DecodeError(f"frame {target} is not there (the last one seen is {position})")
