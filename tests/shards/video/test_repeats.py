"""What a container counts and does not hold is time that passes, not damage: AVI's empty chunks, Theora's empty packets."""

import collections
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from independent import SHARED, decode, make_shards, render

from shards import Dataset
from shards.build.pool import Reject
from shards.build.process_video import Processing, Task, process_video
from shards.video.encode import Encoding
from shards.video.pictures import Repeats, find_repeats
from shards.video.read import Rejected
from shards.video.transcode import transcode

JHMDB = SHARED / "jhmdb"
# ffmpeg -f lavfi -i testsrc=size=32x32:rate=25:duration=0.4 -c:v libtheora -q:v 0 -bitexact: frames 1 and 2 of 10 are empty
OGV = Path(__file__).with_name("repeats.ogv")
CODED, TICKS = 40, 48


def _gappy(path: Path, numbers: list[int], codec: str = "mpeg4", rate: int = 30) -> Path:
    """An AVI at `rate` whose n-th frame stands at tick numbers[n]; FFmpeg fills up with empty chunks."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for n, number in enumerate(numbers):
            frame = av.VideoFrame(96, 64, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([30 + 4 * n]) * plane.buffer_size)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _as_stored_film(path: Path) -> Path:
    """25 frames a second in an AVI of 30."""
    return _gappy(path, [n * 6 // 5 for n in range(CODED - 1)] + [TICKS - 1])


def _index(path: Path) -> list[int]:
    """Sizes of the video chunks as the old index says: a reader of its own."""
    data = path.read_bytes()
    at = data.rindex(b"idx1")
    entries = struct.iter_unpack("<4sIII", data[at + 8 : at + 8 + struct.unpack_from("<I", data, at + 4)[0]])
    return [size for name, _, _, size in entries if name == b"00dc"]


def test_an_avi_with_empty_chunks_is_whole_and_lasts_as_long_as_it_did(tmp_path: Path) -> None:
    source = _as_stored_film(tmp_path / "in.avi")
    with av.open(str(source)) as container:
        assert container.streams.video[0].frames == TICKS
    assert _index(source).count(0) == TICKS - CODED
    clip = transcode(source, Encoding())
    assert (clip.num_frames, clip.fps, clip.seen["decoded_fraction"]) == (CODED, 25.0, 1.0)
    assert decode(clip.data).frames == CODED and clip.num_frames / clip.fps == TICKS / 30


def test_resampling_repeats_the_last_frame_over_a_gap(tmp_path: Path) -> None:
    numbers = [0, 1, 2, 8, 9, 20]
    clip = transcode(_gappy(tmp_path / "in.avi", numbers, codec="ffv1"), Encoding(fps=30, crf=1))
    shown = np.round((np.array(decode(clip.data).levels) - 30) / 4).astype(int)
    assert shown.tolist() == [max(n for n, number in enumerate(numbers) if number <= t) for t in range(21)]


def _emptied(path: Path, last: int) -> Path:
    """The AVI with its last chunks made empty, in the file and in its index."""
    data = bytearray(path.read_bytes())
    movi, index = data.index(b"movi"), data.rindex(b"idx1")
    sizes = _index(path)
    start = index + 8 + 16 * (len(sizes) - last)
    offset = struct.unpack_from("<I", data, start + 8)[0] + movi
    kept = data[:offset] + (b"00dc" + bytes(4)) * last
    entries = bytearray(data[index : index + 8 + 16 * len(sizes)])
    for n in range(last):
        struct.pack_into("<II", entries, 8 + 16 * (len(sizes) - last + n) + 8, offset - movi + 8 * n, 0)
    struct.pack_into("<I", kept, movi - 4, len(kept) - movi)
    kept += entries
    struct.pack_into("<I", kept, 4, len(kept) - 8)
    path.write_bytes(kept)
    return path


def test_a_last_frame_that_stays_is_shown_for_as_long(tmp_path: Path) -> None:
    source = _emptied(render(tmp_path / "in.avi", frames=30, rate=30, codec="ffv1"), last=10)
    plain = transcode(source, Encoding())
    assert (plain.num_frames, plain.fps, plain.seen["decoded_fraction"]) == (20, 20.0, 1.0)
    steady = transcode(source, Encoding(fps=30))
    assert steady.num_frames == 30
    assert "copied" not in transcode(source, Encoding(), tmp_path, copy=True).seen


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_half_of_such_an_avi_is_still_damaged(tmp_path: Path, share: float) -> None:
    source = _as_stored_film(tmp_path / "in.avi")
    data = source.read_bytes()
    movi, index = data.index(b"movi"), data.rindex(b"idx1")
    source.write_bytes(data[: movi + round((index - movi) * share)])
    with pytest.raises(Rejected, match="damaged"):
        transcode(source, Encoding())


def test_a_hole_in_the_chunks_is_no_repeat(tmp_path: Path) -> None:
    source = render(tmp_path / "in.avi", frames=60, rate=30, codec="ffv1")
    data = bytearray(source.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    source.write_bytes(data)
    with pytest.raises(Rejected, match="damaged"):
        transcode(source, Encoding())


def test_chunks_of_odd_size_that_were_not_filled_up_are_followed(tmp_path: Path) -> None:
    chunks = b"".join(b"00dc" + struct.pack("<I", size) + bytes(size) for size in (0, 3, 0, 5, 0, 0, 4, 0))
    inside = b"movi" + b"01wb" + struct.pack("<I", 2) + b"ab" + chunks
    path = tmp_path / "in.avi"
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 0) + b"AVI " + b"LIST" + struct.pack("<I", len(inside)) + inside
    )
    with av.open(str(_as_stored_film(tmp_path / "other.avi"))) as container:
        found = find_repeats(path, container.streams.video[0])
    assert found == Repeats(coded=3, count=4, trailing=1)


@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_repeat_follows_a_coded_frame(sizes: list[int]) -> None:
    found = Repeats.of_sizes(iter(sizes))
    shown = "".join("c" if size else "e" for size in sizes).lstrip("e")
    assert (found.coded, found.count) == (shown.count("c"), shown.count("e"))
    assert found.trailing == len(shown) - len(shown.rstrip("e"))


@given(st.integers(1, 400), st.integers(0, 400), st.sampled_from([Fraction(30), Fraction(30000, 1001)]))
def test_the_rate_keeps_the_duration_to_a_tick(coded: int, count: int, stored: Fraction) -> None:
    rate = Repeats(coded, count).rate(stored)
    assert abs(coded / rate - (coded + count) / stored) < 1 / stored
    assert rate == stored if count == 0 else rate < stored


def test_theora_with_packets_without_bytes_is_whole() -> None:
    clip = transcode(OGV, Encoding())
    assert clip.num_frames == 8 and clip.num_frames / clip.fps == pytest.approx(10 / 25)
    steady = transcode(OGV, Encoding(fps=25))
    assert steady.num_frames == 10
    assert decode(steady.data).levels[0] == pytest.approx(decode(steady.data).levels[2], abs=2)


def _jhmdb() -> list[Path]:
    """Two clips of each of the first classes, and the shortest file."""
    if not JHMDB.is_dir():
        pytest.skip(f"{JHMDB} is not there")
    files = sorted(JHMDB.glob("*/*.avi"))
    return [*files[::150], min(files, key=lambda path: path.stat().st_size)]


def test_jhmdb_clips_are_whole_at_25_a_second(tmp_path: Path) -> None:
    for path in _jhmdb():
        sizes = _index(path)
        coded, empty = len(sizes) - sizes.count(0), sizes.count(0)
        clip = transcode(path, Encoding(preset="ultrafast", short_side=64))
        assert empty and (clip.num_frames, clip.seen["decoded_fraction"]) == (coded, 1.0)
        assert clip.fps == 25 and abs(clip.num_frames / clip.fps - len(sizes) / 30) < 1 / 30
        steady = transcode(path, Encoding(preset="ultrafast", short_side=64, fps=30))
        assert steady.num_frames == len(sizes)


def test_half_a_jhmdb_clip_is_damaged(tmp_path: Path) -> None:
    for path in _jhmdb()[:3]:
        half = tmp_path / path.name
        data = path.read_bytes()
        half.write_bytes(data[: len(data) // 2])
        result = process_video(Task(half, Processing(), tmp_path / "scratch"))
        assert isinstance(result, Reject) and result.reason == "damaged"


def test_jhmdb_in_its_layout_has_hmdb51s_split(tmp_path: Path) -> None:
    files = _jhmdb()
    (tmp_path / "jhmdb").mkdir()
    (tmp_path / "jhmdb" / "testTrainMulti_7030_splits").symlink_to(JHMDB / "testTrainMulti_7030_splits")
    for path in files:
        (tmp_path / "jhmdb" / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / "jhmdb" / path.parent.name / path.name).symlink_to(path)
    settings = ("--short-side", 64, "--preset", "ultrafast", "--workers", 1)
    result = make_shards(tmp_path / "jhmdb", "--out", tmp_path / "out", *settings)
    assert result.returncode == 0, result.stderr
    dataset = Dataset(tmp_path / "out")
    assert len(dataset) == len(set(files)) and set(dataset.info["rejected"]) == {"missing"}
    listed = collections.Counter(
        line.split()[1]
        for path in (JHMDB / "testTrainMulti_7030_splits").glob("*.txt")
        for line in path.read_text().splitlines()
        if Path(line.split()[0]).stem in {one.stem for one in files}
    )
    split = collections.Counter(dataset.column("split1"))
    assert (split["train"], split["test"]) == (listed["1"], listed["2"])
