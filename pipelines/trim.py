"""The packets that a clip needs, as places in a file or as a file of their own."""

import struct

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.video.boxes import DecodeError, box
from shards.video.mp4 import PacketIndex

SEEK_COST = 2  # frames that could be decoded in the time of a seek


def span(index: PacketIndex, numbers: NDArray) -> tuple[int, int]:
    """The first and the last packet that `runs` and `trim` look at. Raises DecodeError if the video lacks a frame."""
    stretches = _stretches(index, _packets_of(index, numbers))
    return stretches[0][0], stretches[-1][1]


def runs(index: PacketIndex, video: bytes | memoryview, numbers: NDArray) -> list[NDArray[np.int64]]:
    """The packets that have to be decoded to show these frames, as ascending places in the index.

    Each run begins at a key frame; flush the decoder between two runs. A new run begins where that skips more than
    SEEK_COST frames. Left out are packets that no other frame refers to (H.264: nal_ref_idc 0; HEVC: sub-layer
    non-reference pictures of the highest temporal layer), unless they are asked for.
    numbers: ascending frame numbers, repeats allowed. Raises DecodeError if the video lacks one of them.
    """
    data, wanted = np.frombuffer(video, np.uint8), _packets_of(index, numbers)
    return [_needed(index, data, first, last, wanted) for first, last in _stretches(index, wanted)]


def trim(index: PacketIndex, video: bytes | memoryview, numbers: NDArray) -> tuple[bytes, NDArray[np.int32]]:
    """A minimal mp4 of the packets of `runs`, and the rank of each of `numbers` among the frames it shows.

    numbers: ascending frame numbers, at least one. A decoder is not flushed within the file, so H.264 and HEVC streams with open GOPs keep what lies between two runs.
    If FFmpeg's demuxer made the index, the whole video and the numbers are returned unchanged.
    """
    if not index.description:
        return bytes(video), numbers.astype(np.int32)
    data, wanted = np.frombuffer(video, np.uint8), _packets_of(index, numbers)
    stretches = _stretches(index, wanted)
    if not _restarts(index, data, [first for first, _ in stretches[1:]]).all():
        stretches = [(stretches[0][0], stretches[-1][1])]
    parts = [_needed(index, data, first, last, wanted) for first, last in stretches]
    packets = np.concatenate(parts)
    run = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    ranks = np.empty(len(packets), np.int64)
    ranks[np.lexsort((index.ranks[packets], run))] = np.arange(len(packets))
    ends = (index.offsets + index.sizes)[packets]
    if ends.max() > len(data):
        raise DecodeError(f"a packet ends at byte {ends.max()} of {len(data)}")
    view = memoryview(video)
    pieces = [view[a:b] for a, b in zip(index.offsets[packets].tolist(), ends.tolist(), strict=True)]
    out = _head(index, packets, ranks) + b"".join(pieces)
    return out, ranks[np.searchsorted(packets, wanted)].astype(np.int32)


def _packets_of(index: PacketIndex, numbers: NDArray) -> NDArray[np.int64]:
    """The packet of each frame number."""
    lacking = numbers[(numbers < 0) | (numbers >= index.num_frames)]
    if len(lacking):
        raise DecodeError(f"frame {lacking[0]} is not there (the last one is {index.num_frames - 1})")
    shown = np.flatnonzero(index.numbers >= 0)
    places = np.empty(len(shown), np.int64)
    places[index.numbers[shown]] = shown
    return places[numbers]


def _stretches(index: PacketIndex, wanted: NDArray[np.int64]) -> list[tuple[int, int]]:
    """First and last packet of each run."""
    if not len(wanted):
        return []
    starts = index.gops
    gop = np.searchsorted(starts, wanted, side="right") - 1
    ranks = index.ranks[wanted]
    leading = index.ranks[starts[gop]] > ranks  # shown before its key frame: it refers to the GOP before, too
    start = starts[np.maximum(gop - leading, 0)]
    start = np.minimum.accumulate(start[::-1])[::-1]
    last = np.maximum.accumulate(wanted)
    gap = (index.ranks[start[1:]] > ranks[:-1] + SEEK_COST) & (start[1:] > last[:-1])
    first_of_run = np.concatenate([[0], np.flatnonzero(gap) + 1])
    last_of_run = np.concatenate([first_of_run[1:] - 1, [len(wanted) - 1]])
    return list(zip(start[first_of_run].tolist(), last[last_of_run].tolist(), strict=True))


