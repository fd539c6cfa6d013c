"""The loader: the same batches however they are made, resumed, divided over processes, or interrupted by bad videos."""

import json
import os
import shutil
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.decode import decode_views
from pipelines.sampler import ShuffledOrder
from pipelines.views import Jitter, ViewSpec
from shards import Dataset, InputError
from shards.several import Several
from tests.pipelines.reference import (
    assert_same_params,
    flow_video,
    loader,
    made,
    params_for,
    render,
    write_dataset,
)

SPEC = ViewSpec(
    offsets=((0, 2, 4), (8, 9, 10)),
    size=32,
    jitter=Jitter(),
    box_scope="view",
    colour_scope="view",
    rotation=5,
)
Batch = dict[str, Any]


def batches(dataset: Dataset, count: int, **options: Any) -> list[Batch]:
    with loader(dataset, SPEC, **options) as batches:
        return list(islice(batches, count))


def assert_same(one: Batch, other: Batch) -> None:
    assert one["key"] == other["key"] and one["epoch"] == other["epoch"]
    for name in ("views", "label", "row", "index"):
        assert torch.equal(one[name], other[name]), name
    for mine, theirs in zip(one["params"], other["params"], strict=True):
        assert_same_params(mine, theirs)


def joined(parts: list[Batch]) -> Batch:
    """The batches of all ranks as one."""
    assert len({part["epoch"] for part in parts}) == 1
    tensors = {name: torch.cat([part[name] for part in parts]) for name in ("views", "label", "row", "index")}
    lists = {name: [one for part in parts for one in part[name]] for name in ("key", "params")}
    return {**tensors, **lists, "epoch": parts[0]["epoch"]}


def test_a_batch_is_what_order_parameters_and_decoder_say(dataset: Dataset) -> None:
    found = batches(dataset, 6, seed=5)
    order = ShuffledOrder(len(dataset), 4, seed=5)
    backend = made("cpu", SPEC, 4)
    for number, batch in enumerate(found):
        epoch, slot = order.place(4 * number)
        rows = order.epoch(epoch)[slot : slot + 4]
        assert batch["row"].tolist() == rows.tolist() and batch["epoch"] == epoch
        assert batch["key"] == dataset.column("key")[rows].tolist()
        assert batch["label"].tolist() == dataset.column("label")[rows].tolist()
        whole = params_for(SPEC, dataset, rows, seed=5, epoch=epoch)
        batch_params = [whole.sample(i) for i in range(4)]
        pixels = [decode_views(dataset.read(row), d, 32) for row, d in zip(rows, batch_params, strict=True)]
        assert torch.equal(batch["views"], render(backend, batch_params, pixels))
        for given, expected in zip(batch["params"], batch_params, strict=True):
            assert_same_params(given, expected)


def test_a_batch_of_several_data_sets_has_the_videos_of_each(demo_folder: Path, vp9_folder: Path) -> None:
    """H.264 of six classes, and VP9 of another one: bytes, keys and labels are those of the data set of each row."""
    members = [Dataset(demo_folder), Dataset(vp9_folder)]
    several = Several(members)
    found = batches(several, 6, batch_size=4)
    rows = [row for batch in found for row in batch["row"].tolist()]
    assert len(set(rows)) == 24 and {row >= 18 for row in rows} == {True, False}
    for number, batch in enumerate(found):
        whole = params_for(SPEC, several, batch["row"].tolist(), seed=1, epoch=0)
        batch_params = [whole.sample(i) for i in range(4)]
        places = [(members[row >= 18], row - 18 * (row >= 18)) for row in batch["row"].tolist()]
        pixels = [
            decode_views(one.read(row), d, 32) for (one, row), d in zip(places, batch_params, strict=True)
        ]
        assert torch.equal(batch["views"], render(made("cpu", SPEC, 4), batch_params, pixels)), number
        assert batch["key"] == [f"{one.name}/{one.keys([row])[0]}" for one, row in places]
        names = [several.classes[label] for label in batch["label"].tolist()]
        assert names == [one.classes[one.column("label")[row]] for one, row in places]


