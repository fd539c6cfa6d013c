"""Where a shard's file descriptor comes from, when the data set lies in a folder."""

import errno
import os
import stat
import threading
from pathlib import Path

from shards.errors import InputError


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


def read_part(descriptor: Descriptor, offset: int, size: int) -> bytes:
    """That many bytes of a file from there on. Raises EndsEarly where it ends before."""
    parts: list[bytes] = []
    missing = size
    while missing:
        part = os.pread(descriptor.number, missing, offset + size - missing)
        if not part:
            raise EndsEarly(f"ends {missing} bytes before the end of the video")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class LocalShards:
    """The tars in a folder. Threads may share one object."""

    capacity: int | None = None  # bytes of tars that can be at hand at once; None: all

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = str(folder)
        self._open: dict[str, Descriptor] = {}
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
        with self._lock:
            if shard not in self._open:
                self._open[shard] = Descriptor(self.folder / shard)
            return self._open[shard]

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """That many bytes of a tar. Raises OSError where it cannot be read or ends before."""
        return read_part(self.descriptor(shard), offset, size)

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
