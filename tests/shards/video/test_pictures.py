"""Pictures have sides that are multiples of 16, and data sets that do not are named."""

import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from independent import ENVIRONMENT, ROOT, SHARED, decode, make_shards, render, said

from benchmarks import render as rendered
from shards import Dataset, demo
from shards.demo import motion
from shards.video.encode import Encoding
from shards.video.pictures import cropped, fitted, sides_remark, uneven, upright
from shards.video.transcode import transcode

SIDES = st.integers(16, 4000)
CHECK = ROOT / "tools" / "check_shards.py"


def size_of(width: int, height: int, short_side: int, multiple: int) -> tuple[int, int]:
    return cropped(*fitted(width, height, short_side, multiple), multiple)


@given(SIDES, SIDES, st.integers(16, 600))
@example(340, 256, 256)
@example(100, 75, 256)
@example(4000, 16, 256)
def test_the_short_side_is_the_largest_multiple_and_the_long_one_loses_less_than_one(
    width: int, height: int, short: int
) -> None:
    new = size_of(width, height, short, 16)
    short_now, long_now = sorted(new)
    assert short_now == max(n for n in range(16, 4001, 16) if n <= min(width, height, short))
    assert long_now % 16 == 0 and (new[0] >= new[1] if width > height else new[0] <= new[1])
    whole = max(width, height) * short_now / min(width, height)  # the long side, were nothing cropped
    assert -1 <= whole - long_now < 17  # scaling rounds it to an even number: by 1 at most
    assert new[0] <= width and new[1] <= height


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 1000))
def test_multiple_1_gives_the_sizes_of_before(width: int, height: int, short: int) -> None:
    scale = min(1.0, (short // 2 * 2) / min(width, height))
    sizes = [max(2, min(round(side * scale / 2) * 2, side // 2 * 2)) for side in (width, height)]
    for multiple in (1, 2):
        assert list(size_of(width, height, short, multiple)) == sizes


@given(st.integers(1, 15), st.integers(1, 5000))
def test_a_picture_too_small_for_a_multiple_keeps_what_it_has(short: int, long: int) -> None:
    assert size_of(long, short, 256, 16) == size_of(long, short, 256, 1)


@given(SIDES, SIDES, st.sampled_from([2, 8, 32, 64]))
def test_other_multiples(width: int, height: int, multiple: int) -> None:
    new = size_of(width, height, 256, multiple)
    if min(width, height) >= multiple:
        assert not new[0] % multiple and not new[1] % multiple and min(new) <= 256


@pytest.mark.parametrize(
    ("source", "short_side", "size"),
    [
        ((342, 256), 256, (336, 256)),
        ((340, 256), 256, (336, 256)),
        ((320, 240), 256, (320, 240)),
        ((456, 256), 256, (448, 256)),
        ((1920, 1080), 256, (448, 256)),  # 455.1 × 256
        ((100, 75), 256, (80, 64)),  # 85.3 × 64
        ((300, 212), 256, (288, 208)),  # 294.3 × 208
        ((320, 240), 148, (192, 144)),
        ((240, 320), 160, (160, 208)),  # 160 × 213.3
        ((64, 15), 256, (64, 14)),
    ],
)
def test_sizes_worked_by_hand(source: tuple[int, int], short_side: int, size: tuple[int, int]) -> None:
    assert size_of(*source, short_side, 16) == size


def noise(path: Path, width: int, height: int, degrees: int = 0) -> np.ndarray:
    """A lossless video of two noisy frames; the frames, (2, 1.5 H, W) uint8 4:2:0."""
    planes = np.random.default_rng(7).integers(16, 235, (2, height * 3 // 2, width), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 6, 1
        if degrees:
            stream.set_display_rotation(degrees)
        for one in planes:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(one, "yuv420p")))
        container.mux(stream.encode(None))
    return planes


def planes_of(frame: np.ndarray) -> list[np.ndarray]:
    """(1.5 H, W) → Y (H, W), Cb and Cr (H/2, W/2)."""
    height, width = frame.shape[0] * 2 // 3, frame.shape[1]
    chroma = frame[height:].reshape(2, height // 2, width // 2)
    return [frame[:height], *chroma]


@pytest.mark.parametrize(("width", "left"), [(98, 0), (100, 2), (102, 2), (104, 4), (106, 4), (110, 6)])
def test_the_crop_is_the_centre_sample_for_sample(tmp_path: Path, width: int, left: int) -> None:
    """96 columns of more, off the centre by one at most; 64 rows, so that nothing is scaled."""
    whole = noise(tmp_path / "in.mp4", width, 64)
    assert abs(left - (width - 96) / 2) <= 1
    with av.open(str(tmp_path / "in.mp4")) as container:
        frames = [frame.to_ndarray() for frame in upright(container.decode(video=0), Encoding())]
    assert len(frames) == 2
    for one, source in zip(frames, whole, strict=True):
        luma, cb, cr = planes_of(source)
        expected = [luma[:, left : left + 96], *(c[:, left // 2 : left // 2 + 48] for c in (cb, cr))]
        for plane, wanted in zip(planes_of(one), expected, strict=True):
            np.testing.assert_array_equal(plane, wanted)


def test_a_turned_picture_is_cropped_too(tmp_path: Path) -> None:
    whole = noise(tmp_path / "in.mp4", 104, 64, degrees=90)
    with av.open(str(tmp_path / "in.mp4")) as container:
        turned = next(container.decode(video=0)).rotation
        container.seek(0)
        frame = next(upright(container.decode(video=0), Encoding()))
    assert (frame.width, frame.height) == (64, 96)
    np.testing.assert_array_equal(
        planes_of(frame.to_ndarray())[0], np.rot90(whole[0, :64, 4:100], turned // 90)
    )


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "mjpeg"])
def test_cropped_videos_keep_their_tags_and_give_the_same_bytes(tmp_path: Path, codec: str) -> None:
    encoding = Encoding(codec=codec)
    uncropped = transcode(render(tmp_path / "96.mkv", frames=5, codec="ffv1"), encoding)
    source = render(tmp_path / "100.mkv", frames=5, size=(100, 70), codec="ffv1")
    clip = transcode(source, encoding)
    seen = decode(clip.data)
    assert (clip.width, clip.height) == (seen.width, seen.height) == (80, 64)
    assert seen.tags == decode(uncropped.data).tags and seen.frames == 5
    assert transcode(source, encoding).data == clip.data


def test_the_demo_and_the_rendered_set_have_multiples_of_16() -> None:
    assert demo.VERSION == "demo-v3" and (motion.WIDTH, motion.HEIGHT) == (11 * 16, 9 * 16)
    assert (rendered.WIDTH, rendered.HEIGHT) == (21 * 16, 16 * 16)


# --- data sets and commands ---------------------------------------------------------------------------------------


def settings_of(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())["settings"]


def command(tool: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(tool), *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "videos"
    for n, size in enumerate([(100, 76), (96, 64), (64, 100)]):
        render(folder / f"{n}.avi", frames=8, size=size, seed=n)
    return folder


@pytest.fixture(scope="module")
def plain(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made with --multiple 1: two of three rows have a side that is no multiple of 16."""
    out = tmp_path_factory.mktemp("plain") / "set"
    result = make_shards(videos, "--out", out, "--multiple", 1, "--workers", 1)
    assert result.returncode == 0, result.stderr
    return out


def test_default_shards_have_multiples_of_16_and_no_remark(videos: Path, tmp_path: Path) -> None:
    result = make_shards(videos, "--out", tmp_path / "set", "--workers", 1)
    assert result.returncode == 0 and "NVDEC" not in result.stdout
    dataset = Dataset(tmp_path / "set")
    sizes = set(zip(dataset.column("width").tolist(), dataset.column("height").tolist(), strict=True))
    assert sizes == {(80, 64), (96, 64), (64, 96)}
    assert settings_of(tmp_path / "set")["multiple"] == 16
    for row in range(3):
        seen = decode(dataset.read(row))
        assert (seen.width, seen.height) == (dataset.column("width")[row], dataset.column("height")[row])


def test_make_shards_and_check_shards_name_uneven_sides(videos: Path, plain: Path, tmp_path: Path) -> None:
    line = r"2 of 3 videos have a side that is no multiple of 16"
    again = make_shards(videos, "--out", plain, "--multiple", 1, "--workers", 1)
    assert again.returncode == 0 and "complete already" in again.stdout
    copied = Path(shutil.copytree(plain, tmp_path / "copied"))
    done = command(CHECK, copied, "--workers", 1)
    assert done.returncode == 0 and "nothing is wrong" in done.stdout  # it costs time, and is no fault
    for said_by in (again.stdout, done.stdout):
        (remark,) = [one for one in said_by.splitlines() if "NVDEC" in one]
        assert line in remark and "50 to 70 ms" in remark and "--multiple 16" in remark


def test_the_remark_counts_the_rows_that_are_asked_for(plain: Path) -> None:
    dataset = Dataset(plain)
    width, height = dataset.column("width"), dataset.column("height")
    bad = [row for row in range(3) if width[row] % 16 or height[row] % 16]
    assert np.flatnonzero(uneven(width, height)).tolist() == bad and len(bad) == 2
    assert sides_remark(width, height).startswith("2 of 3 videos")
    assert sides_remark(width[bad[:1]], height[bad[:1]]).startswith("1 of 1 videos")
    first = f"the first is {width[bad[1]]}×{height[bad[1]]}"
    assert first in sides_remark(width[bad[1:]], height[bad[1:]])
    good = np.setdiff1d(np.arange(3), bad)
    assert sides_remark(width[good], height[good]) == "" == sides_remark(width[:0], height[:0])


@given(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), max_size=30))
def test_uneven_is_what_division_says(sizes: list[tuple[int, int]]) -> None:
    width, height = np.array(sizes, np.int32).reshape(-1, 2).T
    expected = [math.gcd(w, 16) < 16 or math.gcd(h, 16) < 16 for w, h in sizes]
    assert uneven(width, height).tolist() == expected
    assert bool(sides_remark(width, height)) == any(expected)


def test_a_data_set_that_says_nothing_of_multiples_loads_and_is_not_added_to(
    videos: Path, plain: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(plain, tmp_path / "set"))
    info = json.loads((other / "dataset.json").read_text())
    del info["settings"]["multiple"]
    (other / "dataset.json").write_text(json.dumps(info))
    assert [decode(Dataset(other).read(row)).frames for row in range(3)] == [8, 8, 8]
    refused = make_shards(videos, "--out", other, "--workers", 1)
    (error,) = said(refused)
    assert refused.returncode == 2 and "made with --multiple None, not 16; give another --out" in error


def test_copied_videos_keep_their_size_and_are_named(tmp_path: Path) -> None:
    """Encoded frames cannot be cropped."""
    (tmp_path / "videos").mkdir()
    source = render(tmp_path / "in.mkv", frames=8, size=(100, 76), codec="ffv1")
    (tmp_path / "videos" / "1.mp4").write_bytes(transcode(source, Encoding(multiple=1)).data)
    result = make_shards(tmp_path / "videos", "--out", tmp_path / "set", "--copy", "--workers", 1)
    assert result.returncode == 0 and "1 of 1 videos have a side that is no multiple" in result.stdout
    dataset = Dataset(tmp_path / "set")
    assert json.loads(dataset.read(0, "json"))["copied"] is True
    assert (dataset.column("width")[0], dataset.column("height")[0]) == (100, 76)


def test_flow_has_the_cropped_width_and_twice_the_height(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV, an extra, is not installed")
    render(tmp_path / "videos" / "1.avi", frames=4, size=(104, 64))
    result = make_shards(tmp_path / "videos", "--out", tmp_path / "set", "--flow", "dis", "--workers", 1)
    assert result.returncode == 0, result.stderr
    flow = decode(Dataset(tmp_path / "set").read(0, "flow.mp4"))
    assert (flow.width, flow.height, flow.frames) == (96, 128, 4)


@pytest.mark.parametrize("flags", [[], ["--for", "dpc"], ["--for", "pace"]])
def test_real_videos_of_every_size(tmp_path: Path, flags: list[str]) -> None:
    """The torture set has odd and extreme sizes; only what is smaller than 16 keeps another size."""
    torture = SHARED / "torture"
    if not torture.is_dir():
        pytest.skip(f"{torture} is not there")
    # the sizes do not depend on the rate; fewer frames take less time
    quick = ("--fps", 5, "--preset", "ultrafast", "--workers", 2)
    result = make_shards(torture, "--out", tmp_path / "set", *flags, *quick)
    assert result.returncode == 0, result.stderr
    dataset = Dataset(tmp_path / "set")
    assert len(dataset) > 50
    for row in range(len(dataset)):
        seen, facts = decode(dataset.read(row)), json.loads(dataset.read(row, "json"))
        small = min(facts["source_width"], facts["source_height"]) < 16
        assert small or seen.width % 16 == seen.height % 16 == 0, facts
        with av.open(io.BytesIO(dataset.read(row))) as container:
            context = container.streams.video[0].codec_context
            next(container.decode(video=0))  # the coded size is known from here on
            assert small or (context.coded_width, context.coded_height) == (seen.width, seen.height)
