"""The index of an mp4 file: which bytes hold which frame.

The index is read from the file's `moov` box, without FFmpeg (ISO/IEC 14496-12 names the boxes). Arrays have one letter:
P packets, in decoding order.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from shards.video.boxes import Box, Boxes, DecodeError, Unusual, box, describe_codec

# where the file states one size for all packets, and so holds no table that bounds them
MOST_EQUAL_PACKETS = 1 << 20


@contextmanager
def damage_named() -> Iterator[None]:
    """What FFmpeg and PyAV raise for a damaged video, as DecodeError."""
    try:
        yield
    except MemoryError:  # FFmpeg's too: it is not the video's fault
        raise
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """Where the packets of a video lie in its mp4 file. Arrays (P,) are in decoding order.

    codec: FFmpeg's name of it: h264, hevc, vp9, av1, mjpeg, mpeg4, …; the decoder of av1 is called libdav1d.
    extradata: what the decoder needs before the first packet (avcC, hvcC, av1C, …); b"" where that is nothing.
    width, height: pixels, as the container states them.
    offsets, sizes: first byte of each packet in the file, and how many it has.
    numbers: frame number, counted from 0 in order of presentation; −1 where the edit list hides the frame.
    keys: whether the packet is a key frame (sync sample).
    head: bytes of the file up to the end of `moov` if that precedes `mdat`, else 0.
    full_range, colorspace: as the container's colr box states them, colorspace as FFmpeg's enum; None if it does not.
    description: the stsd box, for `trim`; b"" if FFmpeg's demuxer made the index.
    ranks: place of the packet in order of presentation among all packets, hidden ones too.
    """

    codec: str
    extradata: bytes
    width: int
    height: int
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    numbers: NDArray[np.int64]
    keys: NDArray[np.bool_]
    head: int
    full_range: bool | None
    colorspace: int | None
    description: bytes
    ranks: NDArray[np.int64]

    @property
    def num_frames(self) -> int:
        return int(self.numbers.max(initial=-1)) + 1

    @property
    def gops(self) -> NDArray[np.int64]:
        """The first packet of each group of pictures: the key frames, and in any case packet 0."""
        keys = np.flatnonzero(self.keys)
        return keys if len(keys) and keys[0] == 0 else np.concatenate([[0], keys])


def read_index(video: bytes | memoryview) -> PacketIndex:
    """The index of an mp4 or mov file's first video track.

    video: the whole file, or exactly its first `head` bytes. Files of an unusual make (fragments, several edits or
    sample descriptions, codecs not named here, …) are demuxed by FFmpeg and have to be given whole.
    Raises DecodeError if the file is neither, or if a packet lies beyond the end of the whole file.
    """
    data = memoryview(video)
    try:
        index = _parsed(data)
    except Unusual:
        try:
            index = _demuxed(data)
        except av.error.MemoryError as error:  # what FFmpeg says of sizes that no file has
            raise DecodeError("the mp4's index is damaged: it asks for more memory than there is") from error
    except (struct.error, IndexError, ValueError) as error:
        raise DecodeError(f"the mp4's index is damaged: {error}") from error
    ends = index.offsets + index.sizes
    only_head = len(data) == index.head and (index.offsets >= index.head).all()
    beyond = not only_head and max(ends.max(), index.sizes.sum()) > len(data)
    if beyond or index.offsets.min() < 0 or ends.min() < 0:
        raise DecodeError(f"the packets lie in bytes {index.offsets.min()} to {ends.max()} of {len(data)}")
    return index


def _parsed(data: memoryview) -> PacketIndex:
    moov, head = _find_moov(data)
    track = _video_track(moov)
    tables = track.child(b"mdia", b"minf", b"stbl").children()
    sizes = _sizes(tables[b"stsz"])
    times = _times(tables, len(sizes))
    shown = _shown(track, times, _timescale(moov.child(b"mvhd")), _timescale(track.child(b"mdia", b"mdhd")))
    ranks, numbers = _ordered(times, shown)
    return PacketIndex(
        offsets=_offsets(tables, sizes),
        sizes=sizes,
        numbers=numbers,
        keys=_keys(tables, len(sizes)),
        head=head,
        description=box(b"stsd", tables[b"stsd"].content()),
        ranks=ranks,
        **describe_codec(tables[b"stsd"]),
    )


def _ordered(
    times: NDArray[np.int64], shown: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """PacketIndex.ranks and .numbers."""
    order = np.argsort(times, kind="stable")
    ranks, numbers = np.empty(len(times), np.int64), np.full(len(times), -1)
    ranks[order] = np.arange(len(times))
    numbers[order[shown[order]]] = np.arange(np.count_nonzero(shown))
    return ranks, numbers


def _find_moov(data: memoryview) -> tuple[Box, int]:
    """The index, and how many bytes of the file hold it and all that precedes it; 0 where that is the media too."""
    media_seen = False
    for name, inner in Box(data, 0, len(data)).boxes():
        if name == b"moov":
            return inner, 0 if media_seen else inner.end
        media_seen |= name == b"mdat"
    raise Unusual("no moov")


def _video_track(moov: Box) -> Box:
    if b"mvex" in moov.children():
        raise Unusual("fragments")
    for name, inner in moov.boxes():
        if name == b"trak" and inner.child(b"mdia", b"hdlr").numbers("4s", 8) == (b"vide",):
            return inner
    raise Unusual("no video track")


def _timescale(header: Box) -> int:
    """Ticks a second, of mvhd and mdhd."""
    (version,) = header.numbers("B")
    (ticks,) = header.numbers("I", 20 if version == 1 else 12)
    if ticks == 0:
        raise Unusual("no timescale")
    return ticks


def _sizes(stsz: Box) -> NDArray[np.int64]:
    size, count = stsz.numbers("II", 4)
    if size and count > MOST_EQUAL_PACKETS:
        raise DecodeError(f"the mp4's index announces {count} packets of {size} bytes")
    sizes = np.full(count, size, np.int64) if size else stsz.table(at=8)[:, 0]
    if not sizes.all() or not count:
        raise Unusual("empty packets")
    return sizes


def _repeated(runs_N2: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows of (times, value) → the first `count` values."""
    if runs_N2[:, 0].sum() != count:
        raise Unusual(f"times of {runs_N2[:, 0].sum()} packets, and {count} packets")
    return np.repeat(runs_N2[:, 1], runs_N2[:, 0])


