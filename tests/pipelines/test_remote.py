"""Training from a remote data set that does not fit its cache: each shard comes about once an epoch."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from loopback import Server

from pipelines.views import ViewSpec
from shards import Dataset
from shards.remote import RemoteShards
from shards.table import publish
from shards.tar import Sample, write_shard
from tests.pipelines.reference import loader

pytest.importorskip("aiohttp", reason="needs the extra `remote`")
SHARDS, PER_SHARD = 10, 4
SPEC = ViewSpec(offsets=((0, 1),), size=32)


@pytest.fixture
def served(tmp_path: Path, numbered: bytes) -> Path:
    """Ten shards of four videos of 230 frames."""
    folder = tmp_path / "served" / "many"
    folder.mkdir(parents=True)
    facts = {"num_frames": 230, "fps": 25.0, "width": 128, "height": 64, "source": "numbered"}
    shards = [
        write_shard(
            folder, f"many-{n:06d}", [Sample(f"v{n}-{i}", numbered, facts, n) for i in range(PER_SHARD)]
        )
        for n in range(SHARDS)
    ]
    publish(folder, [str(n) for n in range(SHARDS)], shards, {}, name="many")
    return folder


def on_disk(cache: Path) -> int:
    """Bytes of the tars in a cache; one may leave it meanwhile."""
    total = 0
    for tar in cache.glob("*/*.tar"):
        with suppress(FileNotFoundError):
            total += tar.stat().st_size
    return total


def test_a_small_cache_trains_and_each_shard_comes_about_once_an_epoch(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        RemoteShards, "keep_open", 0.0
    )  # or what left the cache could be read on from an open file
    size = max(path.stat().st_size for path in served.glob("*.tar"))
    server = Server(served.parent)
    epochs = 3
    try:
        dataset = Dataset(f"{server.url}/many", cache_gb=6.5 * size / 1e9)  # windows of two shards
        rows = dataset.select()
        with loader(dataset, SPEC, seed=0, prefetch=1) as made:
            seen: Counter = Counter()
            for _ in range(epochs * len(rows) // 4):
                batch = next(made)
                seen.update(batch["row"].tolist())
                assert on_disk(tmp_path / "cache/remote") <= 6.5 * size
        assert set(seen.values()) == {epochs} and len(seen) == len(rows)  # every video once an epoch
        fetched = server.tars()
        # the loader has begun the next epoch; shards that end one epoch and begin the next come once for both
        assert len(fetched) == SHARDS and sum(fetched.values()) <= (epochs + 1) * SHARDS
        assert sum(fetched.values()) > SHARDS  # the cache did not hold all
        dataset.close()
    finally:
        server.close()


def test_a_selection_fetches_its_shards_only_and_a_local_set_has_one_window(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path / "cache"))
    server = Server(served.parent)
    try:
        remote, local = Dataset(f"{server.url}/many"), Dataset(served)
        rows = np.flatnonzero(np.isin(remote.column("label"), [2, 7]))
        batches = []
        for dataset in (remote, local):
            with loader(dataset, SPEC, rows=rows, seed=0) as made:
                batches.append([next(made) for _ in range(4)])
        remote.close()
        assert sorted(server.tars()) == ["many-000002.tar", "many-000007.tar"]
        assert set(server.tars().values()) == {1} and local.window is None
        for one, other in zip(*batches, strict=True):
            np.testing.assert_array_equal(one["views"], other["views"])
            assert one["key"] == other["key"]
    finally:
        server.close()
