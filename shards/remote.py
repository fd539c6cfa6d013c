"""Data sets behind a URL: the table is read first, then each tar is fetched whole when it is needed, and cached.

Without a cache (--cache-gb 0) nothing is fetched but what is asked for: a range of a tar's bytes for each read.
The cache is $SLIPSTREAM_CACHE/remote (~/.cache/slipstream/remote); all remote data sets share its size. A tar
counts as fetched only when its length and sha256 are those that dataset.json states. Credentials and endpoints are
those of each protocol's own library (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, …), and
fsspec's (FSSPEC_S3='{"anon": true}'). What a URL has before its @ is never shown.
"""

import contextlib
import hashlib
import importlib
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from shards.atomic import atomic_write, locked, not_through_a_link
from shards.documents import LARGEST
from shards.errors import InputError
from shards.schema import DESCRIPTION, QUARANTINE, TABLE, parse_description, safe_name
from shards.storage import Cache, Descriptor, cache_folder, read_part
from shards.table import quarantine, quarantine_entries, quarantined

Result = TypeVar("Result")

DEFAULT_GB = 100.0
ATTEMPTS = 4
PAUSE = 0.5  # seconds, doubled before each attempt
STALLS = 2  # of these attempts, may wait in vain
SILENCE = 20.0  # seconds without a byte after which a server is taken to stall; a whole tar may take any time
_BLOCK = 2**22
_AT_ONCE = 2  # tars fetched ahead at the same time
_IN_USE = 10.0  # seconds between the notes that a tar is in use
_LARGEST_NOTES = 2**26  # bytes of quarantine.jsonl
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)")


def url_of(path: str | Path) -> str | None:
    """The URL that `path` is, or None: pathlib makes s3:/bucket/name of s3://bucket/name."""
    match = _URL.fullmatch(str(path))
    return f"{match[1]}://{match[2].rstrip('/')}" if match else None


def shown(address: str) -> str:
    """A path or URL as messages name it: without the user name and password that a URL may hold."""
    return re.sub(r"^([a-z][a-z0-9+.-]+:/{1,2})[^/@]*@", r"\1", address)


