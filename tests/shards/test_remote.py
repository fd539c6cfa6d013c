"""Data sets behind a URL, read from servers on loopback: S3 (moto), Google's (an emulator) and plain HTTP."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from loopback import Server

from shards import Dataset, InputError
from shards.atomic import locked
from shards.remote import url_of

pytest.importorskip("fsspec", reason="needs the extra `remote`")
pytest.importorskip("aiohttp", reason="needs the extra `remote`")
pytestmark = pytest.mark.usefixtures("cache")


def sizes(dataset: Dataset) -> list[int]:
    return [dataset.info["tars"][shard]["bytes"] for shard in dataset.shards]


def cached(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.tar"))


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        (Path("https://host:80/x/"), "https://host:80/x"),
        ("gs://b/x/", "gs://b/x"),
        ("data/k400", None),
        ("/data/s3:/x", None),
        ("C:/data", None),
    ],
)
def test_a_url_is_told_from_a_path_and_survives_pathlib(path: str | Path, url: str | None) -> None:
    assert url_of(path) == url


def test_http_gives_the_same_rows_and_bytes_and_only_the_shards_asked_for(
    made: Path, server: Server, cache: Path
) -> None:
    local, remote = Dataset(made), Dataset(f"{server.url}/small")
    assert (remote.name, remote.classes, remote.fingerprint) == (local.name, local.classes, local.fingerprint)
    for name in ("key", "label", "mp4_offset", "shard"):
        np.testing.assert_array_equal(remote.column(name), local.column(name))
    assert not server.tars()
    rows = remote.select(min_frames=40)
    for row in rows:
        assert remote.read(row) == local.read(row)
        assert remote.read(row, "json") == local.read(row, "json")
    wanted = {remote.shards[number] for number in remote.shard_numbers[rows]}
    assert server.tars().keys() == wanted and len(wanted) < len(remote.shards)
    asked = server.tars()
    again = Dataset(Path(f"{server.url}/small"))
    assert again.read(rows[0]) == local.read(rows[0]) and server.tars() == asked
    assert [path.name for path in cached(cache)] == sorted(wanted)


def test_a_tar_larger_than_a_block_comes_whole(
    made: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.remote._BLOCK", 1000)  # and the server knows no range requests
    local, remote = Dataset(made), Dataset(f"{server.url}/small")
    for row in range(len(local)):
        assert remote.read(row) == local.read(row)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The protocol of moto's S3 server on loopback, to which fsspec now speaks."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs", reason="needs the extra `remote`")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield "s3"
    server.stop()


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The protocol of an emulated Google storage on loopback, to which fsspec now speaks."""
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    pytest.importorskip("gcsfs", reason="needs the extra `gcs`")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    host, port = server._api._httpd.socket.getsockname()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
    monkeypatch.setenv(
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
    )  # it asks by gRPC with TLS what the bucket is
    yield "gs"
    server.stop()


@pytest.mark.parametrize("storage", ["s3", "gs"])
def test_an_object_store_gives_the_same_rows_and_bytes(
    made: Path, storage: str, request: pytest.FixtureRequest
) -> None:
    import fsspec

    protocol = request.getfixturevalue(storage)
    files = fsspec.filesystem(protocol, skip_instance_cache=True)
    files.mkdir("videos")
    files.put(str(made), "videos/sets/small", recursive=True)
    local, remote = Dataset(made), Dataset(f"{protocol}://videos/sets/small", cache_gb=0.001)
    for row in range(len(local)):
        assert remote.read(row) == local.read(row)
    ranged = Dataset(f"{protocol}://videos/sets/small", cache_gb=0)
    assert ranged.read(5) == local.read(5)
    with pytest.raises(InputError, match=rf"{protocol}://videos/nothing: no dataset.json there"):
        Dataset(f"{protocol}://videos/nothing")
    with pytest.raises(InputError, match=rf"{protocol}://no-bucket/x"):
        Dataset(f"{protocol}://no-bucket/x")


def test_the_cache_stays_below_its_limit_and_lets_go_of_the_oldest(
    made: Path, server: Server, cache: Path
) -> None:
    local = Dataset(made)
    limit = 2 * max(sizes(local)) + 100
    remote = Dataset(f"{server.url}/small", cache_gb=limit / 1e9)
    assert sum(sizes(local)) > limit and remote.window == limit // 3
    for shard in [0, 1, 2, 3, 3, 2]:
        row = int(np.flatnonzero(remote.shard_numbers == shard)[0])
        assert remote.read(row) == local.read(row)
        assert sum(path.stat().st_size for path in cached(cache)) <= limit
        assert (remote.path / remote.shards[shard]).is_file()
    assert sorted(server.tars().values()) == [1, 1, 1, 1]


