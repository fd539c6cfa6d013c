"""Decoding on the CPU: a video's bytes and a draw → the views' pixels.

FFmpeg (through PyAV's wheel) decodes each needed stretch once, in one thread, and without the GIL: run it in a pool of
threads. pipelines.cut makes the pixels of the frames.
"""

import io
from collections.abc import Iterator
from functools import partial

import av
import av.logging
import numpy as np
from numpy.typing import NDArray

from pipelines.cut import cut_views
from pipelines.damage import DecodeError, damage_named
from pipelines.draw import Draw

av.logging.set_level(av.logging.FATAL)

_SEEK_COST = 2  # frames that could be decoded in the time of a seek


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
    container = av.open(io.BytesIO(video), "r", format="mov", metadata_errors="ignore")  # mp4 too
    stream = container.streams.video[0]
    stream.thread_count = 1
    # by default FFmpeg fills in what is damaged (all codecs), or says nothing of it (MJPEG)
    stream.codec_context.options = {"err_detect": "explode"}
    return container


def _check_frame(frame: av.VideoFrame) -> None:
    if frame.is_corrupt:
        raise DecodeError(f"the frame at {frame.time} s is damaged")


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
