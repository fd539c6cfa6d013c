"""Decoding on the CPU: a video's bytes and a draw → the views' pixels.

FFmpeg (through PyAV's wheel) decodes each needed stretch once, in one thread, and without the GIL: run it in a pool of
threads. Frames that neither the draw nor another frame needs (B-frames of our shards) are left encoded. pipelines.cut
makes the pixels of the others.
"""

import ctypes
import io
import sys
from collections import deque
from collections.abc import Iterator
from functools import partial

import av
import av.logging
import numpy as np
from numpy.typing import NDArray

from pipelines.cut import cut_views
from pipelines.damage import DecodeError, damage_named
from pipelines.sampling import ViewParams

av.logging.set_level(av.logging.FATAL)

SEEK_COST = 2  # frames that could be decoded in the time of a seek


def decode_views(video: bytes, params: ViewParams, size: int, modality: str = "rgb") -> NDArray[np.uint8]:
    """The pixels of one sample's views.

    video: an encoded file (constant frame rate). draw: that of one sample (frames (V, T), boxes (V, 4),
    flips (V,)). size: side of a view in pixels. Returns (V·T, size, size, P), uint8, 0–255: RGB; luma (P = 1)
    for a difference; (u, v) for flow, whose video holds u above v. In memory it is (V·T, P, size, size).
    Raises DecodeError if the file is damaged, as far as FFmpeg can tell, or lacks a frame or a part of the frame
    that the draw asks for.
    """
    with damage_named(), _opened(video) as container:
        stream = container.streams.video[0]
        return cut_views(stream, partial(_decode_frames, container, stream), params, size, modality)


def decode_frames(video: bytes, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame) for each of the ascending frame numbers; raises DecodeError as decode_views does."""
    with damage_named(), _opened(video) as container:
        yield from _decode_frames(container, container.streams.video[0], numbers)


def check_whole(video: bytes) -> None:
    """Decode the whole file; raises DecodeError if FFmpeg finds anything wrong with it."""
    with damage_named(), _opened(video) as container:
        for frame in container.decode(container.streams.video[0]):
            _check_frame(frame)


def keep_freed_memory() -> None:
    """Tell the allocator (glibc's) to keep what decoders free, for the next clip.

    By default it gives the frames back to the system, and every clip pays for fresh pages.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
        libc.mallopt(mmap_threshold, 2**25)
        libc.mallopt(trim_threshold, 2**28)


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


class _Times:
    """Frame numbers and time stamps of a stream of constant rate."""

    def __init__(self, stream: av.VideoStream) -> None:
        if not stream.average_rate or not stream.time_base:
            raise DecodeError("the stream has no frame rate")
        self._ticks = float(1 / (stream.average_rate * stream.time_base))  # a frame
        self._origin = stream.start_time or 0
        self._index = stream.index_entries
        # the index has the times of decoding, which with B-frames come before those of showing
        self._lead = self._origin - int(self._index[0].timestamp) if len(self._index) else 0

    def number(self, stamp: int | None) -> int:
        if stamp is None:
            raise DecodeError("a frame has no time stamp")
        return round((stamp - self._origin) / self._ticks)

    def stamp(self, number: int) -> int:
        return self._origin + int(number * self._ticks)

    def worth_a_seek(self, now: int, target: int) -> bool:
        """Whether the key frame that the decoder would go on from is more than SEEK_COST beyond frame `now`."""
        entry = self._index.search_timestamp(self.stamp(target) - self._lead)
        return entry >= 0 and self.number(int(self._index[entry].timestamp) + self._lead) > now + SEEK_COST


def _decode_frames(
    container: av.container.InputContainer, stream: av.VideoStream, numbers: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame) for each of the ascending frame numbers, seeking over the gaps."""
    times = _Times(stream)
    remaining = list(reversed(numbers))
    while remaining:
        target, seen = remaining[-1], -1
        container.seek(times.stamp(target), stream=stream)
        for frame in _decode_stretch(container, stream, times, remaining[::-1]):
            _check_frame(frame)
            seen = times.number(frame.pts)
            if remaining and seen == remaining[-1]:
                yield remaining.pop(), frame
        if remaining and remaining[-1] == target:
            raise DecodeError(f"frame {target} is not there (the last one seen is {seen})")


def _decode_stretch(
    container: av.container.InputContainer, stream: av.VideoStream, times: _Times, numbers: list[int]
) -> Iterator[av.VideoFrame]:
    """Yield frames in order: those of the ascending numbers, and what they refer to, up to a gap that is worth a seek."""
    context = stream.codec_context
    ahead, wanted = deque(numbers), set(numbers)
    for packet in container.demux(stream):
        if packet.size == 0:  # the end of the file
            break
        number = times.number(packet.pts)
        context.skip_frame = "DEFAULT" if number in wanted else "NONREF"
        yield from context.decode(packet)
        if number in wanted:
            wanted.remove(number)
            while ahead and ahead[0] not in wanted:
                ahead.popleft()
            if not ahead or times.worth_a_seek(number, ahead[0]):
                break
    yield from context.decode(None)  # those that the decoder held back
