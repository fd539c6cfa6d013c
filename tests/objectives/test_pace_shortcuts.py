"""Nothing but motion may tell the pace: not wraps, not padding, not where in the video a clip lies."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.pace import Pace, PaceConfig
from pipelines.sampling import ViewParams, sample_params

N = 4000


def params(length: int, seed: int = 0, rows: int = N, **options: object) -> tuple[ViewParams, np.ndarray]:
    """The draw of a config's spec over videos of one length, and the label of each of its clips (rows, V)."""
    spec, ones = Pace.view_spec(PaceConfig(**options)), np.ones(rows, dtype=np.int64)  # type: ignore[arg-type]
    d = sample_params(spec, np.arange(rows), length * ones, 176 * ones, 144 * ones, seed=seed, epoch=0)
    assert d.pace is not None
    return d, d.pace


@settings(deadline=None, max_examples=40)
@given(
    extra=st.integers(0, 200),
    padding=st.sampled_from(["wrap", "repeat_last"]),
    seed=st.integers(0, 2**63 - 1),
)
def test_clips_of_long_enough_videos_are_neither_wrapped_nor_padded_at_any_pace(
    extra: int, padding: str, seed: int
) -> None:
    d, pace = params(61 + extra, seed, rows=8, padding=padding)
    assert (np.diff(d.frames, axis=-1) == pace[..., None] + 1).all()


def test_the_paces_a_video_gets_do_not_depend_on_its_length() -> None:
    labels = [params(length, rows=50)[1] for length in (10, 61, 144, 5000)]
    assert all((other == labels[0]).all() for other in labels)


@pytest.mark.parametrize("length", [61, 90, 144])
def test_no_pace_is_nearer_to_either_end_of_the_video(length: int) -> None:
    """The start is uniform over all places where the clip fits: so is the rest behind it, whatever the pace."""
    d, pace = params(length)
    for label in range(4):
        clips = d.frames[pace == label]
        room = length - 15 * (label + 1)
        for gap in (clips[:, 0], length - 1 - clips[:, -1]):
            counts = np.bincount(gap, minlength=room)
            assert len(counts) == room  # every place, and none beyond
            expected = len(clips) / room
            assert ((counts - expected) ** 2 / expected).sum() < room + 5 * (2 * room) ** 0.5 + 5  # χ²


def test_clips_of_all_paces_lie_about_the_middle() -> None:
    d, pace = params(144)
    middles = [(d.frames[pace == label].mean(-1) - 71.5).mean() for label in range(4)]
    assert max(map(abs, middles)) < 3  # frames; a deviation of the mean is 0.9 at most


@pytest.mark.parametrize("wrap", [False, True])
def test_boxes_flips_and_colours_are_drawn_alike_for_all_paces(wrap: bool) -> None:
    d, pace = params(144, circular=wrap)
    sides = {
        "left": d.boxes[..., 0],
        "top": d.boxes[..., 1],
        "flip": d.flips,
        "jitter": d.colours[..., 0, 0, -1],
        "change": np.abs(np.diff(d.colours[..., 0, -1], axis=-1)).mean(-1),
    }
    for name, values in sides.items():
        groups = [values[pace == label].astype(float) for label in range(4)]
        for a, b in combinations(groups, 2):
            error = (a.var() / len(a) + b.var() / len(b)) ** 0.5
            assert abs(a.mean() - b.mean()) <= 5 * error, name


def test_the_released_codes_wraps_do_tell_it() -> None:
    """What the test above it guards against, seen: with --circular fast clips run over the end four times as often."""
    d, pace = params(144, circular=True)
    shares = [(np.diff(d.frames[pace == label], axis=-1) < 0).any(-1).mean() for label in range(4)]
    assert shares == pytest.approx([15 * p / 144 for p in (1, 2, 3, 4)], abs=0.04)
