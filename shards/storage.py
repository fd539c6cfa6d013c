"""Where a shard's file descriptor comes from: a folder, or the cache that keeps fetched files."""

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.atomic import SUFFIX, atomic_write, lock_of, locked
from shards.errors import InputError

_PAUSE = 0.1  # seconds between looks at a cache that others are filling


def open_regular(path: Path, *, follow: bool = True) -> int:
    """A descriptor that reads a regular file. Raises OSError, at once, for a pipe, a device or a folder.

    follow: through a symbolic link too. People keep large tars on another disk and link to them, and where a link
    in the user's own folder leads is the user's to say. Not so in the cache, which nobody but us fills.
    """
    # without O_NONBLOCK, opening a pipe waits until somebody writes into it
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


class Descriptor:
    """An open regular file, closed when the last one who reads from it lets go. follow: see open_regular."""

    def __init__(self, path: Path, *, follow: bool = True) -> None:
        self.number = open_regular(path, follow=follow)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class EndsEarly(OSError):
    """A file that is shorter than what is asked for."""


def stamp(path: Path) -> dict[str, Any]:
    """Length and sha256 of a file, as dataset.json and a checkpoint's files.json state them."""
    with open(open_regular(path), "rb") as handle:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


class LocalShards:
    """The tars in a folder. Threads may share one object."""

    capacity: int | None = None  # bytes of tars that can be at hand at once; None: all
    keep_open = float("inf")  # seconds

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, tuple[Descriptor, float]] = {}  # and since when
        self._lock = threading.Lock()

    def check(self, ends: dict[str, int]) -> None:
        """Raise InputError where a tar is missing or shorter than the end of its last row."""
        for shard, end in ends.items():
            tar = self.folder / shard
            if not tar.is_file():
                found = "not a regular file" if tar.exists() else "no such file"
                raise InputError(f"{tar}: {found}, but the table has rows in it; restore the file")
            if (size := tar.stat().st_size) < end:
                raise InputError(
                    f"{tar}: {size} bytes, but the table's rows in it end at {end}; "
                    "make the shards again or restore the file (tools/check_shards.py says what is lost)"
                )

    def descriptor(self, shard: str) -> Descriptor:
        """The tar, open; hold it while reading."""
        now = time.monotonic()
        with self._lock:
            descriptor, since = self._open.get(shard, (None, now))
        if descriptor is None or now - since > self.keep_open:
            descriptor = self.obtain(shard)
            with self._lock:
                kept = {name: one for name, one in self._open.items() if now - one[1] <= self.keep_open}
                self._open = kept | {shard: (descriptor, now)}
        return descriptor

    def obtain(self, shard: str) -> Descriptor:
        """The tar, newly opened."""
        return Descriptor(self.folder / shard)

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """That many bytes of a tar. Raises OSError where it cannot be read or ends before, InputError if not fetched."""
        descriptor, parts, missing = self.descriptor(shard), [], size
        while missing:
            part = os.pread(descriptor.number, missing, offset + size - missing)
            if not part:
                raise EndsEarly(f"ends {missing} bytes before the end of the video")
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def forget(self, shard: str) -> None:
        """Open the tar again when it is next asked for."""
        with self._lock:
            self._open.pop(shard, None)

    def refetch(self, shard: str) -> bool:
        """False: there is nowhere to fetch a tar from."""
        return False

    def prefetch(self, shards: list[str]) -> None:
        """Nothing to do: they are here."""

    def close(self) -> None:
        with self._lock:
            self._open.clear()


def cache_folder() -> Path:
    """$SLIPSTREAM_CACHE, else ~/.cache/slipstream."""
    return Path(os.environ.get("SLIPSTREAM_CACHE") or Path.home() / ".cache" / "slipstream")


class Cache:
    """Files ROOT/GROUP/NAME of at most `limit` bytes together; those used longest ago make room for new ones.

    A file is there whole or not at all. Who reads one that is removed meanwhile can read it to its end. Symbolic links
    below ROOT are never followed: whoever put one there would choose what is read, written or removed.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self._root, self._limit = root, limit

    def open(self, path: Path, size: int, fetch: Callable[[Path], None]) -> Descriptor:
        """The file ROOT/GROUP/NAME of `size` bytes, open; `fetch` writes it to the path it is given.

        Of several who ask at once one fetches and the others wait. `size` must not exceed the limit.
        """
        while True:
            try:
                if _is_whole(path, size):
                    os.utime(path, follow_symlinks=False)  # it is in use
                    return Descriptor(path, follow=False)
            except FileNotFoundError:
                pass  # removed just now
            with locked(lock_of(path)):
                if not _is_whole(path, size):
                    with atomic_write(path) as temporary:
                        self._reserve(temporary, size)
                        fetch(temporary)

    def discard(self, path: Path) -> None:
        """Remove a file whose content is not what was fetched."""
        with locked(lock_of(path)):
            path.unlink(missing_ok=True)

    def _reserve(self, temporary: Path, size: int) -> None:
        """Make room and take it: a file of the full length, whose content is still to come."""
        while True:
            with locked(self._root / ".lock"):
                if self._make_room(size):
                    with open(temporary, "xb") as handle:
                        handle.truncate(size)
                    return
            time.sleep(_PAUSE)  # all that is left is being fetched by others, and then may go

    def _make_room(self, size: int) -> bool:
        """Remove what a killed process left and, oldest first, files until `size` more bytes fit."""
        groups = [group for group in self._root.iterdir() if group.is_dir() and not group.is_symlink()]
        for partial in [path for group in groups for path in group.glob(f".*{SUFFIX}")]:
            with locked(lock_of(_finished(partial)), wait=False) as mine:
                if mine:
                    partial.unlink(missing_ok=True)
        paths = [path for group in groups for path in group.iterdir() if path.suffix in (".tar", SUFFIX)]
        there: dict[Path, os.stat_result] = {}
        for path in paths:
            for place in (path, _finished(path)):  # a partial file may have got its name just now
                with suppress(FileNotFoundError):
                    there[place] = place.lstat()
                    break
        free = self._limit - sum(status.st_size for status in there.values())
        for path, status in sorted(there.items(), key=lambda one: one[1].st_mtime_ns):
            if free < size and path.suffix == ".tar":
                path.unlink()
                free += status.st_size
        return free >= size


def _finished(path: Path) -> Path:
    """The path that a partial file gets; any other path as it is."""
    if path.suffix != SUFFIX:
        return path
    return path.with_name(path.name[1:].removesuffix(SUFFIX))


def _is_whole(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size