def test_several_data_sets_of_which_one_has_flow(dataset: Dataset, numbered: bytes, tmp_path: Path) -> None:
    flow = flow_video(tmp_path / "flow.mp4", np.full((20, 2, 64, 64), 128, np.uint8))
    facts = {"num_frames": 20, "fps": 25.0, "width": 64, "height": 64}
    flows = Dataset(write_dataset(tmp_path / "flow", [numbered] * 4, [facts] * 4, flows=[flow] * 4))
    several, spec = Several([dataset, flows]), replace(SPEC, modality="flow", jitter=None, rotation=0)
    with pytest.raises(InputError, match=f"18 of 22 videos have no flow .{dataset.name}/.* is the first"):
        loader(several, spec)
    with loader(several, spec, rows=range(18, 22)) as made:
        assert {key.partition("/")[0] for key in next(made)["key"]} == {"flow"}


def test_types(dataset: Dataset) -> None:
    (batch,) = batches(dataset, 1)
    assert batch["views"].shape == (4, 2, 3, 3, 32, 32) and batch["views"].dtype == torch.float32
    assert batch["label"].dtype == batch["row"].dtype == torch.int64
    assert batch["views"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    "options", [{"prefetch": 0}, {"prefetch": 7}, {"threads": 1}, {"threads": 5, "prefetch": 3}]
)
def test_prefetch_depth_and_threads_change_nothing(dataset: Dataset, options) -> None:
    for one, other in zip(batches(dataset, 6), batches(dataset, 6, **options), strict=True):
        assert_same(one, other)


def test_only_the_selected_rows_take_part(dataset: Dataset) -> None:
    rows = dataset.select(split="test")
    seen = torch.cat([batch["row"] for batch in batches(dataset, 4, rows=rows, batch_size=3)])
    assert sorted(seen[:6].tolist()) == sorted(seen[6:].tolist()) == rows.tolist()


def test_batches_never_end_and_incomplete_ones_are_dropped(dataset: Dataset) -> None:
    found = batches(dataset, 12)  # 18 rows: four batches of 4 an epoch, two rows left out
    assert [batch["epoch"] for batch in found] == [0] * 4 + [1] * 4 + [2] * 4
    epochs = [[key for batch in found[e : e + 4] for key in batch["key"]] for e in (0, 4, 8)]
    for keys in epochs:
        assert len(set(keys)) == 16
    assert len({tuple(keys) for keys in epochs}) == 3


def test_another_seed_gives_other_batches(dataset: Dataset) -> None:
    assert batches(dataset, 1, seed=1)[0]["key"] != batches(dataset, 1, seed=2)[0]["key"]


@pytest.mark.parametrize("consumed", [0, 3, 4, 5])
def test_a_resumed_loader_continues_bit_for_bit(dataset: Dataset, consumed: int) -> None:
    uninterrupted = batches(dataset, consumed + 3)
    with loader(dataset, SPEC, prefetch=3) as first:
        for _ in islice(first, consumed):
            pass
        state = json.loads(json.dumps(first.state_dict()))  # as a checkpoint keeps it
    assert state == {"samples": 4 * consumed}
    with loader(dataset, SPEC, prefetch=1) as resumed:
        resumed.load_state_dict(state)
        for expected in uninterrupted[consumed:]:
            assert_same(next(resumed), expected)


def test_going_back_drops_what_was_made_ahead(dataset: Dataset) -> None:
    with loader(dataset, SPEC, prefetch=3) as made:
        first = [next(made) for _ in range(2)]
        made.load_state_dict({"samples": 0})
        assert made.position == 0
        for expected in first:
            assert_same(next(made), expected)


