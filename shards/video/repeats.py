"""Frames that a container counts and does not hold: "show the last one again".

An AVI has a chunk for each tick of its clock, and an empty one where nothing new is shown: 25 frames a second are stored
as 30. Theora has packets of no bytes for the same. Neither is a frame that is missing; each is time that passes.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av

from shards.video.read import watched

FOURCC = re.compile(rb"[\x20-\x7e]{4}")
USUAL_RATES = (5, 10, 12, 15, 20, 24, 25, 30, 50, 60)  # frames a second
LISTS = (b"RIFF", b"LIST")  # what holds chunks; its own data begins with the four letters of its kind


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


def find_repeats(
    source: Path | bytes, container: av.container.InputContainer, stream: av.VideoStream
) -> Repeats:
    """The repeats of a stream of an open file. Other containers than AVI and Ogg have time stamps instead.

    They are counted in the file itself, chunk by chunk, not taken from its index or its time stamps: both may be
    damaged.
    """
    if container.format.name not in ("avi", "ogg"):
        return Repeats()
    with watched(source) as handle:
        if container.format.name == "avi":
            return Repeats.of_sizes(_avi_sizes(handle, stream.index))
        return Repeats.of_sizes(_packet_sizes(handle, stream.index)) if is_theora(stream) else Repeats()


def is_theora(stream: av.VideoStream) -> bool:
    return stream.codec_context.name == "theora"


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
