"""Packets found by the mp4's own index against FFmpeg's demuxer; what trimmed files show against whole ones."""

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import objectives
from pipelines.sampling import sample_params
from pipelines.trim import runs, trim
from shards.video.encode import Encoding, write_mp4
from shards.video.mp4 import DecodeError, PacketIndex, read_index
from tests.pipelines.reference import REAL, flow_video

TORTURE = REAL.parent / "torture"
OURS = {
    "h264": Encoding(short_side=64, preset="veryfast"),
    "h264, no B-frames": Encoding(short_side=64, preset="veryfast", b_frames=0),
    "hevc": Encoding(codec="hevc", short_side=64, preset="ultrafast"),
    "vp9": Encoding(codec="vp9", short_side=64),
    "mjpeg": Encoding(codec="mjpeg", short_side=64),
}
FOREIGN: dict[str, tuple[str, dict[str, str]]] = {
    "av1": ("libsvtav1", {"preset": "12", "svtav1-params": "keyint=16:lp=1"}),
    "mpeg4": ("mpeg4", {"g": "16", "bf": "2"}),
    "h264, pyramid": ("libx264", {"g": "16", "x264-params": "bframes=5:b-pyramid=normal:threads=1"}),
    "h264, open GOPs": (
        "libx264",
        {"x264-params": "keyint=16:min-keyint=16:open-gop=1:bframes=3:b-adapt=0:threads=1"},
    ),
    "hevc, B-frames": (
        "libx265",
        {"x265-params": "keyint=16:bframes=4:open-gop=0:pools=none:log-level=none"},
    ),
    "hevc, open GOPs": (
        "libx265",
        {
            "preset": "ultrafast",
            "x265-params": "keyint=16:min-keyint=16:bframes=4:b-adapt=0:open-gop=1:pools=none:log-level=none",
        },
    ),
}
EVERY = [*OURS, *FOREIGN]
CLOSED = [name for name in EVERY if "open" not in name]