def _times(tables: Boxes, count: int) -> NDArray[np.int64]:
    """When each packet's frame is presented, in ticks."""
    durations = _repeated(tables[b"stts"].table(columns=2), count)
    if durations.max() >= 1 << 31:
        raise Unusual("negative durations")
    times = np.cumsum(durations) - durations
    if b"ctts" in tables:  # signed in version 1, and in what some writers call version 0
        offsets = _repeated(tables[b"ctts"].table(columns=2), count)
        times += offsets.astype(np.int32)
    return times


def _shown(track: Box, times: NDArray[np.int64], movie: int, media: int) -> NDArray[np.bool_]:
    """Whether the edit list shows each packet's frame. movie, media: ticks a second of the list and of the times."""
    edits = []
    if b"edts" in track.children():
        elst = track.child(b"edts", b"elst")
        version, count = elst.numbers("B3xI")
        layout = "Qqi" if version == 1 else "Iii"
        if count > 16:
            raise Unusual(f"{count} edits")
        edits = [elst.numbers(layout, 8 + n * struct.calcsize(">" + layout)) for n in range(count)]
        while edits and edits[0][1] == -1:  # shown later: numbers stay as they are
            edits.pop(0)
    if not edits:
        return np.ones(len(times), bool)
    duration, first, rate = edits[0]
    if len(edits) > 1 or first < 0 or duration == 0 or rate != 1 << 16:
        raise Unusual("an edit list that does more than skip frames")
    first += min(int(times.min()), 0)  # FFmpeg counts from the earliest frame where offsets are negative
    shown = (times >= first) & (times < first + round(duration * media / movie))
    if not shown.any():
        raise Unusual("no frame is shown")
    return shown


def _offsets(tables: Boxes, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """First byte of each packet: packets lie one after another in chunks."""
    wide = b"co64" in tables and b"stco" not in tables
    chunks = (tables[b"co64"].table(dtype=">i8") if wide else tables[b"stco"].table())[:, 0]
    first, each, description = tables[b"stsc"].table(columns=3).T
    chunks_of = np.diff(first, append=len(chunks) + 1)
    sound = len(first) and first[0] == 1 and chunks_of.min() >= 1 and chunks.min() >= 0
    if not sound or (description != 1).any():
        raise Unusual("packets of several kinds, or without a place")
    counts = np.repeat(each, chunks_of)
    if counts.sum() != len(sizes) or counts.max() > len(sizes):
        raise Unusual(f"{counts.sum()} packets in chunks, and {len(sizes)} packets")
    before = np.cumsum(sizes) - sizes
    first_packets = np.minimum(np.cumsum(counts) - counts, len(sizes) - 1)
    return before + np.repeat(chunks - before[first_packets], counts)


def _keys(tables: Boxes, count: int) -> NDArray[np.bool_]:
    if b"sbgp" in tables and tables[b"sbgp"].numbers("4s", 4)[0] in (b"rap ", b"sync"):
        raise Unusual("key frames in sample groups")
    if b"stss" not in tables:
        return np.ones(count, bool)
    places = np.concatenate([tables[name].table()[:, 0] - 1 for name in (b"stss", b"stps") if name in tables])
    if not len(places) or places.min() < 0 or places.max() >= count:
        raise Unusual("key frames that are not there")
    keys = np.zeros(count, bool)
    keys[places] = True
    return keys


def _demuxed(data: memoryview) -> PacketIndex:
    """The index as FFmpeg's demuxer gives it."""
    with damage_named(), av.open(io.BytesIO(data), "r", format="mov", metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            raise DecodeError("FFmpeg has no decoder for the video's codec")
        packets = [packet for packet in container.demux(stream) if packet.size]
        places = np.array([-1 if packet.pos is None else packet.pos for packet in packets], np.int64)
        if not packets or places.min() < 0 or any(packet.pts is None for packet in packets):
            raise DecodeError("the file has no video packets, or some without a time or a place")
        times = np.array([packet.pts for packet in packets], np.int64)
        ranks, numbers = _ordered(times, np.array([not packet.is_discard for packet in packets]))
        return PacketIndex(
            codec=context.codec.canonical_name,
            extradata=context.extradata or b"",
            width=stream.width,
            height=stream.height,
            offsets=places,
            sizes=np.array([packet.size for packet in packets], np.int64),
            numbers=numbers,
            keys=np.array([packet.is_keyframe for packet in packets]),
            head=0,
            full_range={1: False, 2: True}.get(int(context.color_range)),
            colorspace=None if context.colorspace == 2 else int(context.colorspace),
            description=b"",
            ranks=ranks,
        )
