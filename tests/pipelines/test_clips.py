"""Several clips from one decoding: the same draws as so many epochs have, side by side, however they are made."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia.dali import Pipeline
from pipelines.graph import Graph, define
from pipelines.order import Order

import objectives
from pipelines.decode import decode_views
from pipelines.loader import Loader
from pipelines.sampling import sample_clip_params, sample_params
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, InputError
from tests.pipelines.reference import assert_same_draw, draw_for
from tests.pipelines.test_loader import assert_same, damaged, joined

SPEC = ViewSpec(
    offsets=((0, 2, 4), (8, 9, 10)),
    size=32,
    jitter=Jitter(),
    box_scope="view",
    colour_scope="view",
    rotation=5,
    groups=(0, 0),
)
SPECS = [
    SPEC,
    replace(SPEC, rotation=0, jitter=None, groups=(), channel_drop=True, colour_scope="clip"),
    replace(SPEC, paces=(1, 2), padding="wrap"),
    replace(SPEC, offsets=((0, 1, 2),), groups=(), rotation=0, jitter=None, modality="difference"),
]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SPECS), st.integers(1, 5), st.integers(0, 1000), st.integers(0, 2**40))
def test_the_clips_of_an_epoch_are_the_draws_of_so_many_epochs(spec, clips, epoch, seed) -> None:
    rows, shape = np.array([5, 11]), [np.array(side) for side in ([90, 30], [176, 90], [144, 160])]
    together = sample_clip_params(spec, rows, *shape, seed=seed, epoch=epoch, clips=clips)
    assert together.frames.shape[1] == clips * spec.views
    for place in range(2):
        for clip, found in enumerate(together.sample(place).clips(clips)):
            alone = sample_params(spec, rows, *shape, seed=seed, epoch=epoch * clips + clip).sample(place)
            assert_same_draw(found, alone)


def batches(dataset: Dataset, count: int, **options: Any) -> list[dict[str, Any]]:
    options = {"batch_size": 8, "seed": 1, "clips_per_decode": 2} | options
    with Loader(dataset, dataset.select(), SPEC, **options) as made:
        return list(islice(made, count))


def test_neighbours_share_a_video_and_every_video_is_seen_as_often(dataset: Dataset) -> None:
    found = batches(dataset, 9, batch_size=6, clips_per_decode=3)  # 18 videos, two a batch
    order, graph = Order(18, 2, seed=1), Graph(SPEC, 1, "cpu", threads=1)
    assert np.bincount(torch.cat([batch["row"] for batch in found])).tolist() == [3] * 18
    for number, batch in enumerate(found):
        epoch, slot = order.place(2 * number)
        rows = np.repeat(order.epoch(epoch)[slot : slot + 2], 3)
        assert batch["row"].tolist() == rows.tolist() and batch["epoch"] == epoch == 0
        assert batch["key"] == dataset.column("key")[rows].tolist()
        assert batch["label"].tolist() == dataset.column("label")[rows].tolist()
        if number < 2:
            for place, row in enumerate(rows):
                params = draw_for(SPEC, dataset, [row], seed=1, epoch=place % 3).sample(0)
                assert_same_draw(batch["params"][place], params)
                pixels = decode_views(dataset.read(row), params, 32)
                assert torch.equal(batch["views"][place], graph.run([params], [pixels])[0])
    assert found[0]["views"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)


def test_one_clip_is_what_there_was_without(dataset: Dataset) -> None:
    with Loader(dataset, dataset.select(), SPEC, batch_size=8, seed=1) as without:
        for one, other in zip(batches(dataset, 3, clips_per_decode=1), without, strict=False):
            assert_same(one, other)


def test_resumed_and_divided_over_processes(dataset: Dataset) -> None:
    alone = batches(dataset, 6)  # four batches an epoch
    assert [batch["epoch"] for batch in alone] == [0, 0, 0, 0, 1, 1]
    assert_same_draw(
        alone[4]["params"][1], draw_for(SPEC, dataset, [alone[4]["row"][1]], seed=1, epoch=3).sample(0)
    )
    parts = [
        Loader(
            dataset,
            dataset.select(),
            SPEC,
            batch_size=4,
            seed=1,
            rank=rank,
            world=2,
            clips_per_decode=2,
            prefetch=rank,
        )
        for rank in range(2)
    ]
    for part in parts:
        part.load_state_dict({"samples": 8 * 3})
    for expected in alone[3:]:
        assert_same(joined([next(part) for part in parts]), expected)
    for part in parts:
        assert part.state_dict() == {"samples": 48}
        part.close()


def test_the_clips_of_a_bad_video_are_replaced_by_those_of_one_other(
    demo_folder: Path, tmp_path: Path
) -> None:
    sound = batches(Dataset(demo_folder), 1)[0]
    bad = int(sound["row"][2])
    dataset = damaged(demo_folder, tmp_path / "d", [bad])
    with Loader(dataset, np.arange(18), SPEC, batch_size=8, seed=1, clips_per_decode=2) as made:
        found = next(made)
    others = [0, 1, 4, 5, 6, 7]
    assert torch.equal(found["views"][others], sound["views"][others])
    (stand_in,) = set(found["row"][2:4].tolist())
    assert stand_in not in sound["row"].tolist()
    for clip in range(2):
        assert_same_draw(
            found["params"][2 + clip], draw_for(SPEC, dataset, [stand_in], seed=1, epoch=clip).sample(0)
        )


@pytest.mark.parametrize("way", ["cpu", "gpu"])
@pytest.mark.parametrize("spec", SPECS)
def test_clips_of_one_sample_are_as_if_alone(vp9_folder: Path, spec: ViewSpec, way: Any) -> None:
    dataset, rows = Dataset(vp9_folder), np.array([1, 4])
    shape = [dataset.column(name)[rows] for name in ("num_frames", "width", "height")]
    whole = sample_clip_params(spec, rows, *shape, seed=2, epoch=0, clips=3)
    batch_params = [whole.sample(place) for place in range(2)]

    def material(row: int, params: Any) -> Any:
        video = dataset.read(row)
        return (
            np.frombuffer(video, np.uint8) if way == "gpu" else decode_views(video, params, 32, spec.modality)
        )

    together = Graph(spec, 2, way, threads=1, decoder="cpu", clips=3)
    found = together.run(
        batch_params, [material(int(row), d) for row, d in zip(rows, batch_params, strict=True)]
    )
    alone = Graph(spec, 1, way, threads=1, decoder="cpu")
    expected = [
        alone.run([d], [material(int(row), d)])[0]
        for row, params in zip(rows, batch_params, strict=True)
        for d in params.clips(3)
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-4)


def test_gpu_graphs_of_several_clips_are_defined() -> None:
    for objective in objectives.available().values():
        for way in ("gpu", "hybrid", "memory"):
            with Pipeline(4, 2, 0):
                assert define(objective.view_spec(objective.Config()), way, clips=2).device == "gpu"


@pytest.mark.parametrize("clips", [0, 3])
def test_clips_that_do_not_divide_the_batch(dataset: Dataset, clips: int) -> None:
    with pytest.raises(InputError, match=f"--clips-per-decode {clips}.*--batch-size 8"):
        batches(dataset, 1, clips_per_decode=clips)
