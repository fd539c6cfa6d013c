"""Every window of every video once, and the pixels in it are those that an independent computation finds."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import colour
from pipelines.backends import BackendSettings
from pipelines.eval_clips import EvalClips, EvalLayout, EvalSampler, eval_params
from pipelines.loader import Loader
from pipelines.views import Jitter, ViewSpec
from shards import Dataset
from tests.evaluation.rendered import Video, write_set
from tests.pipelines.reference import decoded_views

SPEC = ViewSpec(offsets=((0, 2), (4, 6)), size=16, crop=0.5, jitter=Jitter(), flip=0.5)


def test_starts_of_worked_cases() -> None:
    assert EvalLayout(hop=3).starts(14, 7).tolist() == [0, 3, 6]  # 9 would need frames to 15
    assert EvalLayout(count=3).starts(17, 7).tolist() == [0, 5, 10]
    assert EvalLayout(count=10).starts(8, 7).tolist() == [0, 1]  # only two starts there are
    assert EvalLayout(count=1).starts(17, 7).tolist() == [5]
    for layout in (EvalLayout(hop=3), EvalLayout(count=10)):
        assert layout.starts(1, 7).tolist() == [0]


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 130), st.integers(1, 20))
def test_windows_are_distinct_and_fit(num_frames: int, span: int, number: int) -> None:
    for layout in (EvalLayout(count=number), EvalLayout(hop=number)):
        starts = layout.starts(num_frames, span)
        assert len(starts) >= 1 and (np.diff(starts) > 0).all() and starts[0] >= 0
        assert starts[-1] + span <= num_frames or starts.tolist() == [0]


@pytest.mark.parametrize("count, hop, crops", [(0, 0, 1), (2, 3, 1), (1, 0, 7)])
def test_a_senseless_layout_is_refused(count: int, hop: int, crops: int) -> None:
    with pytest.raises(ValueError, match="layout"):
        EvalLayout(count, hop, crops)  # type: ignore[arg-type]


def test_ten_crops_show_the_corners_and_their_mirror_images(data: Path) -> None:
    """Against whole frames decoded, cut, scaled and normalised one by one in floating point."""
    dataset = Dataset(data)
    row = 3  # 15 frames
    windows = EvalClips.of(dataset, [row], SPEC, EvalLayout(hop=4, crops=10))
    assert windows.start.tolist() == [0] * 10 + [4] * 10 + [8] * 10
    params = eval_params(SPEC, dataset, windows)
    lefts, tops = params.boxes[:5, 0, 0].tolist(), params.boxes[:5, 0, 1].tolist()
    assert (params.boxes[:, :, 2:] == 18).all()  # half of 36
    assert list(zip(lefts, tops, strict=True)) == [(16, 10), (0, 0), (30, 0), (0, 18), (30, 18)]
    views = {}
    for batch in Loader(dataset, EvalSampler(dataset, windows, SPEC, 7)):
        views |= dict(zip(batch["index"].tolist(), batch["views"].numpy(), strict=True))
    assert sorted(views) == list(range(30))
    video = dataset.read(row)
    for place in range(30):
        rgb = decoded_views(video, params.sample(place), 16) / 255
        wanted = (rgb - np.array(colour.IMAGENET_MEAN)) / np.array(colour.IMAGENET_STD)
        got = views[place].transpose(0, 2, 3, 4, 1).reshape(4, 16, 16, 3)
        assert np.abs(got - wanted).mean() < 0.01 and np.abs(got - wanted).max() < 0.08
        if place % 10 >= 5:
            straight = views[place - 5][..., ::-1]
            assert np.abs(views[place] - straight).max() < 0.08


def test_a_short_video_repeats_its_last_frame(data: Path) -> None:
    dataset = Dataset(data)
    row = 13  # 5 frames
    params = eval_params(SPEC, dataset, EvalClips.of(dataset, [row], SPEC, EvalLayout(hop=1)))
    assert params.frames.tolist() == [[[0, 2], [4, 4]]]


def test_what_a_batch_holds_does_not_depend_on_who_makes_it(data: Path) -> None:
    dataset = Dataset(data)
    windows = EvalClips.of(dataset, range(len(dataset)), SPEC, EvalLayout(hop=2))
    whole = list(Loader(dataset, EvalSampler(dataset, windows, SPEC, 5)))
    assert np.concatenate([batch["index"] for batch in whole]).tolist() == list(range(len(windows)))
    mine_only = EvalSampler(dataset, windows, SPEC, 5, [3, 1])
    alone = list(Loader(dataset, mine_only, BackendSettings(threads=1), prefetch=0))
    for mine, number in zip(alone, (3, 1), strict=True):
        assert mine["epoch"] == number
        assert (mine["views"] == whole[number]["views"]).all()


def test_a_damaged_video_is_left_out_and_named(tmp_path: Path) -> None:
    videos = [Video(0, "test"), Video(1, "test", 40, damaged=True), Video(2, "test")]
    dataset = Dataset(write_set(tmp_path / "set", videos))
    windows = EvalClips.of(dataset, [0, 1, 2], SPEC, EvalLayout(hop=3))
    loader = Loader(dataset, EvalSampler(dataset, windows, SPEC, 4))
    seen = np.concatenate([batch["index"] for batch in loader])
    assert seen.tolist() == np.flatnonzero(windows.row != 1).tolist()
    assert list(loader.failed) == [1] and loader.failed[1]
    last = next(Loader(dataset, EvalSampler(dataset, windows, SPEC, len(windows))))
    assert set(windows.row[last["index"]].tolist()) == {0, 2}
