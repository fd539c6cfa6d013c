"""Data sets behind a URL: the table is read first, then each tar is fetched whole when it is needed, and cached.

Without a cache (--cache-gb 0) nothing is fetched but what is asked for: a range of a tar's bytes for each read.
The cache is $SLIPSTREAM_CACHE/remote (~/.cache/slipstream/remote); all remote data sets share its size. A tar
counts as fetched only when its length and sha256 are those that dataset.json states. Credentials and endpoints are
those of each protocol's own library (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, …), and
fsspec's (FSSPEC_S3='{"anon": true}'). What a URL has before its @ is never shown.
"""

import hashlib
import importlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from shards.atomic import atomic_write, locked, not_through_a_link
from shards.documents import LARGEST
from shards.errors import InputError
from shards.schema import DESCRIPTION, QUARANTINE, TABLE, parse_description, safe_name
from shards.storage import Cache, Descriptor, LocalShards, cache_folder
from shards.table import quarantine, quarantine_entries, quarantined

Result = TypeVar("Result")

DEFAULT_GB = 100.0
ATTEMPTS = 4
PAUSE = 0.5  # seconds, doubled before each attempt
STALLS = 2  # of these attempts, may wait in vain
SILENCE = 20.0  # seconds without a byte after which a server is taken to stall; a whole tar may take any time
_BLOCK = 2**22
_AT_ONCE = 2  # tars fetched ahead at the same time
_LARGEST_NOTES = 2**26  # bytes of quarantine.jsonl
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)")


def url_of(path: str | Path) -> str | None:
    """The URL that `path` is, or None: pathlib makes s3:/bucket/name of s3://bucket/name."""
    match = _URL.fullmatch(str(path))
    return f"{match[1]}://{match[2].rstrip('/')}" if match else None


def shown(address: str) -> str:
    """A path or URL as messages name it: without the user name and password that a URL may hold."""
    return re.sub(r"^([a-z][a-z0-9+.-]+:/{1,2})[^/@]*@", r"\1", address)