def test_an_open_tar_can_be_read_after_it_made_room(made: Path, server: Server) -> None:
    local = Dataset(made)
    limit = (2 * max(sizes(local)) + 100) / 1e9
    one, other = (Dataset(f"{server.url}/small", cache_gb=limit) for _ in range(2))
    assert one.read(0) == local.read(0)
    for shard in range(len(other.shards)):
        other.read(int(np.flatnonzero(other.shard_numbers == shard)[0]))
    assert not (one.path / one.shards[one.shard_numbers[0]]).is_file()
    assert one.read(0) == local.read(0)


def test_a_partial_download_is_not_trusted(made: Path, server: Server, cache: Path) -> None:
    local, remote = Dataset(made), Dataset(f"{server.url}/small")
    shard = remote.shards[0]
    server.cut.add(shard)
    row = int(np.flatnonzero(remote.shard_numbers == 0)[0])
    assert remote.read(row) == local.read(row) and not server.cut
    (path,) = cached(cache)
    path.write_bytes(path.read_bytes()[:-10])  # a disk that filled up, a machine that went down
    path.with_name(f".{remote.shards[1]}.partial").write_bytes(b"left by a killed process")
    again = Dataset(f"{server.url}/small")
    for row in range(len(local)):
        assert again.read(row) == local.read(row)
    assert not list(cache.glob("*/.*.partial"))


def test_what_is_not_as_described_ends_in_one_line(
    copied: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.remote.ATTEMPTS", 2)
    remote = Dataset(f"{server.url}/small")
    tar = copied / remote.shards[0]
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(InputError, match=rf"{tar.name}: cannot be fetched, 2 times tried .*bytes came that"):
        remote.read(int(np.flatnonzero(remote.shard_numbers == 0)[0]))
    tar.unlink()
    with pytest.raises(InputError, match=rf"{tar.name}: cannot be fetched"):
        remote.read(int(np.flatnonzero(remote.shard_numbers == 0)[0]))
    with pytest.raises(InputError, match=r"--cache-gb 1e-05: two tars of http.* do not fit; give"):
        Dataset(f"{server.url}/small", cache_gb=1e-5)
    with pytest.raises(InputError, match=r"--cache-gb -1: give the size"):
        Dataset(f"{server.url}/small", cache_gb=-1)
    with pytest.raises(InputError, match=r"nowhere: no dataset.json there"):
        Dataset(f"{server.url}/nowhere")
    with pytest.raises(InputError, match=r"nonsense://x/y: .*; give a folder"):
        Dataset("nonsense://x/y")
    info = json.loads((copied / "dataset.json").read_text())
    info["table"]["sha256"] = "0" * 64
    (copied / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"samples.parquet: not the one that dataset.json describes"):
        Dataset(f"{server.url}/small")


def test_quarantine_is_read_from_there_and_kept_here(copied: Path, server: Server) -> None:
    here = Dataset(f"{server.url}/small")
    here.quarantine(2, "does not decode")
    Dataset(copied).quarantine(5, "a colleague's find")
    again = Dataset(f"{server.url}/small")
    assert set(range(len(again))) - set(again.select()) == {2, 5}
    assert not (copied / "quarantine.jsonl").read_text().count("does not decode")


def read_all(url: str, limit: float, order: list[int], results: multiprocessing.Queue) -> None:
    dataset = Dataset(url, cache_gb=limit)
    with ThreadPoolExecutor(4) as pool:
        results.put(list(pool.map(dataset.read, order)))


def test_processes_share_the_cache(made: Path, server: Server, cache: Path) -> None:
    local = Dataset(made)
    limit = 2 * max(sizes(local)) + 100
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    orders = [list(range(13)), list(range(12, -1, -1))]
    workers = [
        context.Process(target=read_all, args=(f"{server.url}/small", limit / 1e9, order, results))
        for order in orders
    ]
    for worker in workers:
        worker.start()
    read = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    expected = [[local.read(row) for row in order] for order in orders]
    assert sorted(read) == sorted(expected)
    assert sum(path.stat().st_size for path in cached(cache)) <= limit


def test_a_tar_that_another_process_finishes_just_now_is_no_trouble(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partial file is listed, and has got its name when it is looked at."""
    remote = Dataset(f"{server.url}/small")
    partial = remote.path / f".{remote.shards[1]}.partial"
    partial.write_bytes(b"half")
    lstat = Path.lstat

    def finished(path: Path) -> os.stat_result:
        if path == partial and partial.exists():
            partial.rename(partial.with_name(remote.shards[1]))
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", finished)
    with locked(partial.with_name(f".{remote.shards[1]}.lock")):  # the other process has it
        # a read would try once more, and so hide it as a rule
        assert remote._shards.descriptor(remote.shards[0])
    assert not partial.exists()


def test_prefetched_tars_are_there_when_they_are_read(made: Path, server: Server) -> None:
    local, remote = Dataset(made), Dataset(f"{server.url}/small")
    remote.prefetch(range(len(remote.shards)))
    remote.prefetch([0, 1])
    for row in range(len(local)):
        assert remote.read(row) == local.read(row)
    assert set(server.tars().values()) == {1}
    remote.close()