def pictures(count: int, width: int = 80, height: int = 64) -> Iterator[av.VideoFrame]:
    """A texture that moves, and noise that is another in each frame."""
    rng = np.random.default_rng(count)
    texture = np.kron(rng.integers(30, 220, (64, 64)), np.ones((4, 4)))
    for n in range(count):
        luma = texture[n % 90 : n % 90 + height, 2 * n % 90 : 2 * n % 90 + width] + rng.integers(
            0, 12, (height, width)
        )
        chroma = np.full(width * height // 2, 100 + n % 50)
        planes = np.concatenate([luma.ravel(), chroma]).astype(np.uint8)
        yield av.VideoFrame.from_ndarray(planes.reshape(height * 3 // 2, width), "yuv420p")


@cache
def ours(encoding: Encoding, count: int) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        frames = pictures(count)
        if encoding.codec == "mjpeg":
            frames = (frame.reformat(format="yuvj420p") for frame in frames)
        write_mp4(frames, path, Fraction(25), encoding)
        return path.read_bytes()


def foreign(library: str, options: dict[str, str], count: int, **container: str) -> bytes:
    """Encoded without the shards' settings; container: the muxer's options."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options=container) as target:
        stream: Any = target.add_stream(library, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in pictures(count):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return out.getvalue()


@cache
def video_of(name: str, count: int = 120) -> bytes:
    return ours(OURS[name], count) if name in OURS else foreign(*FOREIGN[name], count)


def pixels(video: bytes) -> list[NDArray[np.uint8]]:
    """Every frame that a file shows."""
    with av.open(io.BytesIO(video)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


@cache
def whole(video: bytes) -> list[NDArray[np.uint8]]:
    return pixels(video)


def run_pixels(index: PacketIndex, video: bytes, numbers: NDArray) -> dict[int, NDArray[np.uint8]]:
    """What a decoder without a container shows of the runs, by frame number."""
    context: Any = av.CodecContext.create({"av1": "libdav1d"}.get(index.codec, index.codec), "r")
    context.extradata = index.extradata or None
    context.thread_count = 1
    shown = {}
    for run in runs(index, video, numbers):
        packets = []
        for place in run.tolist():
            start = int(index.offsets[place])
            size = int(index.sizes[place])
            # Packet(bytes) would lack the zeros that FFmpeg reads beyond the end: MPEG-4 came out wrong by chance
            packets.append(av.Packet(size))
            packets[-1].update(video[start : start + size])
            packets[-1].pts = int(index.ranks[place])
        for packet in [*packets, None]:
            for frame in context.decode(packet):
                shown[int(index.numbers[index.ranks == frame.pts][0])] = frame.to_ndarray()
        context.flush_buffers()
    return shown


def assert_same_pixels(
    video: bytes, numbers: NDArray, expected: list[NDArray[np.uint8]] | None = None
) -> None:
    expected = whole(video) if expected is None else expected
    index = read_index(video)
    trimmed, ranks = trim(index, video, numbers)
    found, alone = pixels(trimmed), run_pixels(index, video, numbers)
    assert ranks.dtype == np.int32 and ranks.shape == numbers.shape
    for rank, number in zip(ranks.tolist(), numbers.tolist(), strict=True):
        assert np.array_equal(found[rank], expected[number])
        assert np.array_equal(alone[number], expected[number])


def clips(objective: str, num_frames: int, count: int) -> list[NDArray[np.int32]]:
    """The frame numbers of `count` samples under the objective's default configuration, ascending."""
    method = objectives.available()[objective]
    rows, sizes = np.arange(count), (np.full(count, size) for size in (num_frames, 336, 256))
    params = sample_params(method.view_spec(method.Config()), rows, *sizes, seed=1, epoch=0)
    return [np.unique(params.sample(row).frames) for row in rows]


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", objectives.available())
@pytest.mark.parametrize("name", EVERY)
def test_trimmed_files_show_the_same_pixels(name: str, objective: str) -> None:
    for numbers in clips(objective, 120, 3):
        assert_same_pixels(video_of(name), numbers)


@pytest.mark.parametrize("objective", objectives.available())
@pytest.mark.parametrize("b_frames", [0, 2])
def test_of_long_videos_as_well(objective: str, b_frames: int) -> None:
    for numbers in clips(objective, 300, 8):
        assert_same_pixels(ours(Encoding(short_side=64, preset="veryfast", b_frames=b_frames), 300), numbers)


@settings(deadline=None, max_examples=40)
@given(
    gop=st.sampled_from([1, 2, 5, 16, 250]),
    b_frames=st.integers(0, 3),
    numbers=st.sets(st.integers(0, 49), min_size=1, max_size=8),
)
def test_whatever_the_group_of_pictures(gop: int, b_frames: int, numbers: set[int]) -> None:
    video = ours(Encoding(short_side=64, preset="veryfast", gop=gop, b_frames=b_frames), 50)
    assert_same_pixels(video, np.array(sorted(numbers)))


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(EVERY), numbers=st.sets(st.integers(0, 59), min_size=1, max_size=6))
def test_whatever_the_codec(name: str, numbers: set[int]) -> None:
    assert_same_pixels(video_of(name, 60), np.array(sorted(numbers)))


def test_frames_may_be_asked_for_twice() -> None:
    assert_same_pixels(video_of("h264"), np.array([3, 3, 40, 119, 119, 119]))


def test_flow_alike(tmp_path: Path) -> None:
    fields = np.stack([np.stack([p.to_ndarray()[:64]] * 2) for p in pictures(60)])
    fields[:, 1] //= 2  # v is not u
    for codec in ("h264", "vp9"):
        video = flow_video(tmp_path / f"{codec}.mp4", fields, codec)  # type: ignore[arg-type]
        assert read_index(video).full_range is True and read_index(video).height == 128
        for numbers in clips("pace", 60, 4):
            assert_same_pixels(video, numbers)


def test_through_dalis_cpu_decoder() -> None:
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=False)
    def graph() -> Any:
        video = fn.external_source(name="video", dtype=types.UINT8, ndim=1)
        frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
        return fn.decoders.video(video, frames=frames, device="cpu")

    pipeline = graph()
    pipeline.build()

    def decoded(video: bytes, frames: NDArray[np.int32]) -> NDArray[np.uint8]:
        pipeline.feed_input("video", [np.frombuffer(video, np.uint8)])
        pipeline.feed_input("frames", [frames])
        return pipeline.run()[0].as_array()[0]

    video = ours(OURS["vp9"], 300)
    index = read_index(video)
    for objective in objectives.available():
        for numbers in clips(objective, 300, 3):
            trimmed = decoded(*trim(index, video, numbers))
            assert np.array_equal(trimmed, decoded(video, numbers))
            assert trimmed.std() > 10


# --- packets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "most"), [("dpc", 75), ("tcp", 60), ("pace", 55), ("vdim", 105)])
def test_few_packets_are_handed_over(objective: str, most: int) -> None:
    video = ours(OURS["h264"], 300)
    index = read_index(video)
    handed = [sum(map(len, runs(index, video, numbers))) for numbers in clips(objective, 300, 500)]
    assert np.mean(handed) <= most


@pytest.mark.parametrize("name", ["h264", "vp9", "hevc"])
def test_their_number_does_not_grow_with_the_clips_place(name: str) -> None:
    video = video_of(name, 120)
    index = read_index(video)
    for first in range(0, 118):
        assert sum(map(len, runs(index, video, np.arange(first, first + 3)))) <= 18


def test_runs_of_a_hand_worked_case() -> None:
    """Packets in order of decoding show frames 0 3 1 2 6 4 5 9 7 8 12 10 11 15 13 14 | 16 19 17 18 …."""
    video = video_of("h264")
    index = read_index(video)
    assert index.numbers[:20].tolist() == [
        0,
        3,
        1,
        2,
        6,
        4,
        5,
        9,
        7,
        8,
        12,
        10,
        11,
        15,
        13,
        14,
        16,
        19,
        17,
        18,
    ]

    def shown(*numbers: int) -> list[list[int]]:
        return [index.numbers[run].tolist() for run in runs(index, video, np.array(numbers))]

    assert shown(0) == [[0]]
    assert shown(4) == [[0, 3, 6, 4]]
    assert shown(2, 7) == [[0, 3, 2, 6, 9, 7]]
    assert shown(13, 16) == [[0, 3, 6, 9, 12, 15, 13], [16]]  # the key frame lies 3 beyond frame 13
    assert shown(14, 16) == [[0, 3, 6, 9, 12, 15, 14, 16]]
    assert shown(1, 36) == [[0, 3, 1], [32, 35, 38, 36]]
    assert runs(index, video, np.array([], np.int64)) == []


def test_frames_that_are_not_there() -> None:
    video = video_of("h264")
    index = read_index(video)
    for numbers in ([120], [0, 500], [-1, 3]):
        for call in (runs, trim):
            with pytest.raises(DecodeError, match="is not there"):
                call(index, video, np.array(numbers))


# --- the index -------------------------------------------------------------------------------------------------------


def demuxed(video: bytes) -> dict[str, NDArray]:
    """As PacketIndex, from FFmpeg's demuxer."""
    with av.open(io.BytesIO(video), format="mov", metadata_errors="ignore") as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    shown = np.array([not packet.is_discard for packet in packets])
    times = np.array([packet.pts for packet in packets])
    numbers = np.where(shown, np.searchsorted(np.sort(times[shown]), times), -1)
    return {
        "offsets": np.array([packet.pos for packet in packets]),
        "sizes": np.array([packet.size for packet in packets]),
        "keys": np.array([packet.is_keyframe for packet in packets]),
        "numbers": numbers,
    }


def assert_as_demuxed(video: bytes) -> PacketIndex:
    """Packets that FFmpeg does not even read, by the edit list, are hidden."""
    index, expected = read_index(video), demuxed(video)
    read = np.isin(index.offsets, expected["offsets"])
    assert (index.numbers[~read] == -1).all()
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(index, name)[read], values, err_msg=name)
    return index


