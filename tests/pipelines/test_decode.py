"""Views decoded by FFmpeg against a floating-point computation, and frame numbers against what the frames show."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.decode import decode_frames, decode_views
from pipelines.sampling import ViewParams
from pipelines.views import ViewSpec
from shards import Dataset
from shards.tar import indexed
from shards.video.encode import Encoding
from shards.video.mp4 import DecodeError
from shards.video.transcode import transcode
from tests.pipelines.conftest import FRAMES, NUMBERED
from tests.pipelines.reference import REAL, decoded_views, numbered_video, params_for, read_numbers

SPEC = ViewSpec(offsets=((0, 3, 9), (16, 17, 30)), size=64, box_scope="view")


def hand_params(
    frames: list[list[int]], box: tuple[int, int, int, int] = (0, 0, 128, 64), flip: bool = False
) -> ViewParams:
    V, T = np.shape(frames)
    return ViewParams(
        frames=np.array(frames, dtype=np.int32),
        boxes=np.tile(np.array(box, dtype=np.int32), (V, 1)),
        flips=np.full(V, flip),
        angles=np.zeros(V, np.float32),
        colours=np.zeros((V, T, 3, 4), np.float32),
    )


def assert_within_rounding(found: np.ndarray, expected: np.ndarray) -> None:
    error = found - expected
    assert np.abs(error).mean() <= 0.3  # rounding alone gives 0.25
    assert np.percentile(np.abs(error), 99) <= 1
    assert abs(error.mean()) <= 0.1  # neither darker nor brighter
    assert expected.std() > 5  # there is something to see


@pytest.mark.parametrize("size", [32, 64, 128])
def test_views_equal_a_floating_point_computation(dataset: Dataset, size: int) -> None:
    spec = replace(SPEC, size=size)
    flips = set()
    for row in range(0, 18, 3):
        params = params_for(spec, dataset, [row], seed=size).sample(0)
        views = decode_views(dataset.read(row), params, size)
        assert (views.shape, views.dtype) == ((6, size, size, 3), np.uint8)
        assert views.transpose(0, 3, 1, 2).flags.c_contiguous  # planes, which transforms.numpy is fast on
        assert_within_rounding(views, decoded_views(dataset.read(row), params, size))
        flips |= set(params.flips.tolist())
    assert flips == {False, True}


def test_boxes_of_one_size_in_many_places(dataset: Dataset) -> None:
    """Frames in several views, each with its own place of the same box, mirrored or not."""
    spec = replace(SPEC, offsets=((0, 3), (3, 0), (0, 9), (9, 0)), crop=0.5)
    params = params_for(spec, dataset, [5], seed=8).sample(0)
    assert (
        len(np.unique(params.boxes[:, 2:], axis=0)) == 1 and len(np.unique(params.boxes[:, :2], axis=0)) == 4
    )
    assert params.flips.any() and not params.flips.all()
    found, expected = decode_views(dataset.read(5), params, 64), decoded_views(dataset.read(5), params, 64)
    for view, reference in zip(found, expected, strict=True):
        assert_within_rounding(view, reference)


@given(
    frames=st.lists(st.lists(st.integers(0, FRAMES - 1), min_size=3, max_size=3), min_size=4, max_size=4),
    looks=st.lists(st.sampled_from([(0, 0, False), (16, 8, False), (16, 8, True)]), min_size=4, max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_a_view_does_not_depend_on_the_others(
    numbered: bytes, frames: list[list[int]], looks: list[tuple[int, int, bool]]
) -> None:
    """Views through one box are cut together, wherever they stand and whatever frames they share or repeat."""
    together = replace(
        hand_params(frames),
        boxes=np.array([(left, top, 48, 48) for left, top, _ in looks], dtype=np.int32),
        flips=np.array([flip for *_, flip in looks]),
    )
    found = decode_views(numbered, together, 32).reshape(4, 3, 32, 32, 3)
    for view, (numbers, (left, top, flip)) in enumerate(zip(frames, looks, strict=True)):
        alone = decode_views(numbered, hand_params([numbers], (left, top, 48, 48), flip), 32)
        assert np.array_equal(found[view], alone)


@pytest.mark.parametrize("box", [(0, 0, 176, 144), (174, 142, 2, 2), (86, 40, 12, 90), (18, 2, 158, 10)])
def test_extreme_boxes(dataset: Dataset, box: tuple[int, int, int, int]) -> None:
    params = hand_params([[0, 20]], box, flip=True)
    found, expected = decode_views(dataset.read(4), params, 48), decoded_views(dataset.read(4), params, 48)
    assert np.abs(found - expected).mean() <= 0.5 and np.percentile(np.abs(found - expected), 99) <= 1.5


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real video in {REAL}")
def test_views_of_real_video(tmp_path: Path) -> None:
    sources = sorted(REAL.rglob("*.avi"))
    for source in (sources[0], sources[len(sources) // 2]):
        clip = transcode(source, Encoding(short_side=128, preset="veryfast"))
        W, H = clip.width, clip.height
        boxes = ((0, 0, W, H), (2 * (W // 8), 2 * (H // 8), 2 * (W // 4), 2 * (H // 3)))
        for box, flip in zip(boxes, (False, True), strict=True):
            params = hand_params([[0, 7, clip.num_frames - 1]], box, flip)
            assert_within_rounding(
                decode_views(clip.data, params, 112), decoded_views(clip.data, params, 112)
            )


def test_flipping_mirrors_left_to_right(dataset: Dataset) -> None:
    plain, mirrored = (
        decode_views(dataset.read(0), hand_params([[5]], (8, 8, 96, 96), f), 48) for f in (False, True)
    )
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])


def shown(video: bytes, frames: list[list[int]]) -> list[int]:
    return read_numbers(decode_views(video, hand_params(frames), 64))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, NUMBERED - 1), min_size=1, max_size=12))
def test_the_frames_asked_for_come_in_the_order_asked_for(numbered: bytes, numbers: list[int]) -> None:
    assert shown(numbered, [numbers]) == numbers


@pytest.mark.parametrize(
    "frames",
    [
        [[0]],
        [[NUMBERED - 1]],
        [[0, NUMBERED - 1]],
        [[NUMBERED - 1, 0], [0, NUMBERED - 1]],
        [[15, 16, 17], [31, 32, 33]],  # about key frames
        [[0, 48], [97, 146]],
        [[13, 16, 18], [29, 33, 47]],  # gaps over a key frame that begin 3, 2 and 14 frames before it
        [[5, 5, 5], [5, 5, 5]],
        [[228, 229, 0], [1, 2, 3]],  # a loop
        [list(range(0, NUMBERED, 2))],
    ],
)
def test_tables_of_frames(numbered: bytes, frames: list[list[int]]) -> None:
    assert shown(numbered, frames) == [n for view in frames for n in view]


@pytest.mark.parametrize(("gop", "b_frames"), [(1, 0), (5, 0), (250, 0), (16, 1), (16, 2), (7, 3), (250, 2)])
def test_frame_numbers_whatever_the_group_of_pictures(tmp_path: Path, gop: int, b_frames: int) -> None:
    video = numbered_video(tmp_path / "v.mp4", 60, gop=gop, b_frames=b_frames)
    for stride in range(1, 10):
        for first in range(0, 60, 1 if stride > 8 else 5):
            numbers = list(range(first, 60, stride))
            assert shown(video, [numbers]) == numbers
    assert shown(video, [[59, 0, 30, 29, 1]]) == [59, 0, 30, 29, 1]


def test_frames_that_neither_the_clip_nor_another_frame_needs_are_not_decoded(dataset: Dataset) -> None:
    video = transcode(dataset.read(0), Encoding(short_side=144)).data
    damaged = hurt(video, 2)  # packets: frames 0, 3, 1, 2, 6, …
    box = (0, 0, 176, 144)
    needed = hand_params([[0, 2, 3, 4, 6]], box)
    assert np.array_equal(decode_views(damaged, needed, 32), decode_views(video, needed, 32))
    with pytest.raises(DecodeError):
        decode_views(damaged, hand_params([[0, 1]], box), 32)


def test_a_frame_beyond_the_end(numbered: bytes) -> None:
    for frames in ([[NUMBERED]], [[0, NUMBERED + 500]], [[NUMBERED - 1, NUMBERED]]):
        with pytest.raises(DecodeError, match=f"frame {frames[0][-1]} is not there"):
            decode_views(numbered, hand_params(frames), 64)


@pytest.mark.parametrize("garbage", [b"", b"<html>404</html>" * 50, bytes(5000), bytes(range(256)) * 40])
def test_garbage(garbage: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_views(garbage, hand_params([[0]]), 64)


def test_a_truncated_file(dataset: Dataset) -> None:
    video, everything = dataset.read(0), hand_params([list(range(FRAMES))], (0, 0, 176, 144))
    assert len(decode_views(video, everything, 16)) == FRAMES
    for kept in (0.02, 0.3, 0.8):
        with pytest.raises(DecodeError):
            decode_views(video[: int(kept * len(video))], everything, 16)


def packets(video: bytes) -> list[tuple[int, int]]:
    """(place in the file, bytes) of each encoded frame."""
    with av.open(io.BytesIO(video)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def hurt(video: bytes, frame: int) -> bytes:
    """The second half of one encoded frame set to zero, which FFmpeg conceals or does not notice by default."""
    place, size = packets(video)[frame]
    damaged = bytearray(video)
    damaged[place + size // 2 : place + size] = bytes(size - size // 2)
    return bytes(damaged)


def decode_all(video: bytes) -> None:
    for _ in decode_frames(video, list(range(indexed(video).index.num_frames))):
        pass


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_concealed_damage_is_an_error_where_it_is_seen(
    dataset: Dataset, codec: Literal["h264", "mjpeg"]
) -> None:
    video = transcode(dataset.read(0), Encoding(codec=codec, short_side=144, gop=8)).data
    whole_frame = (0, 0, 176, 144)
    sound = decode_views(video, hand_params([[0, 15, 24, 39]], whole_frame), 32)
    damaged = hurt(video, 17)
    with av.open(io.BytesIO(damaged)) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES  # FFmpeg says nothing
    for frames in ([17], [16, 18], list(range(FRAMES))):
        with pytest.raises(DecodeError):
            decode_views(damaged, hand_params([frames], whole_frame), 32)
    with pytest.raises(DecodeError):
        decode_all(damaged)
    decode_all(video)
    # what steps over it is as it was
    np.testing.assert_array_equal(decode_views(damaged, hand_params([[0, 15]], whole_frame), 32), sound[:2])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real video in {REAL}")
@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "mjpeg"])
def test_healthy_real_videos_are_never_called_damaged(codec: Literal["h264", "hevc", "vp9", "mjpeg"]) -> None:
    web = [path for path in (REAL.parent / "torture" / "torchvision").glob("*") if path.suffix != ""]
    for source in [*sorted(REAL.rglob("*.avi"))[::60], *sorted(web)[:3]]:
        decode_all(transcode(source, Encoding(codec=codec, short_side=64, preset="ultrafast")).data)


@pytest.mark.parametrize(
    "box", [(0, 0, 130, 64), (0, 0, 128, 66), (2, 0, 128, 64), (0, 62, 16, 4), (400, 0, 16, 16)]
)
def test_a_box_beyond_the_real_frame(numbered: bytes, box: tuple[int, int, int, int]) -> None:
    with pytest.raises(DecodeError, match=r"128×64 and the box ends at"):
        decode_views(numbered, hand_params([[3]], box), 64)


def test_a_flow_box_beyond_its_own_half(numbered: bytes) -> None:
    with pytest.raises(DecodeError, match=r"128×32"):
        decode_views(numbered, hand_params([[3]], (0, 0, 64, 34)), 64, "flow")
