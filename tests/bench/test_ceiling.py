"""The decode ceiling decodes what is needed, run-up included, and no more."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipelines.reference import numbered_video
from tools.bench.ceiling import frames_decoded, stretches

GOP = 16


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return numbered_video(tmp_path_factory.mktemp("numbered") / "video.mp4", 100, gop=GOP)


@pytest.mark.parametrize(
    ("numbers", "decoded"),
    [
        ([0], 1),
        ([20], 5),  # from the key frame 16
        ([15, 16], 16 + 1),
        ([3, 19], 20),  # a gap of 16 holds a key frame, but seeking would skip nothing
        ([3, 20], 4 + 5),
        ([0, 40, 99], 1 + 9 + 4),  # key frames 0, 32 and 96
        (list(range(100)), 100),
    ],
)
def test_frames_decoded(video: bytes, numbers: list[int], decoded: int) -> None:
    assert frames_decoded(video, numbers, GOP) == decoded


@given(st.sets(st.integers(0, 500), min_size=1), st.integers(1, 40))
def test_stretches_hold_every_number_and_split_at_wide_gaps_only(chosen: set[int], gop: int) -> None:
    numbers = sorted(chosen)
    found = list(stretches(numbers, gop))
    assert [n for n in numbers if any(first <= n <= last for first, last in found)] == numbers
    assert len(found) == 1 + int((np.diff(numbers) > gop).sum())
    assert all(later[0] - earlier[1] > gop for earlier, later in pairwise(found))
