"""The boxes of an mp4 file (ISO/IEC 14496-12), and what its sample description says of the codec."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DecodeError(Exception):
    """A video that cannot be decoded as its row of the table promises."""


class Unusual(Exception):
    """A file that FFmpeg may read, and the parser below does not."""


@dataclass(frozen=True)
class Box:
    data: memoryview
    start: int  # of its content
    end: int

    def numbers(self, layout: str, at: int = 0) -> tuple[Any, ...]:
        """Big-endian numbers, `at` bytes into the content."""
        if self.start + at + struct.calcsize(">" + layout) > self.end:
            raise DecodeError("a box of the mp4's index is too short")
        return struct.unpack_from(">" + layout, self.data, self.start + at)

    def content(self) -> bytes:
        return bytes(self.data[self.start : self.end])

    def table(self, *, columns: int = 1, at: int = 4, dtype: str = ">u4") -> NDArray[np.int64]:
        """Its rows (N, columns), which follow their count `at` bytes into the content."""
        (rows,) = self.numbers("I", at)
        items = rows * columns
        if items * np.dtype(dtype).itemsize > self.end - self.start - at - 4:
            raise DecodeError(f"a table of the mp4's index announces {rows} rows and ends before")
        values = np.frombuffer(self.data, dtype, items, self.start + at + 4)
        return values.astype(np.int64).reshape(rows, columns)

    def boxes(self, at: int = 0) -> Iterator[tuple[bytes, "Box"]]:
        """The boxes in it: (name, box)."""
        place = self.start + at
        while place + 8 <= self.end:
            size, name = struct.unpack_from(">I4s", self.data, place)
            header = 8
            if size == 1 and place + 16 <= self.end:
                (size,), header = struct.unpack_from(">Q", self.data, place + 8), 16
            size = size or self.end - place
            if size < header or place + size > self.end:
                raise Unusual(f"box {name!r} has {size} bytes of {self.end - place}")
            yield name, Box(self.data, place + header, place + size)
            place += size

    def children(self, at: int = 0) -> "Boxes":
        """The first box of each name in it."""
        return Boxes(reversed(list(self.boxes(at))))

    def child(self, *path: bytes) -> "Box":
        """The first box of that name in it; in that one the next, …."""
        box = self
        for name in path:
            box = box.children()[name]
        return box


class Boxes(dict[bytes, Box]):
    """Boxes by their names. Raises Unusual for one that is not there."""

    def __missing__(self, name: bytes) -> Box:
        raise Unusual(f"no box {name!r}")


def box(name: bytes, *parts: bytes) -> bytes:
    """A box of an mp4 file."""
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), name) + content


def describe_codec(stsd: Box) -> dict[str, Any]:
    """What the only sample description states: codec, extradata, width, height, full_range, colorspace."""
    entries = list(stsd.boxes(8))
    if stsd.numbers("I", 4) != (1,) or len(entries) != 1:
        raise Unusual("several sample descriptions")
    name, entry = entries[0]
    if name not in _CODECS:
        raise Unusual(f"{name!r}")
    width, height = entry.numbers("HH", 24)
    boxes = entry.children(78)
    codec, setup = _CODECS[name]
    extradata = boxes[setup].content() if setup else b""
    if name == b"mp4v":
        codec, extradata = _esds(extradata)
    full_range = colorspace = None
    if b"colr" in boxes:
        kind, _, _, matrix = boxes[b"colr"].numbers("4sHHH")
        if kind in (b"nclx", b"nclc"):
            colorspace = matrix if matrix != 2 else None  # 2: unspecified
        if kind == b"nclx":
            full_range = bool(boxes[b"colr"].numbers("B", 10)[0] & 0x80)
    return {
        "codec": codec,
        "extradata": extradata,
        "width": width,
        "height": height,
        "full_range": full_range,
        "colorspace": colorspace,
    }


_CODECS = {  # sample entry: codec, and the box that its decoder needs
    b"avc1": ("h264", b"avcC"),
    b"avc3": ("h264", b"avcC"),
    b"hvc1": ("hevc", b"hvcC"),
    b"hev1": ("hevc", b"hvcC"),
    b"vp09": ("vp9", b""),
    b"av01": ("av1", b"av1C"),
    b"jpeg": ("mjpeg", b""),
    b"mp4v": ("", b"esds"),
}


def _esds(content: bytes) -> tuple[str, bytes]:
    """Codec and what its decoder needs, from an elementary stream descriptor (ISO/IEC 14496-1, 7.2.6)."""
    found: dict[int, bytes] = {}
    place = 4  # version and flags
    while place < len(content):
        tag, size, place = content[place], 0, place + 1
        for byte in content[place : place + 4]:
            size, place = size << 7 | byte & 0x7F, place + 1
            if byte < 0x80:
                break
        found.setdefault(tag, content[place : place + size])
        place += {3: 3, 4: 13}.get(tag, size)  # these two hold others, after so many bytes of their own
    codec = {b"\x6c": "mjpeg", b"\x20": "mpeg4"}.get(found.get(4, b"")[:1])
    if codec is None or len(found.get(3, b"")) < 3 or found[3][2] & 0xE0:  # flags: more fields follow
        raise Unusual("an elementary stream of another kind")
    return codec, found.get(5, b"")