@pytest.mark.parametrize("name", EVERY)
def test_the_index_is_that_of_the_demuxer(name: str) -> None:
    video = video_of(name)
    index = assert_as_demuxed(video)
    assert (index.num_frames, index.width, index.height) == (120, 80, 64)
    with av.open(io.BytesIO(video)) as container:
        context = container.streams.video[0].codec_context
        assert index.codec == context.codec.canonical_name == name.split(",")[0]
        assert index.extradata == (context.extradata or b"")
        if name in OURS:
            assert index.colorspace == context.colorspace == 6
            assert index.full_range == (name == "mjpeg")
    assert index.description  # not by the demuxer
    gop = 1 if name == "mjpeg" else 250 if name.startswith("hevc, B") else 16
    assert index.keys[0] and len(np.flatnonzero(index.keys)) >= 120 // (gop + 4)


def test_the_head_alone_is_enough() -> None:
    video = video_of("h264")
    index = read_index(video)
    assert b"mdat" in video[index.head :] and index.head < len(video) // 4
    head = read_index(memoryview(video)[: index.head])
    for name in ("offsets", "sizes", "numbers", "keys", "ranks", "head", "extradata"):
        np.testing.assert_array_equal(getattr(head, name), getattr(index, name))
    with pytest.raises(DecodeError, match="ends at byte"):
        trim(head, video[: index.head], np.array([40]))


