"""The batches of an evaluation: each clip once, whole videos together, however they are divided among processes."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.backends import BackendSettings
from pipelines.eval_clips import ClipSampler, EvalClips, EvalLayout, EvalSampler, batch_bounds, eval_params
from pipelines.loader import Loader
from pipelines.views import Jitter, ViewSpec
from shards import Dataset
from tests.pipelines.reference import assert_same_params, made, render
from tests.pipelines.test_loader import damaged

SPEC = ViewSpec(offsets=((0, 2, 4), (6, 8, 10)), size=32, jitter=Jitter(), rotation=5, box_scope="view")


@st.composite
def clips_of_videos(make) -> EvalClips:
    """Up to twelve videos, each once, of up to ten clips."""
    rows = make(st.lists(st.integers(0, 17), unique=True, max_size=12))
    counts = make(st.lists(st.integers(1, 10), min_size=len(rows), max_size=len(rows)))
    row = np.repeat(np.array(rows, np.int64), np.array(counts, np.int64))
    return EvalClips(row, np.arange(len(row)) % 7, np.zeros(len(row), np.int64))


@settings(deadline=None, max_examples=200)
@given(clips_of_videos(), st.integers(1, 12))
def test_batches_hold_whole_videos(clips: EvalClips, batch_size: int) -> None:
    """Against a plain walk: a video goes into the batch where it fits; only one that fits into none is divided."""
    expected: list[list[int]] = []
    for row, group in groupby(clips.row.tolist()):
        video = [row for _ in group]
        if expected and len(expected[-1]) + len(video) <= batch_size:
            expected[-1] += video
            continue
        expected += [video[first : first + batch_size] for first in range(0, len(video), batch_size)]
    bounds = batch_bounds(clips.row, batch_size)
    found = [clips.row[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    assert found == expected


@settings(deadline=None, max_examples=60, suppress_health_check=[])
@given(clips=clips_of_videos(), batch_size=st.integers(1, 12), processes=st.integers(1, 4))
def test_each_clip_is_shown_once_on_any_number_of_processes(
    demo_folder: Path, clips: EvalClips, batch_size: int, processes: int
) -> None:
    dataset = Dataset(demo_folder)
    whole = EvalSampler(dataset, clips, SPEC, batch_size)
    expected = eval_params(SPEC, dataset, clips) if len(clips) else None
    shown = []
    for process in range(processes):
        own = range(process, whole.count, processes)
        sampler = EvalSampler(dataset, clips, SPEC, batch_size, own)
        for position, number in enumerate(own):
            batch, other = sampler.batch(position), whole.batch(number)
            assert batch is not None and other is not None
            assert batch.whole.tolist() == other.whole.tolist()
            assert len(batch.samples) <= whole.max_samples
            assert len({sample.row for sample in batch.samples}) == len(batch.samples)  # decoded once
            for sample in batch.samples:
                assert sample.clips == len(sample.index) <= whole.max_clips
                assert (clips.row[sample.index] == sample.row).all()
                for place, params in zip(sample.index, sample.params.clips(sample.clips), strict=True):
                    assert expected is not None
                    assert_same_params(params, expected.sample(int(place)))
                shown += sample.index.tolist()
        assert sampler.batch(len(own)) is None
    assert sorted(shown) == list(range(len(clips)))


@pytest.mark.parametrize("backend", ["cpu", "hybrid", "gpu"])
@pytest.mark.parametrize("batch_size", [4, 7, 30])
def test_the_views_of_each_clip_are_as_if_alone(vp9_folder: Path, backend: str, batch_size: int) -> None:
    """Videos of 6 and of 10 clips: samples of fewer clips than others, and videos that are divided."""
    dataset = Dataset(vp9_folder)
    many = EvalClips.of(dataset, range(3), SPEC, EvalLayout(count=2, crops=5))
    few = EvalClips.of(dataset, range(3, 8), SPEC, EvalLayout(count=6))
    clips = EvalClips(
        *(np.concatenate([getattr(c, n) for c in (many, few)]) for n in ("row", "start", "crop"))
    )
    expected = eval_params(SPEC, dataset, clips)
    alone = made(backend, SPEC, 1)
    sampler, seen = EvalSampler(dataset, clips, SPEC, batch_size), []
    with Loader(dataset, sampler, BackendSettings(backend, on_cpu_dali=True)) as batches:
        for batch in batches:
            assert len(batch["views"]) <= batch_size
            assert batch["views"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)
            for views, place, row in zip(batch["views"], batch["index"].tolist(), batch["row"], strict=True):
                assert row == clips.row[place]
                (single,) = render(alone, [expected.sample(place)], [dataset.read(int(row))])
                torch.testing.assert_close(views, single, rtol=0, atol=1e-4)
                seen.append(place)
    assert seen == list(range(len(clips)))


def test_a_video_that_cannot_be_decoded_is_left_out(demo_folder: Path, tmp_path: Path) -> None:
    dataset = damaged(demo_folder, tmp_path / "d", [1, 4])
    clips = EvalClips.of(dataset, range(6), SPEC, EvalLayout(count=3))
    with Loader(dataset, EvalSampler(dataset, clips, SPEC, 3)) as batches:
        found = list(batches)
        assert set(batches.failed) == {1, 4}
    assert [batch["row"].tolist() for batch in found] == [[0] * 3, [], [2] * 3, [3] * 3, [], [5] * 3]
    assert found[1]["views"].shape == (0, 2, 3, 3, 32, 32)
    assert not (dataset.path / "quarantine.jsonl").exists()  # the loader was not told to


def test_clips_for_fine_tuning_are_resumed_and_divided(dataset: Dataset) -> None:
    clips = EvalClips.of(dataset, range(18), SPEC, EvalLayout(count=2))
    labels = np.arange(len(clips))

    def loader(batch_size: int, rank: int, world: int) -> Loader:
        sampler = ClipSampler(dataset, clips, labels, SPEC, batch_size, seed=3, rank=rank, world=world)
        return Loader(dataset, sampler)

    with loader(8, 0, 1) as alone, loader(4, 0, 2) as first, loader(4, 1, 2) as second:
        expected = [next(alone) for _ in range(6)]
        assert len({int(label) for batch in expected[:4] for label in batch["label"]}) == 32
        for part in (first, second):
            part.load_state_dict({"samples": 16})
        for batch in expected[2:]:
            parts = [next(first), next(second)]
            assert torch.equal(batch["views"], torch.cat([part["views"] for part in parts]))
            assert batch["label"].tolist() == [int(x) for part in parts for x in part["label"]]
            assert (batch["row"].numpy() == clips.row[batch["label"]]).all()
            for start, params in zip(clips.start[batch["label"]], batch["params"], strict=True):
                assert params.frames[0, 0] == start
