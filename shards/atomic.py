"""Files and folders that are there whole or not at all, and locks between those who make them."""

import errno
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import InputError

SUFFIX = ".partial"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush it to the disk and rename it to `path`."""
    temporary = path.with_name(f".{path.name}{SUFFIX}")
    temporary.unlink(
        missing_ok=True
    )  # left by a killed process, or a link to a file that is not ours to write
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # the rename itself is on the disk only when the folder is
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process left in `folder`. Only for the folder's one writer."""
    for stale in folder.glob(f".*{SUFFIX}"):
        stale.unlink(missing_ok=True)


def made_once(done: Path, make: Callable[[Path], None]) -> Path:
    """The folder `done`; when it is not there yet, `make` fills an empty one that then takes its name.

    Safe from several processes at once: one makes it, the others wait.
    """
    if done.is_dir():
        return done
    done.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(done)):
        if done.is_dir():
            return done
        for stale in done.parent.glob(f".{done.name}-*"):
            shutil.rmtree(stale)
        temporary = Path(tempfile.mkdtemp(dir=done.parent, prefix=f".{done.name}-"))
        try:
            make(temporary)
            os.chmod(temporary, 0o755)
            os.rename(temporary, done)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return done


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock, also against other threads; with wait=False gives whether it was free.

    The system takes it back from a process that dies, and NFS tells other machines of it. Raises InputError where the
    lock's file is a symbolic link: it would be made wherever that leads.
    """
    with open(path, "w", opener=not_through_a_link) as handle:
        try:
            # a lock of the open file: flock stays on this machine on some file systems, and a plain POSIX lock is the
            # process's, so that threads do not exclude each other
            request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(handle, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True


def not_through_a_link(path: str, flags: int) -> int:
    """An opener, for `open`, of a file to be written. Raises InputError where it is a symbolic link."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path}: is a link, and links are not written through; remove it") from None


def lock_of(path: Path) -> Path:
    """The file whose lock guards `path`."""
    return path.with_name(f".{path.name}.lock")