def test_the_index_at_the_end_of_the_file() -> None:
    video = foreign(*FOREIGN["h264, pyramid"], 60)
    index = assert_as_demuxed(video)
    assert index.head == 0 and index.description
    assert len(read_index(video_of("h264")).description) > 100


@pytest.mark.skipif(not TORTURE.is_dir(), reason=f"no videos in {TORTURE}")
def test_files_from_elsewhere() -> None:
    seen = 0
    for path in sorted(TORTURE.glob("*/*")):
        video = path.read_bytes()
        try:
            expected = demuxed(video)
        except (av.FFmpegError, IndexError, ValueError):
            with pytest.raises(DecodeError):
                read_index(video)
            continue
        index = read_index(video)
        for name, values in expected.items():
            if (path.stem, name) != ("zeroed_hole", "keys"):  # FFmpeg's parser unsets those it cannot read
                np.testing.assert_array_equal(getattr(index, name), values, err_msg=f"{path.name}: {name}")
        damaged = path.stem in ("zeroed_hole", "bitflips_2000_mid")
        if damaged or "10bit" in path.stem or not index.description:
            continue
        frames = pixels(video)
        if index.codec != "mjpeg" and len(frames) == index.num_frames:
            numbers = np.unique(np.linspace(0, index.num_frames - 1, 5).astype(int))
            trimmed, ranks = trim(index, video, numbers)
            found = pixels(trimmed)
            for rank, number in zip(ranks, numbers, strict=True):
                assert np.array_equal(found[rank], frames[number]), (path.name, number)
            seen += 1
    assert seen >= 15


def test_what_the_parser_does_not_know_is_demuxed() -> None:
    """Fragments, a codec without a line in the table: read all the same, and not trimmed."""
    fragments = foreign("libx264", {"g": "8"}, 40, movflags="frag_keyframe+empty_moov")
    for video in (fragments, foreign("mpeg2video", {"g": "8"}, 40)):
        index = assert_as_demuxed(video)
        assert index.num_frames == 40 and index.description == b""
        numbers = np.array([3, 30])
        assert np.array_equal(run_pixels(index, video, numbers)[30], pixels(video)[30])
        assert trim(index, video, numbers)[0] == video and trim(index, video, numbers)[1].tolist() == [3, 30]


def with_box(video: bytes, path: list[bytes], new: bytes) -> bytes:
    """The file with another box in the place of the one at the path."""
    out, place = b"", 0
    while place < len(video):
        size, name = struct.unpack_from(">I4s", video, place)
        box = video[place : place + size]
        if name == path[0]:
            box = new if len(path) == 1 else with_box(box[8:], path[1:], new)
            box = box if len(path) == 1 else struct.pack(">I4s", 8 + len(box), name) + box
        out, place = out + box, place + size
    return out


TRACK = [b"moov", b"trak"]
STBL = [*TRACK, b"mdia", b"minf", b"stbl"]


