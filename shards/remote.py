"""Data sets behind a URL: the table is read first, then each tar is fetched whole when it is needed, and cached.

The cache is $SLIPSTREAM_CACHE/remote (~/.cache/slipstream/remote); all remote data sets share its size. A tar
counts as fetched only when its length and sha256 are those that dataset.json states. Credentials and endpoints are
those of each protocol's own library (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, …), and
fsspec's (FSSPEC_S3='{"anon": true}').
"""

import contextlib
import hashlib
import importlib
import os
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shards import quarantine
from shards.atomic import written_aside
from shards.cache import Cache, cache_folder, locked, not_through_a_link
from shards.errors import InputError
from shards.keys import safe_name
from shards.schema import parse_description
from shards.storage import Descriptor
from shards.table import DESCRIPTION, QUARANTINE, TABLE

DEFAULT_GB = 100.0
ATTEMPTS = 4
_BLOCK = 2**22
_AT_ONCE = 2  # tars fetched ahead at the same time
_IN_USE = 10.0  # seconds between the notes that a tar is in use
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}([^/].*)")


def url_of(path: str | Path) -> str | None:
    """The URL that `path` is, or None: pathlib makes s3:/bucket/name of s3://bucket/name."""
    match = _URL.fullmatch(str(path))
    return f"{match[1]}://{match[2].rstrip('/')}" if match else None


class RemoteShards:
    """The tars of a remote data set. Threads may share one object."""

    def __init__(self, url: str, cache_gb: float | None = None) -> None:
        self.place, self.capacity = url, _capacity(cache_gb)
        self._files, self._base = _filesystem(url)
        self._root = cache_folder() / "remote"
        self._cache = Cache(self._root, self.capacity)
        self.folder, self._tars = self._fetch_table()
        self._open: dict[str, tuple[Descriptor, float]] = {}  # and when its use was last noted
        self._lock, self._ended = threading.Lock(), threading.Event()
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
        if self.capacity < least:
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

    def forget(self, shard: str) -> None:
        """Open the tar anew when it is next asked for."""
        with self._lock:
            self._open.pop(shard, None)

    def prefetch(self, shards: list[str]) -> None:
        """Begin to fetch these tars, in this order, and return. Trouble shows when a row is read."""
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
        expected, problem = self._tars[shard], ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._ended.wait(2.0**attempt / 2)
            try:
                size, digest = self._download(shard, to)
            except _Ended:
                raise
            except Exception as error:  # each protocol's library has errors of its own
                problem = _line(error)
                continue
            if (size, digest) == (expected["bytes"], expected["sha256"]):
                return
            problem = f"{size} bytes came that are not the {expected['bytes']} of {DESCRIPTION}"
        raise InputError(
            f"{self.place}/{shard}: cannot be fetched, {ATTEMPTS} times tried ({problem}); "
            "check the network and that the upload is whole, then go on with --resume"
        )

    def _download(self, shard: str, to: Path) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        block = 0 if self.place.startswith("http") else _BLOCK  # 0: one answer as it comes, no range requests
        with (
            self._files.open(f"{self._base}/{shard}", "rb", block_size=block) as there,
            open(to, "r+b", opener=not_through_a_link) as here,
        ):
            while piece := there.read(_BLOCK):
                if self._ended.is_set():
                    raise _Ended
                here.write(piece)
                digest.update(piece)
                size += len(piece)
        return size, digest.hexdigest()

    def _fetch_table(self) -> tuple[Path, dict[str, dict[str, Any]]]:
        """A folder of the cache that belongs to this state of the data set, with its table; and what its tars are."""
        described = self._small(DESCRIPTION)
        info = parse_description(described, f"{self.place}/{DESCRIPTION}")
        table = info.get("table")
        state = hashlib.sha256(self.place.encode() + described).hexdigest()[:16]
        folder = self._root / f"{safe_name(self.place.rpartition('/')[2])[:64]}-{state}"
        if folder.is_symlink():
            raise InputError(f"{folder}: is a link, and links are not written through; remove it")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            if not (folder / TABLE).is_file():
                rows = self._small(TABLE)
                if table and hashlib.sha256(rows).hexdigest() != table["sha256"]:
                    raise InputError(
                        f"{self.place}/{TABLE}: not the one that {DESCRIPTION} describes; upload both"
                    )
                for name, content in ((TABLE, rows), (DESCRIPTION, described)):
                    with written_aside(folder / name) as temporary:
                        temporary.write_bytes(content)
            self._merge_quarantine(folder)
        return folder, info["tars"]

    def _merge_quarantine(self, folder: Path) -> None:
        """Rows noted there are bad here too; those noted here stay here."""
        try:
            lines = self._files.cat_file(f"{self._base}/{QUARANTINE}").decode().splitlines()
        except Exception:  # it need not be there
            return
        with written_aside(folder / f"there-{QUARANTINE}") as temporary:
            temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
        known = quarantine.noted(folder)
        for key, reason in quarantine.entries(folder / f"there-{QUARANTINE}"):
            if key not in known:
                quarantine.note(folder, key, reason)

    def _small(self, name: str) -> bytes:
        try:
            return bytes(self._files.cat_file(f"{self._base}/{name}"))
        except FileNotFoundError:
            raise InputError(
                f"{self.place}: no {name} there, so not a finished data set; upload the whole folder"
            ) from None
        except Exception as error:  # each protocol's library has errors of its own
            raise InputError(
                f"{self.place}/{name}: cannot be read ({_line(error)}); check address, credentials and network"
            ) from error


class _Ended(Exception):
    """The data set was closed while a tar was on its way."""


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        files, base = importlib.import_module("fsspec.core").url_to_fs(url)
    except ImportError as error:
        raise InputError(f"--data {url}: {_line(error)}; pip install fsspec aiohttp s3fs") from None
    except ValueError as error:
        raise InputError(f"--data {url}: {_line(error)}; give a folder, s3://, gs:// or https://") from None
    return files, base.rstrip("/")


def _capacity(cache_gb: float | None) -> int:
    flag, text = "--cache-gb", str(cache_gb)
    if cache_gb is None:
        flag, text = "SLIPSTREAM_CACHE_GB", os.environ.get("SLIPSTREAM_CACHE_GB") or str(DEFAULT_GB)
    try:
        capacity = float(text) * 1e9
    except ValueError:
        capacity = 0.0
    if not capacity > 0:
        raise InputError(f"{flag} {text}: give the size of the local cache in GB, more than 0")
    return int(capacity)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