class RemoteShards(LocalShards):
    """The tars of a remote data set. Threads may share one object."""

    # opened again now and then, which notes that it is in use; what has left the cache then leaves the disk too
    keep_open = 10.0

    def __init__(self, url: str, cache_gb: float | None = None) -> None:
        limit = _capacity(cache_gb)
        self.place, self.capacity = shown(url), limit or None
        self._url = url
        self._ended = threading.Event()
        self._files, self._base = filesystem(url)
        self._root = cache_folder() / "remote"
        self._cache = Cache(self._root, limit)
        folder, self._tars = self._fetch_table()
        super().__init__(folder)
        if not limit:
            try:
                self._range(DESCRIPTION, 0, 1)
            except _Failed as failed:
                found = f"{self.place} answers no requests for a part of a file"
                raise InputError(f"--cache-gb 0: {found}; give a cache ({failed.problem})") from failed
        self._refetched: set[str] = set()
        self._ahead: ThreadPoolExecutor | None = None
        self._coming: dict[str, Future[Descriptor]] = {}

    def check(self, ends: dict[str, int]) -> None:
        """Raise InputError where dataset.json and the table disagree, or the cache is too small to train from."""
        for shard, end in ends.items():
            if self._tars.get(shard, {}).get("bytes", -1) < end:
                raise InputError(
                    f"{self.place}/{DESCRIPTION}: {shard} is missing or shorter than the table says; upload all again"
                )
        least = 2 * max((self._tars[shard]["bytes"] for shard in ends), default=0)
        if self.capacity is not None and self.capacity < least:
            raise InputError(
                f"--cache-gb {self.capacity / 1e9:g}: two tars of {self.place} do not fit; "
                f"give {least / 1e9:.3g} or more (or SLIPSTREAM_CACHE_GB)"
            )

    def obtain(self, shard: str) -> Descriptor:
        """The tar, newly opened; fetched first where it is not in the cache. Raises InputError when it cannot be."""
        size = self._tars[shard]["bytes"]
        return self._cache.open(
            self.folder / shard, size, lambda to: self._patiently(shard, lambda: self._download(shard, to))
        )

    def read(self, shard: str, offset: int, size: int) -> bytes:
        if self.capacity is not None:
            return super().read(shard, offset, size)
        return self._range(shard, offset, size)

    def _range(self, name: str, offset: int, size: int) -> bytes:
        place = f"{self._base}/{name}"

        def fetch() -> bytes:
            if self.place.startswith("http"):
                # as it comes, so that no answer is longer than what was asked for
                headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
                with self._files.open(place, "rb", block_size=0, size=size, headers=headers) as there:
                    data = b"".join(_pieces(there, size))
            else:
                data = bytes(self._files.cat_file(place, start=offset, end=offset + size))
            if len(data) != size:
                raise ValueError(f"{len(data)} bytes came instead of {size}")
            return data

        return self._patiently(name, fetch)

    def refetch(self, shard: str) -> bool:
        """Drop a tar whose bytes are not those that were fetched; False where it was dropped once before."""
        with self._lock:
            if shard in self._refetched:
                return False
            self._refetched.add(shard)
        self.forget(shard)
        self._cache.discard(self.folder / shard)
        return True

    def prefetch(self, shards: list[str]) -> None:
        """Begin to fetch these tars, in this order, and return. Trouble shows when a row is read."""
        if self.capacity is None:
            return
        with self._lock:
            self._ahead = self._ahead or ThreadPoolExecutor(_AT_ONCE, "slipstream-fetch")
            self._coming = {name: one for name, one in self._coming.items() if not one.done()}
            for shard in shards:
                if shard not in self._coming:
                    self._coming[shard] = self._ahead.submit(self.obtain, shard)

    def close(self) -> None:
        """Close the tars and stop fetching."""
        super().close()
        with self._lock:
            ahead, self._ahead = self._ahead, None
        if ahead:
            self._ended.set()
            ahead.shutdown(wait=True, cancel_futures=True)
            self._ended.clear()

    def _download(self, shard: str, to: Path) -> None:
        expected, digest, size = self._tars[shard], hashlib.sha256(), 0
        with self._opened(shard) as there, open(to, "r+b", opener=not_through_a_link) as here:
            for piece in _pieces(there, expected["bytes"]):
                if self._ended.is_set():
                    raise InterruptedError("the data set was closed")
                try:
                    here.write(piece)
                except OSError as error:
                    raise _OwnDisk(error.errno, error.strerror, str(to)) from error
                digest.update(piece)
                size += len(piece)
        if (size, digest.hexdigest()) != (expected["bytes"], expected["sha256"]):
            raise ValueError(f"{size} bytes came that are not the {expected['bytes']} of {DESCRIPTION}")

    def _opened(self, name: str) -> Any:
        block = 0 if self.place.startswith("http") else _BLOCK  # 0: one answer as it comes, no range requests
        return self._files.open(f"{self._base}/{name}", "rb", block_size=block)

    def _patiently(self, name: str, fetch: Callable[[], Result]) -> Result:
        """What `fetch` gives of a file, tried ATTEMPTS times. Raises _Failed, at once where the file is not there."""
        stalls = 0
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return fetch()
            except _OwnDisk:
                raise
            except Exception as error:  # each protocol's library has errors of its own
                stalls += isinstance(error, TimeoutError)
                absent = isinstance(error, FileNotFoundError)
                if absent or stalls == STALLS or attempt == ATTEMPTS or self._ended.is_set():
                    problem = (
                        f"nothing came for {SILENCE:g} s" if stalls == STALLS else said_of(error, self._url)
                    )
                    found = f"cannot be fetched, {attempt} times tried ({problem})"
                    advice = "check address, credentials and network, and that the upload is whole"
                    failed = _Failed(f"{self.place}/{name}: {found}; {advice}")
                    failed.problem, failed.absent = problem, absent
                    raise failed from error
            self._ended.wait(PAUSE * 2.0**attempt)
        raise AssertionError

    def _fetch_table(self) -> tuple[Path, dict[str, dict[str, Any]]]:
        """A folder of the cache that belongs to this state of the data set, with its table; and what its tars are."""
        described = self._whole(DESCRIPTION, LARGEST)
        info = parse_description(described, f"{self.place}/{DESCRIPTION}")
        table = info.get("table")
        state = hashlib.sha256(self.place.encode() + described).hexdigest()[:16]
        folder = self._root / f"{safe_name(self.place.rpartition('/')[2])[:64]}-{state}"
        if folder.is_symlink():
            raise InputError(f"{folder}: is a link, and links are not written through; remove it")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            if not (folder / TABLE).is_file():
                rows = self._whole(TABLE, table["bytes"] if table else self.capacity or _capacity(DEFAULT_GB))
                if table and hashlib.sha256(rows).hexdigest() != table["sha256"]:
                    raise InputError(
                        f"{self.place}/{TABLE}: not the one that {DESCRIPTION} describes; upload both"
                    )
                for name, content in ((TABLE, rows), (DESCRIPTION, described)):
                    with atomic_write(folder / name) as temporary:
                        temporary.write_bytes(content)
            self._merge_quarantine(folder)
        return folder, info["tars"]

    def _merge_quarantine(self, folder: Path) -> None:
        """Rows noted there are bad here too; those noted here stay here."""
        try:
            content = self._whole(QUARANTINE, _LARGEST_NOTES)
        except _Failed:  # it need not be there
            return
        with atomic_write(folder / f"there-{QUARANTINE}") as temporary:
            temporary.write_bytes(content)
        known = quarantined(folder)
        for key, reason in quarantine_entries(folder / f"there-{QUARANTINE}"):
            if key not in known:
                quarantine(folder, key, reason)

    def _whole(self, name: str, most: int) -> bytes:
        def fetch() -> bytes:
            with self._opened(name) as there:
                return b"".join(_pieces(there, most))

        try:
            return self._patiently(name, fetch)
        except _Failed as failed:
            if failed.absent:
                found = f"no {name} there, so not a finished data set; upload the whole folder"
                failed.args = (f"{self.place}: {found}",)
            raise