class RemoteShards:
    """The tars of a remote data set. Threads may share one object."""

    def __init__(self, url: str, cache_gb: float | None = None) -> None:
        limit = _capacity(cache_gb)
        self.place, self.capacity = shown(url), limit or None
        self._secrets = _secrets(url)
        self._ended = threading.Event()
        self._files, self._base = self._filesystem(url)
        self._root = cache_folder() / "remote"
        self._cache = Cache(self._root, limit)
        self.folder, self._tars = self._fetch_table()
        if not limit:
            self._check_ranges()
        self._open: dict[str, tuple[Descriptor, float]] = {}  # and when its use was last noted
        self._lock = threading.Lock()
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
        least = 2 * max(self._tars[shard]["bytes"] for shard in ends) if ends else 0
        if self.capacity is not None and self.capacity < least:
            raise InputError(
                f"--cache-gb {self.capacity / 1e9:g}: two tars of {self.place} do not fit; "
                f"give {least / 1e9:.3g} or more (or SLIPSTREAM_CACHE_GB)"
            )

    def descriptor(self, shard: str) -> Descriptor:
        """The tar, fetched first where it is not in the cache, open; hold it while reading.

        Raises InputError when it cannot be fetched.
        """
        with self._lock:
            descriptor, noted = self._open.get(shard, (None, 0.0))
            if descriptor and time.monotonic() - noted < _IN_USE:
                return descriptor
        descriptor = descriptor or self._fetched(shard)
        with self._lock:
            self._open[shard] = descriptor, time.monotonic()
            # what has left the cache leaves the disk when the last reader lets go
            for name in [n for n, (one, _) in self._open.items() if os.fstat(one.number).st_nlink == 0]:
                del self._open[name]
        with contextlib.suppress(FileNotFoundError):  # it made room already
            self._cache.touch(self.folder / shard)
        return descriptor

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """That many bytes of a tar. Raises OSError where it ends before, InputError when it cannot be fetched."""
        if self.capacity is not None:
            return read_part(self.descriptor(shard), offset, size)
        return self._tried(shard, lambda: self._range(shard, offset, size))

    def _check_ranges(self) -> None:
        try:
            self._patiently(lambda: self._range(DESCRIPTION, 0, 1))
        except _Failed as failed:
            found = f"{self.place} answers no requests for a part of a file"
            raise InputError(f"--cache-gb 0: {found}; give a cache ({failed})") from failed.__cause__

    def _range(self, name: str, offset: int, size: int) -> bytes:
        place = f"{self._base}/{name}"
        if self.place.startswith("http"):
            # as it comes, so that no answer is longer than what was asked for
            headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
            with self._files.open(place, "rb", block_size=0, size=size, headers=headers) as there:
                data = _read_all(there, size)
        else:
            data = bytes(self._files.cat_file(place, start=offset, end=offset + size))
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes came instead of {size}")
        return data

    def forget(self, shard: str) -> None:
        """Open the tar again when it is next asked for."""
        with self._lock:
            self._open.pop(shard, None)

    def refetch(self, shard: str) -> bool:
        """Drop a tar whose bytes are not those that were fetched; False where it was dropped once before."""
        with self._lock:
            if shard in self._refetched:
                return False
            self._refetched.add(shard)
            self._open.pop(shard, None)
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
                    self._coming[shard] = self._ahead.submit(self._fetched, shard)

    def close(self) -> None:
        """Close the tars and stop fetching."""
        with self._lock:
            self._open.clear()
            ahead, self._ahead = self._ahead, None
        if ahead:
            self._ended.set()
            ahead.shutdown(wait=True, cancel_futures=True)
            self._ended.clear()

    def _fetched(self, shard: str) -> Descriptor:
        return self._cache.open(
            self.folder / shard, self._tars[shard]["bytes"], lambda to: self._fetch(shard, to)
        )

    def _fetch(self, shard: str, to: Path) -> None:
        self._tried(shard, lambda: self._download(shard, to))

    def _tried(self, shard: str, fetch: Callable[[], Result]) -> Result:
        try:
            return self._patiently(fetch)
        except _Failed as failed:
            raise InputError(
                f"{self.place}/{shard}: cannot be fetched, {failed.times} times tried ({failed}); "
                "check the network and that the upload is whole, then go on with --resume"
            ) from failed.__cause__

    def _download(self, shard: str, to: Path) -> None:
        expected, digest, size = self._tars[shard], hashlib.sha256(), 0
        with self._opened(shard) as there, open(to, "r+b", opener=not_through_a_link) as here:
            while piece := there.read(_BLOCK):
                if self._ended.is_set():
                    raise _Ended
                size += len(piece)
                if size > expected["bytes"]:
                    raise ValueError(f"more bytes came than the {expected['bytes']} of {DESCRIPTION}")
                try:
                    here.write(piece)
                except OSError as error:
                    raise _OwnDisk(error.errno, error.strerror, str(to)) from error
                digest.update(piece)
        if (size, digest.hexdigest()) != (expected["bytes"], expected["sha256"]):
            raise ValueError(f"{size} bytes came that are not the {expected['bytes']} of {DESCRIPTION}")

    def _opened(self, name: str) -> Any:
        block = 0 if self.place.startswith("http") else _BLOCK  # 0: one answer as it comes, no range requests
        return self._files.open(f"{self._base}/{name}", "rb", block_size=block)

    def _patiently(self, fetch: Callable[[], Result]) -> Result:
        """What `fetch` gives, tried ATTEMPTS times. Raises _Failed, and FileNotFoundError at once."""
        problem, stalls = "", 0
        for attempt in range(ATTEMPTS):
            if attempt:
                self._ended.wait(PAUSE * 2.0**attempt)
            try:
                return fetch()
            except (_Ended, _OwnDisk):
                raise
            except FileNotFoundError as error:
                raise _Failed("it is not there", attempt + 1) from error
            except Exception as error:  # each protocol's library has errors of its own
                problem, cause = self._line(error), error
                stalls += isinstance(error, TimeoutError)
                if stalls == STALLS:
                    raise _Failed(f"nothing came for {SILENCE:g} s", attempt + 1) from error
        raise _Failed(problem, ATTEMPTS) from cause

    def _fetch_table(self) -> tuple[Path, dict[str, dict[str, Any]]]:
        """A folder of the cache that belongs to this state of the data set, with its table; and what its tars are."""
        described = self._small(DESCRIPTION, LARGEST)
        info = parse_description(described, f"{self.place}/{DESCRIPTION}")
        table = info.get("table")
        state = hashlib.sha256(self.place.encode() + described).hexdigest()[:16]
        folder = self._root / f"{safe_name(self.place.rpartition('/')[2])[:64]}-{state}"
        if folder.is_symlink():
            raise InputError(f"{folder}: is a link, and links are not written through; remove it")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            if not (folder / TABLE).is_file():
                rows = self._small(TABLE, table["bytes"] if table else self.capacity or _capacity(DEFAULT_GB))
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
            lines = self._patiently(lambda: self._whole(QUARANTINE, _LARGEST_NOTES)).decode().splitlines()
        except (_Failed, ValueError):  # it need not be there
            return
        with atomic_write(folder / f"there-{QUARANTINE}") as temporary:
            temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
        known = quarantined(folder)
        for key, reason in quarantine_entries(folder / f"there-{QUARANTINE}"):
            if key not in known:
                quarantine(folder, key, reason)

    def _small(self, name: str, most: int) -> bytes:
        try:
            return self._patiently(lambda: self._whole(name, most))
        except _Failed as failed:
            if isinstance(failed.__cause__, FileNotFoundError):
                raise InputError(
                    f"{self.place}: no {name} there, so not a finished data set; upload the whole folder"
                ) from None
            raise InputError(
                f"{self.place}/{name}: cannot be read ({failed}); check address, credentials and network"
            ) from failed.__cause__

    def _whole(self, name: str, most: int) -> bytes:
        with self._opened(name) as there:
            return _read_all(there, most)

    def _filesystem(self, url: str) -> tuple[Any, str]:
        options: dict[str, Any] = {}
        try:
            if url.startswith("http"):
                # aiohttp would end each answer after five minutes
                timeout = importlib.import_module("aiohttp").ClientTimeout
                silence = timeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
                options["client_kwargs"] = {"timeout": silence}
            files, base = importlib.import_module("fsspec.core").url_to_fs(url, **options)
        except ImportError as error:
            fix = "pip install fsspec aiohttp s3fs (for gs:// gcsfs)"
            raise InputError(f"--data {self.place}: {self._line(error)}; {fix}") from None
        except ValueError as error:
            fix = "give a folder, s3://, gs:// or https://"
            raise InputError(f"--data {self.place}: {self._line(error)}; {fix}") from None
        return files, base.rstrip("/")

    def _line(self, error: Exception) -> str:
        text = (str(error) or type(error).__name__).splitlines()[0]
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text