def test_a_run_goes_on_with_another_number_of_processes(dataset: Dataset) -> None:
    alone = batches(dataset, 5, batch_size=8)
    with loader(dataset, SPEC, batch_size=8) as one:
        next(one)
        state = one.state_dict()
    ranks = [loader(dataset, SPEC, batch_size=4, rank=rank, world=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    for expected in alone[1:]:
        assert_same(joined([next(rank) for rank in ranks]), expected)
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_batches_together_are_the_batch_of_one_process(dataset: Dataset, world: int) -> None:
    alone = batches(dataset, 3, batch_size=8)
    parts = [batches(dataset, 3, batch_size=8 // world, rank=rank, world=world) for rank in range(world)]
    for step, expected in enumerate(alone):
        assert_same(joined([part[step] for part in parts]), expected)


def test_too_few_rows_for_all_processes(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="a global batch of 20"):
        loader(dataset, SPEC, batch_size=10, world=2)


def damaged(source: Path, out: Path, rows: list[int]) -> Dataset:
    """A copy of the data set in which these rows' videos are overwritten with their inverted bytes."""
    shutil.copytree(source, out)
    dataset = Dataset(out)
    for row in rows:
        offset, size = (int(dataset.column(f"mp4_{what}")[row]) for what in ("offset", "size"))
        with open(out / dataset.column("shard")[row], "r+b") as tar:
            tar.seek(offset)
            inverted = (~np.frombuffer(tar.read(size), np.uint8)).tobytes()
            tar.seek(offset)
            tar.write(inverted)
    return dataset


def quarantined(dataset: Dataset) -> list[str]:
    lines = (dataset.path / "quarantine.jsonl").read_text().splitlines()
    assert all(json.loads(line)["reason"] for line in lines)
    return [json.loads(line)["key"] for line in lines]


@pytest.mark.parametrize("backend", ["cpu", "hybrid", "gpu"])
def test_a_corrupt_video_is_replaced_and_quarantined(vp9_folder: Path, tmp_path: Path, backend: str) -> None:
    sound, place = Dataset(vp9_folder), 1
    expected = batches(sound, 4, backend=backend)
    bad = int(expected[0]["row"][place])
    runs = []
    for name in ("a", "b"):
        dataset = damaged(vp9_folder, tmp_path / name, [bad])
        runs.append(batches(dataset, 4, prefetch=2 if name == "a" else 0, backend=backend))
        key = dataset.column("key")[bad]
        assert quarantined(dataset) == [key]
        assert bad not in dataset.select() and len(dataset.select()) == 7
        assert len(dataset.select(quarantine=False)) == 8
    for one, other in zip(*runs, strict=True):
        assert_same(one, other)
    for found, healthy in zip(runs[0], expected, strict=True):
        slots = [slot for slot in range(4) if int(healthy["row"][slot]) == bad]
        others = [slot for slot in range(4) if slot not in slots]
        assert torch.equal(found["views"][others], healthy["views"][others])
        assert found["row"][others].tolist() == healthy["row"][others].tolist()
        for slot in slots:
            stand_in = int(found["row"][slot])
            assert stand_in not in healthy["row"].tolist()
            params = params_for(SPEC, sound, [stand_in], seed=1, epoch=found["epoch"]).sample(0)
            assert_same_params(found["params"][slot], params)
            assert found["key"][slot] == sound.column("key")[stand_in]
            assert found["label"][slot] == sound.column("label")[stand_in]
            alone = render(made(backend, SPEC, 1), [params], [sound.read(stand_in)])
            assert torch.equal(found["views"][slot], alone[0])


def test_a_resumed_run_replaces_alike(demo_folder: Path, tmp_path: Path) -> None:
    """A bad video met before the checkpoint, or first met after it: the same batches."""
    dataset = damaged(demo_folder, tmp_path / "d", [2, 3, 11])
    uninterrupted = batches(dataset, 8)
    assert sorted(quarantined(dataset)) == sorted(dataset.column("key")[[2, 3, 11]])
    for consumed in (1, 2, 5):
        with loader(dataset, SPEC) as resumed:
            resumed.load_state_dict({"samples": 4 * consumed})
            for expected in uninterrupted[consumed:]:
                assert_same(next(resumed), expected)
    ranks = [loader(dataset, SPEC, batch_size=2, rank=rank, world=2) for rank in range(2)]
    for expected in uninterrupted:
        assert_same(joined([next(rank) for rank in ranks]), expected)
    for rank in ranks:
        rank.close()


def test_bad_videos_of_one_batch_are_replaced_by_different_ones(demo_folder: Path, tmp_path: Path) -> None:
    rows = ShuffledOrder(18, 4, seed=1).epoch(0)[:4]
    dataset = damaged(demo_folder, tmp_path / "d", rows.tolist())
    (batch,) = batches(dataset, 1)
    assert len(set(batch["key"])) == 4 and not set(batch["row"].tolist()) & set(rows.tolist())


def test_paces_come_with_the_batch(dataset: Dataset) -> None:
    spec = ViewSpec(offsets=((0, 1, 2, 3),) * 2, size=32, paces=(0.5, 1, 2), padding="wrap")
    with loader(dataset, spec) as made:
        batch = next(made)
    assert batch["pace"].shape == (4, 2) and batch["pace"].dtype == torch.int64
    for params, labels in zip(batch["params"], batch["pace"].tolist(), strict=True):
        for frames, label in zip(params.frames, labels, strict=True):
            assert frames.tolist() == [frames[0] + int(t * spec.paces[label]) for t in range(4)]


def test_a_window_of_shards(dataset: Dataset, tmp_path: Path) -> None:
    facts = [
        {n: dataset.column(n)[r].item() for n in ("num_frames", "fps", "width", "height")} for r in range(18)
    ]
    videos = [dataset.read(row) for row in range(18)]
    sharded = Dataset(write_dataset(tmp_path / "d", videos, facts, per_shard=3))
    tars, shards = sharded.info["tars"], sharded.column("shard")
    two = max(a["bytes"] + b["bytes"] for a in tars.values() for b in tars.values() if a is not b)
    rows = [batch["row"].tolist() for batch in batches(sharded, 3, batch_size=6, window=two)]
    assert len(tars) == 6 and [len(set(shards[part].tolist())) for part in rows] == [2, 2, 2]
    whole = sum(tar["bytes"] for tar in tars.values())
    (first,) = batches(sharded, 1, batch_size=6, window=whole)
    assert first["row"].tolist() == ShuffledOrder(18, 6, seed=1).epoch(0)[:6].tolist()


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_when_all_videos_are_corrupt_the_run_ends(vp9_folder: Path, tmp_path: Path, backend: str) -> None:
    dataset = damaged(vp9_folder, tmp_path / "d", list(range(8)))
    with pytest.raises(InputError, match="cannot be decoded"):
        batches(dataset, 1, backend=backend)


def test_a_tar_of_which_nothing_is_left_ends_the_run(demo_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_folder, tmp_path / "d")
    dataset = Dataset(tmp_path / "d")
    os.truncate(dataset.path / dataset.column("shard")[0], 600)  # while the data set is open
    with pytest.raises(InputError, match=r"in a row .* ends \d+ bytes before"):
        batches(dataset, 1)


def test_an_error_of_the_plan_thread_reaches_the_caller(dataset: Dataset) -> None:
    spec = ViewSpec(offsets=((0, 500),), size=32, padding="error")
    with loader(dataset, spec) as made, pytest.raises(InputError, match="shorter than"):
        next(made)


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("slipstream-")]


def test_closing_leaves_no_thread_behind(dataset: Dataset) -> None:
    with loader(dataset, SPEC, prefetch=4, threads=3) as made:
        next(made)
        assert {name.split("_")[0] for name in own_threads()} >= {"slipstream-plan", "slipstream-finish"}
    assert own_threads() == []
    made.close()  # a second time is fine
