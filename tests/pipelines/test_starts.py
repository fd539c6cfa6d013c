"""Where in the video views start: together, independently, or in groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.sampling import ViewParams, sample_params
from pipelines.views import Jitter, ViewSpec, single_start
from shards import InputError

T = 8
FRAMES = [[21, 30], [2, 11], [0, 9]]
BOXES = [
    [18, 6, 34, 38, 30, 6, 30, 38],
    [26, 10, 38, 30, 20, 4, 42, 44],
    [8, 16, 40, 32, 24, 0, 40, 42],
]
FLIPS = [[False, True], [True, True], [False, True]]
seeds = st.integers(0, 2**63 - 1)


def clips(**options) -> ViewSpec:
    return ViewSpec(**{"offsets": (tuple(range(T)),) * 2, "size": 32, "start_scope": "view", **options})


def params(spec: ViewSpec, length: int, rows: int = 2000, *, seed: int = 0) -> ViewParams:
    ones = np.ones(rows, dtype=np.int64)
    return sample_params(spec, np.arange(rows), length * ones, 64 * ones, 48 * ones, seed=seed, epoch=0)


def starts(found: ViewParams) -> NDArray[np.int32]:
    return found.frames[:, :, 0]


def test_views_start_independently_and_everywhere_they_fit() -> None:
    first, second = starts(params(clips(), 40)).T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    for found in (first, second):
        places, counts = np.unique(found, return_counts=True)
        assert places.tolist() == list(range(40 - T + 1)) and counts.min() > 2000 / len(places) / 3


def test_each_view_uses_the_room_of_its_own_length() -> None:
    long, short = tuple(range(0, 4 * T, 4)), tuple(range(T))
    found = starts(params(clips(offsets=(long, short)), 40))
    assert found.max(0).tolist() == [40 - (4 * T - 3), 40 - T]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), seeds)
def test_views_of_a_group_keep_their_distances(length: int, seed: int) -> None:
    halves = tuple(range(T)), tuple(range(T, 2 * T))
    found = params(clips(offsets=(halves[0], *halves), groups=(0, 1, 1)), length, 12, seed=seed).frames
    assert found.min() >= 0 and found.max() < length
    if length >= 2 * T:  # the second group fits: its halves are consecutive frames
        assert (np.diff(found[:, 1:].reshape(12, -1)) == 1).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), seeds, st.sampled_from(["repeat_last", "wrap"]))
def test_a_short_video_is_padded_as_ever(length: int, seed: int, padding: str) -> None:
    for view in params(clips(padding=padding), length, 6, seed=seed).frames.reshape(-1, T):
        numbers = view[0] + np.arange(T)
        expected = numbers % length if padding == "wrap" else np.minimum(numbers, length - 1)
        assert view.tolist() == expected.tolist()
        assert padding == "wrap" or view[0] == 0 or view[0] + T <= length


def test_the_span_is_that_of_the_longest_view() -> None:
    spec = clips(padding="error")
    assert spec.span == T
    with pytest.raises(InputError, match=f"{T - 1} frames is shorter than the {T}"):
        params(spec, T - 1)


def test_independent_starts_are_drawn_as_those_of_a_single_pace() -> None:
    """What stood for them before there was the option: all but the label is the same."""
    options = {"jitter": Jitter(), "box_scope": "view", "colour_scope": "frame", "rotation": 10.0}
    ours, theirs = (
        params(clips(**options, **more), 40, 50) for more in ({}, {"start_scope": "clip", "paces": (1.0,)})
    )
    for name in ("frames", "boxes", "flips", "angles", "colours"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.pace is None and theirs.pace is not None


def test_a_difference_may_start_independently() -> None:
    found = params(clips(modality="difference"), 20)
    assert found.frames.shape[-1] == T + 1 and found.frames.max() == 19
    assert (np.diff(found.frames, axis=-1) == 1).all()


def test_what_was_drawn_before_there_was_the_option_is_drawn_still() -> None:
    """Frames, boxes and flips of seed 3, epoch 1, rows 0 to 2, noted from the code before."""
    spec = ViewSpec(offsets=((0, 3, 6), (9, 12, 15)), size=32, box_scope="view")
    found = sample_params(
        spec, np.arange(3), np.array([40, 90, 10]), np.full(3, 64), np.full(3, 48), seed=3, epoch=1
    )
    assert found.frames[:, :, 0].tolist() == FRAMES
    assert found.boxes.reshape(3, -1).tolist() == BOXES
    assert found.flips.tolist() == FLIPS


def test_a_clip_that_is_placed_by_hand_has_one_start() -> None:
    together = clips(start_scope="clip", offsets=((0, 1), (2, 3)), circular=True)
    assert single_start(together).offsets == together.offsets and not single_start(together).circular
    for apart in (clips(groups=(0, 0)), clips(start_scope="clip", paces=(1, 2))):
        spec = single_start(apart)
        assert spec.offsets == apart.offsets[:1] and not spec.starts_differ and not spec.groups