class _Failed(Exception):
    """What could not be fetched, and how many times that was tried."""

    def __init__(self, problem: str, times: int) -> None:
        super().__init__(problem)
        self.times = times


class _OwnDisk(OSError):
    """The cache cannot be written: no fault of the network."""


class _Ended(Exception):
    """The data set was closed while a tar was on its way."""


def _read_all(there: Any, most: int) -> bytes:
    """What comes until the end. Raises ValueError for more than `most` bytes."""
    pieces, size = [], 0
    while piece := there.read(_BLOCK):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise ValueError(f"more than {most} bytes came")
    return b"".join(pieces)


def _secrets(url: str) -> list[str]:
    """What messages must not hold: the user's part of a URL, and in it the password, as written and decoded."""
    user = re.match(r"[a-z][a-z0-9+.-]+://([^/@]*)@", url)
    if not user:
        return []
    parts = (user[1], user[1].partition(":")[2])
    return [f"{user[1]}@", *(text for part in parts if part for text in (part, unquote(part)))]


def _capacity(cache_gb: float | None) -> int:
    flag, text = "--cache-gb", str(cache_gb)
    if cache_gb is None:
        flag, text = "SLIPSTREAM_CACHE_GB", os.environ.get("SLIPSTREAM_CACHE_GB") or str(DEFAULT_GB)
    try:
        capacity = float(text) * 1e9
    except ValueError:
        capacity = -1.0
    if not 0 <= capacity < float("inf"):
        raise InputError(f"{flag} {text}: give the size of the local cache in GB, or 0 for none")
    return int(capacity)
