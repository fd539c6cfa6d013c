"""The decode ceiling decodes what is needed, run-up included, and no more."""

from itertools import pairwise

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import decode
from tests.pipelines.reference import numbered_video
from tools.bench.ceiling import frames_decoded, stretches

GOP = 16


@pytest.fixture(scope="module", params=[0, 2])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, bytes]:
    """With how many B-frames, and the video: with two, frames 0, 3, 6, 9, 12, 15 of each 16 are referred to."""
    path = tmp_path_factory.mktemp("numbered") / "video.mp4"
    return request.param, numbered_video(path, 100, gop=GOP, b_frames=request.param)


@pytest.mark.parametrize(
    ("numbers", "decoded"),
    [
        ([0], {0: 1, 2: 1}),
        ([20], {0: 5, 2: 4}),  # from the key frame 16; 19, 22, 20
        ([9, 15], {0: 16, 2: 6}),  # the key frame 16 is decoded at 15's time
        ([15, 16], {0: 16 + 1, 2: 6 + 1}),
        ([13, 16], {0: 14 + 1, 2: 7 + 1}),  # 12, 15, 13: nothing is saved by seeking to 16
        ([3, 19], {0: 4 + 4, 2: 2 + 2}),
        ([3, 20], {0: 4 + 5, 2: 2 + 4}),
        ([0, 40, 99], {0: 1 + 9 + 4, 2: 1 + 5 + 2}),  # key frames 0, 32 and 96; 35, 38, 41, 40; 99
        (list(range(100)), {0: 100, 2: 100}),
    ],
)
def test_frames_decoded(
    video: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch, numbers: list[int], decoded: dict[int, int]
) -> None:
    b_frames, data = video
    assert frames_decoded(data, numbers, GOP) == decoded[b_frames]
    checked: list[av.VideoFrame] = []
    monkeypatch.setattr(decode, "_check_frame", checked.append)  # the loader's decoder looks at every frame
    assert [n for n, _ in decode.decode_frames(data, numbers)] == numbers
    assert len(checked) == decoded[b_frames]


@given(st.sets(st.integers(0, 500), min_size=1), st.integers(1, 40))
def test_stretches_hold_every_number_and_split_where_a_key_frame_lies_ahead(
    chosen: set[int], gop: int
) -> None:
    numbers = sorted(chosen)
    found = list(stretches(numbers, gop))
    assert [n for stretch in found for n in stretch] == numbers
    keys = range(0, 501, gop)
    ahead = [any(now + 2 < key <= then for key in keys) for now, then in pairwise(numbers)]
    assert len(found) == 1 + sum(ahead)
    assert all(any(one[-1] + 2 < key <= other[0] for key in keys) for one, other in pairwise(found))
