"""Whole files in a folder of limited size, shared by any number of processes and threads."""

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shards.atomic import SUFFIX, atomic_write, lock_of, locked
from shards.storage import Descriptor

_PAUSE = 0.1  # seconds between looks at a cache that others are filling


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
                    self.touch(path)
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

    def touch(self, path: Path) -> None:
        """Note that a file is in use."""
        os.utime(path, follow_symlinks=False)

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
        used = sum(status.st_size for status in there.values())
        for path, status in sorted(there.items(), key=lambda one: one[1].st_mtime_ns):
            if used + size <= self._limit:
                break
            if path.suffix == ".tar":
                path.unlink()
                used -= status.st_size
        return used + size <= self._limit


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
