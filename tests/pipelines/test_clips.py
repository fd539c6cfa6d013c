"""Several clips from one decoding: the same parameters as so many epochs have, side by side, whatever makes them."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sampler import ShuffledOrder
from pipelines.sampling import sample_params
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, InputError
from tests.pipelines.reference import assert_same_params, loader, made, params_for, render
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
    together = sample_params(spec, rows, *shape, seed=seed, epoch=epoch, clips=clips)
    assert together.frames.shape[1] == clips * spec.views
    for place in range(2):
        for clip, found in enumerate(together.sample(place).clips(clips)):
            alone = sample_params(spec, rows, *shape, seed=seed, epoch=epoch * clips + clip).sample(place)
            assert_same_params(found, alone)


def batches(dataset: Dataset, count: int, **options: Any) -> list[dict[str, Any]]:
    with loader(dataset, SPEC, **{"batch_size": 8, "clips": 2} | options) as batches:
        return list(islice(batches, count))


def test_neighbours_share_a_video_and_every_video_is_seen_as_often(dataset: Dataset) -> None:
    found = batches(dataset, 9, batch_size=6, clips=3)  # 18 videos, two a batch
    order, backend = ShuffledOrder(18, 2, seed=1), made("cpu", SPEC, 1)
    assert np.bincount(torch.cat([batch["row"] for batch in found])).tolist() == [3] * 18
    for number, batch in enumerate(found):
        epoch, slot = order.place(2 * number)
        rows = np.repeat(order.epoch(epoch)[slot : slot + 2], 3)
        assert batch["row"].tolist() == rows.tolist() and batch["epoch"] == epoch == 0
        assert batch["key"] == dataset.column("key")[rows].tolist()
        assert batch["label"].tolist() == dataset.column("label")[rows].tolist()
        if number < 2:
            for place, row in enumerate(rows):
                params = params_for(SPEC, dataset, [row], seed=1, epoch=place % 3).sample(0)
                assert_same_params(batch["params"][place], params)
                assert torch.equal(batch["views"][place], render(backend, [params], [dataset.read(row)])[0])
    assert found[0]["views"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)


def test_one_clip_is_what_there_was_without(dataset: Dataset) -> None:
    with loader(dataset, SPEC, batch_size=8) as without:
        for one, other in zip(batches(dataset, 3, clips=1), without, strict=False):
            assert_same(one, other)


def test_resumed_and_divided_over_processes(dataset: Dataset) -> None:
    alone = batches(dataset, 6)  # four batches an epoch
    assert [batch["epoch"] for batch in alone] == [0, 0, 0, 0, 1, 1]
    assert_same_params(
        alone[4]["params"][1], params_for(SPEC, dataset, [alone[4]["row"][1]], seed=1, epoch=3).sample(0)
    )
    parts = [
        loader(dataset, SPEC, batch_size=4, rank=rank, world=2, clips=2, prefetch=rank) for rank in range(2)
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
    (found,) = batches(dataset, 1)
    others = [0, 1, 4, 5, 6, 7]
    assert torch.equal(found["views"][others], sound["views"][others])
    (stand_in,) = set(found["row"][2:4].tolist())
    assert stand_in not in sound["row"].tolist()
    for clip in range(2):
        assert_same_params(
            found["params"][2 + clip], params_for(SPEC, dataset, [stand_in], seed=1, epoch=clip).sample(0)
        )


@pytest.mark.parametrize("kind", ["cpu", "hybrid", "gpu"])
@pytest.mark.parametrize("spec", SPECS)
def test_clips_of_one_sample_are_as_if_alone(vp9_folder: Path, spec: ViewSpec, kind: str) -> None:
    dataset, rows = Dataset(vp9_folder), np.array([1, 4])
    shape = [dataset.column(name)[rows] for name in ("num_frames", "width", "height")]
    whole = sample_params(spec, rows, *shape, seed=2, epoch=0, clips=3)
    batch_params = [whole.sample(place) for place in range(2)]
    videos = [dataset.read(int(row)) for row in rows]
    found = render(made(kind, spec, 2, clips=3), batch_params, videos)
    alone = made(kind, spec, 1)
    expected = [
        render(alone, [clip], [video])[0]
        for video, params in zip(videos, batch_params, strict=True)
        for clip in params.clips(3)
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("clips", [0, 3])
def test_clips_that_do_not_divide_the_batch(dataset: Dataset, clips: int) -> None:
    with pytest.raises(InputError, match=f"--clips-per-decode {clips}.*--batch-size 8"):
        batches(dataset, 1, clips=clips)