def _needed(
    index: PacketIndex, data: NDArray[np.uint8], first: int, last: int, wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of the packets first … last, those that are wanted, or that others refer to."""
    packets = np.arange(first, last + 1)
    keep = _referred_to(index, data, packets)
    if first > 0:  # pictures shown before the first key frame refer to what is not here
        keep &= index.ranks[packets] >= index.ranks[first]
    keep[wanted[(wanted >= first) & (wanted <= last)] - first] = True
    return packets[keep]


def _referred_to(
    index: PacketIndex, data: NDArray[np.uint8], packets: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """False for packets that no other one of `packets` refers to, as far as their headers say so."""
    if index.codec == "h264" and index.extradata:
        return (_slice_headers(index, data, packets)[:, 0] & 0x60) != 0
    if index.codec == "hevc" and index.extradata:
        headers = _slice_headers(index, data, packets)
        kind, layer = (headers[:, 0] >> 1) & 0x3F, headers[:, 1] & 7
        return (kind > 14) | (kind % 2 == 1) | (layer < layer.max())
    return np.ones(len(packets), bool)


def _restarts(index: PacketIndex, data: NDArray[np.uint8], packets: ArrayLike) -> NDArray[np.bool_]:
    """Whether the decoder starts over at these key frames by itself, without a flush."""
    packets = np.asarray(packets, np.int64)
    if index.codec == "h264":
        return (_slice_headers(index, data, packets)[:, 0] & 0x1F) == 5
    if index.codec == "hevc":
        kind = (_slice_headers(index, data, packets)[:, 0] >> 1) & 0x3F
        return (kind >= 16) & (kind <= 20)
    return np.ones(len(packets), bool)


def _slice_headers(
    index: PacketIndex, data: NDArray[np.uint8], packets: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The two first bytes of each packet's first slice (P, 2); 0xFF where none is found, which counts as needed.

    Packets are NAL units, each after its length; parameter sets and SEI may precede the first slice.
    """
    hevc = index.codec == "hevc"
    width = 1 + (index.extradata[21 if hevc else 4] & 3) if len(index.extradata) > (21 if hevc else 4) else 4
    places = index.offsets[packets]
    ends = places + index.sizes[packets]
    if ends.max(initial=0) > len(data):
        raise DecodeError(f"a packet ends at byte {ends.max()} of {len(data)}")
    headers = np.full((len(packets), 2), 0xFF, np.uint8)
    ahead = np.flatnonzero(places + width + 2 <= ends)
    for _ in range(32):
        if not len(ahead):
            break
        found = data[places[ahead, None] + np.arange(width + 2)]
        kind = (found[:, width] >> 1) & 0x3F if hevc else found[:, width] & 0x1F
        is_slice = kind < 32 if hevc else (kind >= 1) & (kind <= 5)
        headers[ahead[is_slice]] = found[is_slice, width:]
        lengths = found[:, :width].astype(np.int64) @ (1 << 8 * np.arange(width - 1, -1, -1))
        places[ahead] += width + lengths
        ahead = ahead[~is_slice & (places[ahead] + width + 2 <= ends[ahead])]
    return headers


def _table(name: bytes, *columns: ArrayLike, version: int = 0) -> bytes:
    rows = np.stack(np.broadcast_arrays(*(np.atleast_1d(np.asarray(c, np.int64)) for c in columns)), axis=1)
    return box(name, struct.pack(">B3xI", version, len(rows)), rows.astype(">i4").tobytes())


_IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def _head(index: PacketIndex, packets: NDArray[np.int64], ranks: NDArray[np.int64]) -> bytes:
    """All of a file that precedes its packets, which last one tick each. ranks: their order of presentation."""
    count, sizes, rate = len(packets), index.sizes[packets], 25
    places = np.arange(count)
    tables = [
        index.description,
        _table(b"stts", count, 1),
        b"" if (ranks == places).all() else _table(b"ctts", np.ones(count), ranks - places, version=1),
        b"" if index.keys.all() else _table(b"stss", 1 + np.flatnonzero(index.keys[packets])),
        _table(b"stsc", 1, count, 1),
        box(b"stsz", struct.pack(">3I", 0, 0, count), sizes.astype(">u4").tobytes()),
    ]
    track = struct.pack(">6I16x", 7, 0, 0, 1, 0, count) + _IDENTITY
    track += struct.pack(">II", index.width << 16, index.height << 16)
    movie = (
        struct.pack(">5IIH10x", 0, 0, 0, rate, count, 1 << 16, 1 << 8)
        + _IDENTITY
        + bytes(24)
        + struct.pack(">I", 2)
    )
    data_at_itself = box(b"dref", struct.pack(">II", 0, 1), box(b"url ", struct.pack(">I", 1)))

    def moov(first_byte: int) -> bytes:
        stbl = box(b"stbl", *tables, _table(b"stco", first_byte))
        minf = box(b"minf", box(b"vmhd", struct.pack(">IQ", 1, 0)), box(b"dinf", data_at_itself), stbl)
        mdhd = box(b"mdhd", struct.pack(">5IHH", 0, 0, 0, rate, count, 0x55C4, 0))  # und
        hdlr = box(b"hdlr", struct.pack(">II4s13x", 0, 0, b"vide"))
        return box(
            b"moov",
            box(b"mvhd", movie),
            box(b"trak", box(b"tkhd", track), box(b"mdia", mdhd, hdlr, minf)),
        )

    ftyp = box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomiso2mp41")
    first_byte = len(ftyp) + len(moov(0)) + 8
    return ftyp + moov(first_byte) + struct.pack(">I4s", 8 + int(sizes.sum()), b"mdat")