class _Failed(InputError):
    """A file that could not be fetched. problem: of the last try. absent: it is not there."""

    problem: str
    absent: bool


class _OwnDisk(OSError):
    """The cache cannot be written: no fault of the network."""


def _pieces(there: Any, most: int) -> Iterator[bytes]:
    """What comes until the end. Raises ValueError for more than `most` bytes."""
    left = most
    while piece := there.read(_BLOCK):
        left -= len(piece)
        if left < 0:
            raise ValueError(f"more than {most} bytes came")
        yield piece


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Raises InputError where there is none, or not all it needs."""
    options: dict[str, Any] = {}
    try:
        if url.startswith("http"):
            # aiohttp would end each answer after five minutes
            timeout = importlib.import_module("aiohttp").ClientTimeout
            silence = timeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
            options["client_kwargs"] = {"timeout": silence}
        files, base = importlib.import_module("fsspec.core").url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        fix = "give a folder, s3://, gs:// or https://"
        fix = (
            'pip install "slipstream[remote]" (for gs:// "slipstream[gcs]")'
            if isinstance(error, ImportError)
            else fix
        )
        raise InputError(f"{shown(url)}: {said_of(error, url)}; {fix}") from None
    return files, base.rstrip("/")


def said_of(error: Exception, url: str) -> str:
    """The first line of what a library says of a URL, without the user's part of it and the password in that."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    if user := re.match(r"[a-z][a-z0-9+.-]+://([^/@]*)@", url):
        text = text.replace(f"{user[1]}@", "")
        for part in filter(None, (user[1], user[1].partition(":")[2])):
            text = text.replace(part, "…").replace(unquote(part), "…")
    return text


def _capacity(cache_gb: float | None) -> int:
    flag, size = "--cache-gb", str(cache_gb)
    if cache_gb is None:
        flag, size = "SLIPSTREAM_CACHE_GB", os.environ.get("SLIPSTREAM_CACHE_GB") or str(DEFAULT_GB)
    with suppress(ValueError):
        if 0 <= float(size) < float("inf"):
            return int(float(size) * 1e9)
    raise InputError(f"{flag} {size}: give the size of the local cache in GB, or 0 for none")
