"""Servers that stall, answer slowly, without end, with errors, or with something else than they did: on loopback."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loopback import Served, Server, stalling

from shards import DamagedError, Dataset, InputError

pytest.importorskip("fsspec", reason="needs the extra `remote`")
aiohttp = pytest.importorskip("aiohttp", reason="needs the extra `remote`")
pytestmark = pytest.mark.usefixtures("cache")


def first_of(dataset: Dataset, shard: int = 0) -> int:
    return int(np.flatnonzero(dataset.shard_numbers == shard)[0])


def failing(status: int, times: int) -> Callable[[Served], bool | None]:
    left = [times]

    def answer(request: Served) -> bool | None:
        if not left[0]:
            return False
        left[0] -= 1
        request.send_error(status)
        return None

    return answer


@pytest.mark.parametrize("status", [403, 416, 500])
@pytest.mark.parametrize("name", ["dataset.json", "samples.parquet", "small-000000.tar"])
def test_a_few_errors_are_sat_out_and_many_end_in_one_line(
    made: Path, server: Server, status: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.remote.PAUSE", 0.0)
    server.trouble[name] = failing(status, 2)
    remote = Dataset(f"{server.url}/small")
    assert remote.read(first_of(remote)) == Dataset(made).read(first_of(remote))
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(made.parent / f"cache-{status}-{name}"))
    server.trouble[name] = failing(status, 99)
    with pytest.raises(InputError, match=rf"{name}: cannot be (read|fetched).*{status}") as caught:
        other = Dataset(f"{server.url}/small")
        other.read(first_of(other))
    assert "\n" not in str(caught.value)


def test_a_tar_may_take_longer_than_the_librarys_time_for_a_whole_answer(
    made: Path, copied: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp's five minutes, here one second."""
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=1))
    import fsspec

    fsspec.get_filesystem_class("http").clear_instance_cache()

    def slowly(request: Served) -> None:
        content = (copied / "small-000000.tar").read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        step = len(content) // 5 + 1
        for start in range(0, len(content), step):
            request.wfile.write(content[start : start + step])
            request.wfile.flush()
            time.sleep(0.3)

    server.trouble["small-000000.tar"] = slowly
    remote = Dataset(f"{server.url}/small")
    assert remote.read(first_of(remote)) == Dataset(made).read(first_of(remote))
    assert server.asked["small-000000.tar"] == 1
    fsspec.get_filesystem_class("http").clear_instance_cache()


@pytest.mark.parametrize("name", ["small-000000.tar", "samples.parquet"])
def test_a_body_without_end_is_cut_off(
    server: Server, cache: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def without_end(request: Served) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            for _ in range(4000):  # 250 MiB an answer
                request.wfile.write(bytes(2**16))
                sent.append(2**16)
        except OSError:
            return

    monkeypatch.setattr("shards.remote.PAUSE", 0.0)
    server.trouble[name] = without_end
    with pytest.raises(InputError, match=rf"{name}: cannot be .*more"):
        remote = Dataset(f"{server.url}/small", cache_gb=0.001)
        remote.read(first_of(remote))
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 1e6
    assert sum(sent) < 4 * 64 * 2**20  # what the sockets and the library hold, not all of it


def test_an_answer_to_a_range_is_no_longer_than_the_range(
    made: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.remote.PAUSE", 0.0)
    remote = Dataset(f"{server.url}/small", cache_gb=0)
    row = first_of(remote)
    assert remote.read(row) == Dataset(made).read(row)
    server.ranges = False  # from now on it answers with the whole file
    with pytest.raises(
        InputError, match=r"small-000000.tar: cannot be fetched, 4 times tried \(more than \d+ bytes"
    ):
        remote.read(row)
    with pytest.raises(
        InputError, match=r"--cache-gb 0: http.* answers no requests for a part of a file; give a cache"
    ):
        Dataset(f"{server.url}/small", cache_gb=0)


def test_a_server_that_stalls_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.remote.SILENCE", 0.4)
    monkeypatch.setattr("shards.remote.PAUSE", 0.0)
    over = threading.Event()
    server.trouble["small-000000.tar"] = stalling(over)
    remote = Dataset(f"{server.url}/small")
    with pytest.raises(
        InputError, match=r"small-000000.tar: cannot be fetched, 2 times tried \(nothing came for"
    ):
        remote.read(first_of(remote))
    over.set()


def test_redirects_lead_to_no_other_scheme(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.remote.PAUSE", 0.0)
    secret = tmp_path / "secret"
    secret.write_text("{}")

    for scheme in ("file://", "ftp://127.0.0.1", "data:application/json,"):

        def elsewhere(request: Served, to: str = f"{scheme}{secret}") -> None:
            request.send_response(302)
            request.send_header("Location", to)
            request.end_headers()

        server.trouble["dataset.json"] = elsewhere
        with pytest.raises(InputError, match=r"dataset.json: cannot be fetched"):
            Dataset(f"{server.url}/small")


def test_content_that_changes_while_it_is_read_is_noticed(
    made: Path, copied: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tar of the same length, with its own ETag, behind a description that was read before."""
    monkeypatch.setattr("shards.remote.PAUSE", 0.0)
    remote = Dataset(f"{server.url}/small")
    tar = copied / remote.shards[1]
    tar.write_bytes(tar.read_bytes()[::-1])
    with pytest.raises(InputError, match=rf"{tar.name}: cannot be fetched.*bytes came that are not"):
        remote.read(first_of(remote, 1))
    assert remote.read(first_of(remote)) == Dataset(made).read(first_of(remote))


def test_a_cached_tar_that_rotted_is_fetched_again(
    made: Path, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, remote = Dataset(made), Dataset(f"{server.url}/small")
    row = first_of(remote)
    remote.read(row)
    (path,) = cache.glob("*/*.tar")
    content = bytearray(path.read_bytes())
    content[int(local.column("mp4_offset")[row]) + 20] ^= 1
    path.write_bytes(content)
    again = Dataset(f"{server.url}/small")
    assert again.read(row) == local.read(row) and server.asked[path.name] == 2
    path.write_bytes(content)  # once a tar: a disk that rots on is not fetched onto for ever
    again.close()
    with pytest.raises(DamagedError, match="sha256"):
        again.read(row)


def test_passwords_are_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch, copied: Path) -> None:
    monkeypatch.setattr("shards.remote.PAUSE", 0.0)
    address = server.url.replace("://", "://me:s3cr%C3%A9t@")
    remote = Dataset(f"{address}/small")
    assert "s3cr" not in remote.source and "s3cr" not in str(remote.path)
    said = []
    for name in ("small-000000.tar", "samples.parquet", "dataset.json"):
        server.trouble[name] = failing(500, 99)
        monkeypatch.setenv("SLIPSTREAM_CACHE", str(copied.parent / f"cache-{name}"))
        with pytest.raises(InputError) as caught:
            other = Dataset(f"{address}/small")
            other.read(first_of(other))
        said.append(str(caught.value))
    with pytest.raises(InputError) as caught:
        Dataset(f"{address}/nowhere")
    said.append(str(caught.value))
    with pytest.raises(InputError) as caught:
        Dataset("nonsense://me:s3cret@x/y")
    said.append(str(caught.value))
    assert not [line for line in said if "s3cr" in line or "me:" in line], said
    assert all("127.0.0.1" in line or "nonsense://x/y" in line for line in said)
    assert json.loads((copied / "dataset.json").read_text())["name"] == remote.name
