"""Parts of files: the pixels of whole ones, fewer bytes read, and damage found where it is looked at."""

import os
import shutil
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from loopback import Server

import objectives
import shards.check.repair
import shards.tar
from pipelines.backends.base import Video
from pipelines.decode import decode_views
from pipelines.trim import trim
from pipelines.views import ViewSpec
from shards import DamagedError, Dataset, InputError
from shards.check.repair import repair
from shards.schema import PARTS, QUARANTINE, TABLE
from shards.table import quarantine_entries
from shards.tar import Excerpt, checksums, indexed
from shards.video.mp4 import read_index
from tests.pipelines.reference import flow_video, loader, params_for, write_dataset
from tests.pipelines.test_trim import FOREIGN, OURS, foreign, ours

ROOT = Path(__file__).parents[2]
COUNT = 150
SPEC = ViewSpec(offsets=((0, 2, 4), (8, 9, 10)), size=32, box_scope="view")


@pytest.fixture(autouse=True)
def small_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' videos have fewer bytes than files that are read in parts."""
    monkeypatch.setattr(shards.tar, "WHOLE", 0)
    monkeypatch.setattr(shards.check.repair, "WHOLE", 0)


@cache
def video(name: str, count: int = COUNT) -> bytes:
    return ours(OURS[name], count) if name in OURS else foreign(*FOREIGN[name], count, moov_size="20000")


def made(out: Path, *videos: bytes, count: int = COUNT) -> Dataset:
    facts = {"num_frames": count, "fps": 25.0, "width": 80, "height": 64}
    return Dataset(write_dataset(out, list(videos), [facts] * len(videos)))


def without_columns(dataset: Dataset, out: Path) -> Dataset:
    """The same data set, read whole."""
    shutil.copytree(dataset.path, out)
    table = pq.read_table(out / TABLE).drop_columns([f"mp4_{name}" for name in PARTS])
    pq.write_table(table, out / TABLE)
    return Dataset(out)


@pytest.mark.parametrize("name", [*OURS, *FOREIGN])
def test_parts_show_the_pixels_of_the_whole(name: str, tmp_path: Path) -> None:
    """Every method's clips, decoded and trimmed, of an epoch or two."""
    dataset, less = made(tmp_path / "d", video(name)), 0
    whole = dataset.read(0)
    for method in objectives.available().values():
        spec = replace(method.view_spec(method.Config()), modality="rgb", size=32)
        for epoch in range(2):
            params = params_for(spec, dataset, [0], seed=5, epoch=epoch).sample(0)
            part = Video(dataset, 0, "mp4").read_frames(params.frames)
            assert isinstance(part, Excerpt)
            if name != "h264, open GOPs":  # which err_detect=explode refuses, whole or not
                expected = decode_views(whole, params, 32)
                np.testing.assert_array_equal(decode_views(part, params, 32), expected)
            wanted, found = np.unique(params.frames), indexed(part)
            for one, other in zip(
                trim(found.index, found.data, wanted), trim(read_index(whole), whole, wanted), strict=True
            ):
                assert np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))
            less += len(found.data) < len(whole) // 2
    assert less


