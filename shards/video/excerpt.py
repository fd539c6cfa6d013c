"""Parts of an mp4 file that are read and checked without the rest: what precedes its media, and its GOPs.

A GOP is what lies between two key frames. shards.tar notes checksums of both for files of WHOLE bytes and more, in the
columns mp4_head and mp4_gops. A clip needs the GOPs of its frames; shards.Dataset reads these, and nothing else.
"""

import zlib
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.video.mp4 import DecodeError, PacketIndex, read_index

WHOLE = 2**19
"""Files of fewer bytes are read whole: a second read costs more than the bytes that it saves (docs/guides/speed.md)."""
_DIGITS = 8  # of a checksum


@dataclass(frozen=True, eq=False)
class Excerpt:
    """Bytes of an mp4 file, and where its packets lie in them.

    index: of all packets of the file. Its offsets count from the first byte of `data`; packets that are not there lie
    before that byte or after the last one.
    """

    index: PacketIndex
    data: bytes


def indexed(video: bytes | Excerpt) -> Excerpt:
    """An mp4 file's bytes with its index. Raises DecodeError as read_index does."""
    return video if isinstance(video, Excerpt) else Excerpt(read_index(video), video)


@dataclass(frozen=True, eq=False)
class Parts:
    """An mp4 file's index, and how its GOPs are checked.

    bounds: first byte of each GOP in the file, and the end of the last one, (G + 1,). sums: zlib.crc32 of each, (G,).
    """

    index: PacketIndex
    bounds: NDArray[np.int64]
    sums: tuple[int, ...]

    @classmethod
    def of(cls, head: bytes, sums: str) -> "Parts":
        """head: the file's bytes up to its media. sums: as `noted` gives them. Raises DecodeError for a damaged head."""
        expected = [int(sums[at : at + _DIGITS], 16) for at in range(0, len(sums), _DIGITS)]
        if zlib.crc32(head) != expected[0]:
            raise DecodeError("not the bytes that were written (checksum of the mp4's index)")
        index = read_index(head)
        bounds = _bounds(index)
        if len(bounds) != len(expected):
            raise DecodeError(f"the table has checksums of {len(expected) - 1} GOPs of {len(bounds) - 1}")
        return cls(index, bounds, tuple(expected[1:]))

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        index = self.index
        arrays = (index.offsets, index.sizes, index.numbers, index.keys, index.ranks, self.bounds)
        return sum(array.nbytes for array in arrays) + 40 * len(self.sums) + 1000

    def range(self, first: int, last: int) -> tuple[int, int]:
        """The bytes (begin, end) of the GOPs that hold the packets from `first` to `last`."""
        begin, end = np.searchsorted(self.index.gops, [first, last], side="right")
        return int(self.bounds[begin - 1]), int(self.bounds[end])

    def excerpt(self, begin: int, data: bytes) -> Excerpt:
        """Of whole GOPs, `data`, from the file's byte `begin` on. Raises DecodeError for damaged ones."""
        view, places = memoryview(data), self.bounds - begin
        for gop in range(*np.searchsorted(places, [0, len(data)])):
            if zlib.crc32(view[places[gop] : places[gop + 1]]) != self.sums[gop]:
                raise DecodeError(f"not the bytes that were written (checksum of GOP {gop})")
        return Excerpt(replace(self.index, offsets=self.index.offsets - begin), data)


def noted(component: str, video: bytes | memoryview) -> dict[str, Any]:
    """The columns that say how parts of a row's component can be read; {} if it is read whole.

    COMPONENT_head: bytes of the file that precede its media. COMPONENT_gops: zlib.crc32 of these, and then of each GOP,
    8 hexadecimal digits each.
    """
    if len(video) < WHOLE:
        return {}
    try:
        index = read_index(video)
        bounds = _bounds(index)
    except DecodeError:
        return {}
    ends = index.offsets + index.sizes
    if not index.head or index.offsets[0] < index.head or (index.offsets[1:] < ends[:-1]).any():
        return {}  # the index follows the media, or packets do not lie in their order
    view = memoryview(video)
    parts = [view[: index.head], *(view[a:b] for a, b in pairwise(bounds.tolist()))]
    sums = "".join(f"{zlib.crc32(part):0{_DIGITS}x}" for part in parts)
    return {f"{component}_head": index.head, f"{component}_gops": sums}


def _bounds(index: PacketIndex) -> NDArray[np.int64]:
    return np.append(index.offsets[index.gops], index.offsets[-1] + index.sizes[-1])
