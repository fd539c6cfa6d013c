"""Several data sets as one: every row is its own data set's, under one numbering."""

import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from independent import make_shards, render
from loopback import Server

import shards.check.repair
import shards.tar
from pipelines.sampler import TrainSampler
from pipelines.views import ViewSpec
from shards import Dataset, InputError
from shards.schema import QUARANTINE
from shards.several import Several, joined, prefixes


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of `jump`, which `made` has too, and of `skip`; three a shard, with a column `split`, read in parts."""
    folder = tmp_path_factory.mktemp("other")
    for n in range(5):
        render(folder / "clips" / ("jump" if n % 2 else "skip") / f"{n}.avi", frames=20 + n, seed=50 + n)
    done = make_shards(folder / "clips", "--out", folder / "set", "--per-shard", 3, "--hold-out", 0.4)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patched:
        for module in (shards.check.repair, shards.tar):
            patched.setattr(module, "WHOLE", 0)  # bytes from which on a file is read in parts
        shards.check.repair.repair(folder / "set")
    return folder / "set"


@pytest.fixture
def several(made: Path, other: Path) -> Several:
    return Several([Dataset(made), Dataset(other)])


def test_columns_are_the_members_one_after_the_other(several: Several) -> None:
    first, second = several.members
    assert len(several) == len(first) + len(second) == 18
    for name in ("num_frames", "fps", "width", "mp4_offset", "sha256", "label_name", "shard"):
        found = several.column(name).tolist()
        found = [one.partition("/")[2] for one in found] if name == "shard" else found
        assert found == [*first.column(name), *second.column(name)], name
    assert several.column("key").tolist() == several.keys(range(18))
    assert several.column("key").tolist() == [
        *(f"small/{key}" for key in first.column("key")),
        *(f"set/{key}" for key in second.column("key")),
    ]
    heads = several.column("mp4_head")
    assert np.isnan(heads[: len(first)]).all() and (heads[len(first) :] == second.column("mp4_head")).all()
    lacking = several.column("split")
    assert lacking[: len(first)].tolist() == [None] * len(first)
    assert lacking[len(first) :].tolist() == second.column("split").tolist()
    with pytest.raises(InputError, match="no column 'failure_time'"):
        several.column("failure_time")
    with pytest.raises(ValueError, match="read-only"):
        several.column("label")[0] = 1


def test_classes_of_one_name_are_one_class(several: Several) -> None:
    assert several.classes == sorted({"jump", "Run & walk", "wave", "skip"})
    names = [several.classes[label] for label in several.column("label")]
    assert names == several.column("label_name").tolist()
    assert {place < len(several.members[0]) for place, name in enumerate(names) if name == "jump"} == {
        True,
        False,
    }


def test_videos_without_a_class_keep_none(other: Path, tmp_path: Path) -> None:
    render(tmp_path / "flat" / "a.avi", frames=20)
    render(tmp_path / "flat" / "b.avi", frames=21, seed=1)
    assert make_shards(tmp_path / "flat", "--out", tmp_path / "set").returncode == 0
    several = Several([Dataset(tmp_path / "set"), Dataset(other)])
    assert several.column("label")[:2].tolist() == [-1, -1] and (several.column("label")[2:] >= 0).all()
    assert several.keys([0, 2])[0].startswith("set-1/") and several.keys([0, 2])[1].startswith("set-2/")


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 17), max_size=12))
def test_any_rows_are_read_from_the_data_set_that_they_are_of(several: Several, rows: list[int]) -> None:
    first, second = several.members
    here = [(first, row) if row < len(first) else (second, row - len(first)) for row in rows]
    assert [key.partition("/")[2] for key in several.keys(rows)] == [one.keys([own])[0] for one, own in here]
    assert several.counts(np.array(rows)) == [
        sum(one is member for one, _ in here) for member in (first, second)
    ]
    for row, (one, own) in zip(rows, here, strict=True):
        assert several.read(row) == one.read(own) and several.read(row, "json") == one.read(own, "json")
        index = several.packet_index(row)
        assert (index is None) == (one is first)
        if index:
            mine, theirs = (of.read_packets(at, 2, 5) for of, at in ((several, row), (one, own)))
            assert mine.data == theirs.data
        tar = several.shards[several.shard_numbers[row]]
        assert tar.partition("/")[2] == one.column("shard")[own]
        assert several.info["tars"][tar] == one.info["tars"][one.column("shard")[own]]


def test_pickled_and_out_of_range(several: Several) -> None:
    again = pickle.loads(pickle.dumps(several))
    assert again.fingerprint == several.fingerprint and again.read(14) == several.read(14)
    for row in (-1, len(several)):
        with pytest.raises(IndexError):
            several.read(row)


def test_a_split_that_one_lacks_leaves_its_rows_out(several: Several) -> None:
    first, second = several.members
    rows = several.select(split="train")
    assert rows.tolist() == [len(first) + row for row in second.select(split="train")]
    assert several.counts(rows) == [0, len(rows)]
    with pytest.raises(InputError, match="--split nowhere"):
        several.select(split="nowhere")
    assert (
        several.select(min_frames=24).tolist() == np.flatnonzero(several.column("num_frames") >= 24).tolist()
    )


def test_quarantine_is_noted_where_the_video_lies(made: Path, other: Path, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(one, tmp_path / one.name)) for one in (made, other)]
    several = joined([Dataset(one) for one in folders])
    row = len(several.members[0]) + 2
    several.quarantine(row, "for a test")
    assert not (folders[0] / QUARANTINE).exists()
    assert several.members[1].keys([2])[0] in (folders[1] / QUARANTINE).read_text()
    assert several.quarantined().tolist() == [row] and row not in several.select()


def test_sets_that_do_not_go_together_are_refused_by_name(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--data: .*{made} hold the same"):
        Several([Dataset(made), Dataset(made)])
    render(tmp_path / "clips" / "a.avi", frames=60, rate=50)
    assert make_shards(tmp_path / "clips", "--out", tmp_path / "fast").returncode == 0
    with pytest.raises(InputError, match=r"small has 25 frames a second, .*fast 50: make them at one rate"):
        Several([Dataset(tmp_path / "fast"), Dataset(made)])


def test_one_data_set_stays_as_it_is(made: Path) -> None:
    only = Dataset(made)
    assert joined([only]) is only and only.members == [only] and only.counts(np.arange(3)) == [3]
    assert prefixes([only.name]) == [""] and prefixes(["a b", "c"]) == ["a_b/", "c/"]


def test_a_remote_set_with_a_local_one(made: Path, other: Path, server: Server, cache: Path) -> None:
    """Windows are the remote set's, an epoch has all rows, and only the remote set's tars are fetched."""
    pytest.importorskip("aiohttp", reason="needs the extra `remote`")
    remote = Dataset(f"{server.url}/small", cache_gb=1)
    several = Several([Dataset(other), remote])
    assert several.window == remote.window is not None
    several.prefetch([0, len(several.members[0].shards) + 1])  # one local, and the remote set's second
    deadline = time.monotonic() + 30
    while not list(cache.glob(f"*/{remote.shards[1]}")):
        assert time.monotonic() < deadline, server.tars()
    assert list(server.tars()) == [remote.shards[1]]
    size = 2 * max(facts["bytes"] for facts in several.info["tars"].values())
    spec = ViewSpec(offsets=((0, 1),), size=16)
    sampler = TrainSampler(several, np.arange(len(several)), spec, 6, window=size)
    assert len(set(sampler.order.windows(0).tolist())) > 1
    whole = np.concatenate([sampler.batch(6 * n).whole for n in range(3)])
    assert sorted(whole.tolist()) == list(range(18))
    for row in whole.tolist():
        several.read(row)
    assert set(server.tars()) == set(remote.shards) and max(server.tars().values()) == 1
    several.close()