def test_flow_is_read_in_parts_too(tmp_path: Path) -> None:
    fields = np.random.default_rng(0).integers(0, 256, (40, 2, 64, 80)).astype(np.uint8)
    flow = flow_video(tmp_path / "flow.mp4", fields)
    facts = {"num_frames": 40, "fps": 25.0, "width": 80, "height": 64}
    dataset = Dataset(write_dataset(tmp_path / "d", [video("vp9", 40)], [facts], flows=[flow]))
    spec = ViewSpec(offsets=((0, 1, 2),), size=32, modality="flow", crop=0.75)
    params = params_for(spec, dataset, [0]).sample(0)
    part = Video(dataset, 0, "flow.mp4").read_frames(params.frames)
    assert isinstance(part, Excerpt) and len(part.data) < len(flow)
    np.testing.assert_array_equal(
        decode_views(part, params, 32, "flow"), decode_views(flow, params, 32, "flow")
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"processes": 2}, {"clips": 2}, {"backend": "gpu"}, {"cache": "host", "cache_gib": 0.002}],
    ids=str,
)
def test_the_loader_gives_the_same_batches_and_reads_less(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = made(tmp_path / "d", *[video("vp9")] * 6)
    whole = without_columns(dataset, tmp_path / "whole")
    read: list[int] = []
    pread = os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        read.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    found, bytes_read = [], []
    for one in (dataset, whole):
        read.clear()
        with loader(one, SPEC, batch_size=2, prefetch=0, **options) as batches:
            found.append(list(islice(batches, 6)))
        bytes_read.append(sum(read))
    for mine, other in zip(*found, strict=True):
        assert mine["key"] == other["key"] and torch.equal(mine["views"], other["views"])
    assert bytes_read[0] < bytes_read[1] / (1 if "cache" in options else 2)
    assert not (dataset.path / QUARANTINE).exists()


def flipped(dataset: Dataset, row: int, place: int) -> None:
    """Change a byte of a row's video."""
    with open(dataset.path / dataset.column("shard")[row], "r+b") as tar:
        tar.seek(int(dataset.column("mp4_offset")[row]) + place)
        byte = tar.read(1)[0]
        tar.seek(-1, os.SEEK_CUR)
        tar.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_changed_byte_is_found_where_it_is_needed(tmp_path: Path, backend: str) -> None:
    dataset = made(tmp_path / "d", *[video("vp9")] * 5)
    params = params_for(SPEC, dataset, range(5), seed=1)
    index = dataset.packet_index(2)
    assert index is not None
    wanted = int(np.flatnonzero(index.numbers == params.sample(2).frames[0, 0])[0])
    flipped(dataset, 2, int(index.offsets[wanted] + index.sizes[wanted] // 2))
    flipped(dataset, 3, 40)  # before the media
    far = 0 if params.sample(4).frames.min() > COUNT // 2 else len(index.offsets) - 1
    flipped(dataset, 4, int(index.offsets[far] + 3))
    with loader(Dataset(dataset.path), SPEC, batch_size=5, prefetch=0, backend=backend) as batches:
        batch = next(batches)
    assert sorted(set(batch["key"])) == ["v000", "v001", "v004"]
    noted_there = dict(quarantine_entries(dataset.path / QUARANTINE))
    assert noted_there.keys() == {"v002", "v003"}
    gop = int(np.searchsorted(index.gops, wanted, side="right")) - 1
    assert (
        f"(checksum of GOP {gop})" in noted_there["v002"]
        and "(checksum of the mp4's index)" in noted_there["v003"]
    )
    with pytest.raises(DamagedError, match="sha256"):
        dataset.read(4)


def test_which_files_can_be_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = video("h264")
    index = read_index(whole)
    columns = checksums("mp4", whole)
    assert columns["mp4_head"] == index.head and len(columns["mp4_gops"]) == 8 * (1 + len(index.gops))
    late = whole[: whole.index(b"moov") - 4]  # the index behind the media
    assert checksums("mp4", late) == {} and checksums("mp4", b"no mp4" * 99) == {}
    monkeypatch.setattr(shards.tar, "WHOLE", len(whole) + 1)
    assert checksums("mp4", whole) == {}


def test_a_repair_finds_the_checksums_again(tmp_path: Path) -> None:
    dataset = made(tmp_path / "d", *[video("h264")] * 3)
    before = [dataset.column(f"mp4_{name}") for name in PARTS]
    flipped(dataset, 1, int(dataset.column("mp4_size")[1]) - 5)
    repair(dataset.path)
    again = Dataset(dataset.path)
    for name, column in zip(PARTS, before, strict=True):
        found = again.column(f"mp4_{name}")
        assert found[0] == column[0] and found[2] == column[2]
        assert found[1] is None or np.isnan(found[1])  # it is not what was written: read whole, it is found
    with pytest.raises(DamagedError, match="sha256"):
        Video(again, 1, "mp4").read_frames(np.array([3]))


@pytest.mark.parametrize(
    ("columns", "raised"),
    [
        ({"mp4_gops": "00"}, InputError),
        ({"mp4_gops": "x" * 16}, InputError),
        ({"mp4_head": -1}, InputError),
        ({"mp4_head": 2**27}, DamagedError),
        ({"mp4_head": 60}, DamagedError),
        ({"mp4_gops": "0" * 16}, DamagedError),
        ({"mp4_gops": None}, None),
        ({"mp4_head": None}, None),
    ],
    ids=str,
)
def test_a_table_that_says_what_is_not(tmp_path: Path, columns: dict[str, Any], raised: Any) -> None:
    dataset = made(tmp_path / "d", video("vp9"), video("vp9"))
    table = pq.read_table(dataset.path / TABLE)
    rows = table.to_pylist()
    rows[0] |= columns
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), dataset.path / TABLE)
    video_of = Video(Dataset(dataset.path), 0, "mp4")
    if raised:
        with pytest.raises(raised):
            video_of.read_frames(np.array([3]))
    else:
        assert video_of.read_frames(np.array([3])) == video("vp9")


def test_indexes_are_kept_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.dataset._MOST_PARTS", 2)
    dataset = made(tmp_path / "d", *[video("vp9")] * 5)
    first = dataset.packet_index(0)
    assert dataset.packet_index(1) is not None and dataset.packet_index(0) is first
    for row in range(5):
        dataset.packet_index(row)
    assert dataset.packet_index(0) is not first


def test_without_a_cache_only_ranges_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra `remote`")
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    local = made(tmp_path / "served" / "d", *[video("vp9")] * 6)
    server = Server(tmp_path / "served")
    try:
        remote = Dataset(f"{server.url}/d", cache_gb=0)
        assert remote.window is None and remote.read(1) == local.read(1)
        server.sent.clear()
        found = []
        for dataset in (local, remote):
            with loader(dataset, SPEC, batch_size=2, prefetch=0) as batches:
                found.append(list(islice(batches, 3)))
        for one, other in zip(*found, strict=True):
            assert one["key"] == other["key"] and torch.equal(one["views"], other["views"])
        (name,) = server.tars()
        assert server.sent[name] < 6 * len(video("vp9")) / 2
        assert not list((tmp_path / "cache").rglob("*.tar"))
        server.ranges = False
        with pytest.raises(InputError, match=r"--cache-gb 0: .* part of a file; give a cache"):
            Dataset(f"{server.url}/d", cache_gb=0)
        monkeypatch.setattr("shards.remote.ATTEMPTS", 1)
        with pytest.raises(InputError, match="cannot be fetched"):
            remote.read(0)
        with pytest.raises(InputError, match="--cache-gb -1: give the size"):
            Dataset(f"{server.url}/d", cache_gb=-1)
    finally:
        server.close()