def test_places_of_64_bits() -> None:
    video = video_of("h264")
    at = video.index(b"stco")
    (count,) = struct.unpack_from(">I", video, at + 8)
    places = struct.unpack_from(f">{count}I", video, at + 12)
    size = 16 + 8 * count
    moved = [place + 4 * count for place in places]
    new = struct.pack(f">I4sII{count}Q", size, b"co64", 0, count, *moved)
    longer = with_box(video, [*STBL, b"stco"], new)
    assert len(longer) == len(video) + 4 * count
    index = assert_as_demuxed(longer)
    assert index.description and index.num_frames == 120
    assert_same_pixels(longer, np.array([5, 80]), whole(video))


@pytest.mark.parametrize("name", ["h264", "h264, open GOPs", "hevc, B-frames", "mpeg4"])
@pytest.mark.parametrize(("skipped", "kept"), [(0, 120), (1, 200), (5, 60), (37, 30), (16, 104)])
def test_edit_lists(name: str, skipped: int, kept: int) -> None:
    """Frames before the edit, and after its end, are not numbered; others may refer to them."""
    video = video_of(name)
    at = video.index(b"elst")
    _, _, media_time, rate = struct.unpack_from(">IIiI", video, at + 8)
    (movie,) = struct.unpack_from(">I", video, video.index(b"mvhd") + 16)
    (ticks,) = struct.unpack_from(">I", video, video.index(b"mdhd") + 16)
    edit = (kept * movie // 25, media_time + skipped * ticks // 25, rate)
    new = struct.pack(">I4sIIIiI", 28, b"elst", 0, 1, *edit)
    edited = with_box(video, [*TRACK, b"edts", b"elst"], new)
    index = assert_as_demuxed(edited)
    shown = min(kept, 120 - skipped)
    assert index.num_frames == shown and index.description
    numbers = np.unique([0, 1, shown // 3, shown - 2, shown - 1])
    assert_same_pixels(edited, numbers, whole(video)[skipped:])


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b"", b"<html>404</html>" * 50, bytes(5000), bytes(range(256)) * 40])
def test_garbage(garbage: bytes) -> None:
    with pytest.raises(DecodeError):
        read_index(garbage)


def test_files_cut_off() -> None:
    for name, keeps in (("h264", (10, 1000, 9000, -1)), ("h264, pyramid", (10, 1000, 9000, -2000))):
        for kept in keeps:
            with pytest.raises(DecodeError):
                read_index(video_of(name)[:kept])


@pytest.fixture(scope="module")
def healthy() -> dict[str, bytes]:
    return {name: video_of(name, 40) for name in ("h264", "h264, pyramid", "hevc", "mpeg4", "vp9")}


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(["h264", "h264, pyramid", "hevc", "mpeg4", "vp9"]),
    flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), min_size=1, max_size=6),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
    head_only=st.booleans(),
)
@example(name="vp9", flips=[(471412, 1)], kept=1.0, head_only=False)  # FFmpeg: cannot allocate memory
def test_damaged_heads(
    healthy: dict[str, bytes], name: str, flips: list[tuple[int, int]], kept: float, head_only: bool
) -> None:
    """DecodeError, or an index that packets can be taken by."""
    video = bytearray(healthy[name])
    (moov,) = struct.unpack_from(">I", video, video.index(b"moov") - 4)
    start = video.index(b"moov") - 4
    for place, value in flips:
        video[start + place % moov] = value
    damaged = bytes(video[: start + moov] if head_only else video[: int(kept * len(video))])
    try:
        index = read_index(damaged)
        assert len(index.sizes) <= len(video)
        assert index.numbers.max() == index.num_frames - 1
        if not head_only:
            assert (index.offsets >= 0).all() and (index.offsets + index.sizes <= len(damaged)).all()
        numbers = np.unique([0, index.num_frames // 2, index.num_frames - 1])
        runs(index, damaged, numbers)
        trimmed, ranks = trim(index, damaged, numbers)
        assert len(trimmed) <= len(damaged) + 20_000 and len(ranks) == len(numbers)
    except DecodeError:
        pass
