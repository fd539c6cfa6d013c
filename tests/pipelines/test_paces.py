"""Paces: balanced labels, starts of their own, frames as the paper's examples have them, loops and wraps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sampling import ViewParams, sample_params
from pipelines.views import ViewSpec, paced
from shards import InputError

PACES = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)
lengths = st.integers(1, 200)
seeds = st.integers(0, 2**63 - 1)


def pace_spec(**options) -> ViewSpec:
    return ViewSpec(
        **{
            "offsets": (tuple(range(16)),) * 2,
            "size": 32,
            "paces": (1, 2, 3, 4),
            "padding": "wrap",
            **options,
        }
    )


def params(spec: ViewSpec, length: int, rows: int = 40, *, seed: int = 0) -> ViewParams:
    ones = np.ones(rows, dtype=np.int64)
    return sample_params(spec, np.arange(rows), length * ones, 64 * ones, 64 * ones, seed=seed, epoch=0)


def taken(pace: float, start: int, count: int) -> list[int]:
    """The paper's words: every p-th frame; at 1/q a frame, then q − 1 blanks filled with the preceding frame."""
    if pace >= 1:
        return [start + round(pace) * t for t in range(count)]
    return [start + n for n in range(count) for _ in range(round(1 / pace))][:count]


def test_the_papers_examples() -> None:
    assert (11 + paced(range(5), 3)).tolist() == [11, 14, 17, 20, 23]
    assert (1 + paced(range(5), 1)).tolist() == [1, 2, 3, 4, 5]
    assert paced(range(5), 1 / 2).tolist() == [0, 0, 1, 1, 2]  # places 1, 3, 5 are filled, 2 and 4 repeat
    assert paced(range(64), 1 / 3).tolist() == [t // 3 for t in range(64)]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([(1, 2, 3, 4), PACES, (2,)]), lengths, seeds)
def test_every_view_shows_its_pace_from_a_start_of_its_own(paces, length, seed) -> None:
    d = params(pace_spec(paces=paces), length, 12, seed=seed)
    assert d.pace is not None and d.pace.shape == (12, 2) and d.pace.dtype == np.int64
    assert d.frames.min() >= 0 and d.frames.max() < length
    for sample, view in np.ndindex(12, 2):
        frames, pace = d.frames[sample, view].tolist(), paces[d.pace[sample, view]]
        start = frames[0]
        assert frames == [n % length for n in taken(pace, start, 16)]
        if taken(pace, 0, 16)[-1] < length:
            assert frames == sorted(frames)  # it fits, so it does not wrap


def test_views_have_starts_and_paces_of_their_own() -> None:
    d = params(pace_spec(), 300, 400)
    assert d.pace is not None
    same = (d.pace[:, 0] == d.pace[:, 1]).mean()
    assert abs(same - 1 / 4) < 0.07
    assert np.abs(np.corrcoef(d.frames[:, 0, 0], d.frames[:, 1, 0])[0, 1]) < 0.15


def test_paces_are_balanced_whatever_the_videos_length() -> None:
    labels = [params(pace_spec(), length, 2000).pace for length in (10, 70, 1000)]
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[0], labels[2])
    shares = np.bincount(np.asarray(labels[0]).ravel(), minlength=4) / 4000
    assert np.abs(shares - 0.25).max() < 0.03


def wrapped(d: ViewParams) -> np.ndarray:
    """(B, V): whether the clip runs over the video's end."""
    return (np.diff(d.frames, axis=-1) < 0).any(-1)


def test_wraps_do_not_tell_the_pace_unless_asked_for() -> None:
    fits = params(pace_spec(), 61, 1000)  # 60 frames further at pace 4: it just fits
    assert not wrapped(fits).any()
    released = params(pace_spec(circular=True), 122, 3000)
    assert released.pace is not None
    for label, pace in enumerate((1, 2, 3, 4)):
        chosen = released.pace == label
        assert abs(wrapped(released)[chosen].mean() - 15 * pace / 122) < 0.05
        assert released.frames[chosen][:, 0].max() > 115  # it starts anywhere
    steps = np.diff(released.frames, axis=-1) % 122
    assert (steps == (released.pace + 1)[..., None]).all()


def test_clips_longer_than_their_video_start_anywhere() -> None:
    """Section 3.1: two looping clips of one pace start differently, and no start is preferred."""
    d = params(pace_spec(paces=(3, 4)), 40, 1000)
    assert d.pace is not None and wrapped(d).all()
    starts = d.frames[..., 0]
    alike = d.pace[:, 0] == d.pace[:, 1]
    assert (starts[alike][:, 0] != starts[alike][:, 1]).mean() > 0.9
    for label in (0, 1):
        places, counts = np.unique(starts[d.pace == label], return_counts=True)
        assert places.tolist() == list(range(40)) and counts.max() < 3 * counts.mean()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), seeds)
def test_the_released_loop_goes_on_at_the_first_frame(length: int, seed: int) -> None:
    """loop_load of the released code, frame by frame."""
    d = params(pace_spec(circular=True, loop="restart"), length, 3, seed=seed)
    assert d.pace is not None
    for frames, pace in zip(d.frames.reshape(-1, 16).tolist(), d.pace.ravel() + 1, strict=True):
        start, step, expected = frames[0], 0, []
        for _ in range(16):
            expected.append(start + step * pace)
            start, step = (0, 0) if start + (step + 1) * pace >= length else (start, step + 1)
        assert frames == expected


def test_starts_use_all_the_room_of_their_pace() -> None:
    d = params(pace_spec(paces=(1, 4)), 64, 2000)
    assert d.pace is not None
    for label, room in enumerate((64 - 16 + 1, 64 - 61 + 1)):
        starts, counts = np.unique(d.frames[d.pace == label][:, 0], return_counts=True)
        assert starts.tolist() == list(range(room)) and counts.min() > 2000 / room / 3


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 2**39), min_size=2, max_size=6), seeds, st.booleans())
def test_a_sample_draws_the_same_alone(rows, seed, wrap) -> None:
    spec, ones = pace_spec(circular=wrap), np.ones(len(rows), dtype=np.int64)
    lengths = 20 + np.array(rows) % 90
    whole = sample_params(spec, np.array(rows), lengths, 64 * ones, 64 * ones, seed=seed, epoch=2)
    for i, row in enumerate(rows):
        alone = sample_params(
            spec, np.array([row]), lengths[i : i + 1], 64 * ones[:1], 64 * ones[:1], seed=seed, epoch=2
        )
        np.testing.assert_array_equal(alone.frames[0], whole.frames[i])
        np.testing.assert_array_equal(alone.sample(0).pace, whole.sample(i).pace)


def test_the_span_is_that_of_the_fastest_pace() -> None:
    assert pace_spec().span == 61 and pace_spec(paces=PACES).span == 46 and pace_spec(paces=(0.5,)).span == 8
    with pytest.raises(InputError, match="60 frames is shorter than the 61"):
        params(pace_spec(padding="error"), 60)
