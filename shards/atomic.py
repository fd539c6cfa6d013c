"""Files and folders that are there whole or not at all, and locks between those who make them."""

import errno
import fcntl
import logging
import os
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import InputError

SUFFIX = ".partial"
log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_FLOCK = "hhqqi4x"  # struct flock


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush it to the disk and rename it to `path`."""
    temporary = path.with_name(f".{path.name}{SUFFIX}")
    # left by a killed process, or a link to a file that is not ours to write
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)  # the rename itself is on the disk only when the folder is


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

    The system takes it back from a process that dies, and NFS tells other machines of it. Where the file system has no
    locks, a warning is all there is. Raises InputError where the
    lock's file is a symbolic link: it would be made wherever that leads.
    """
    with open(path, "w", opener=not_through_a_link) as handle:
        try:
            # a lock of the open file: flock stays on this machine on some file systems, and a plain POSIX lock is the
            # process's, so that threads do not exclude each other
            request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(handle, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
            free = True
        except (BlockingIOError, PermissionError):
            free = False
        except OSError as error:
            if not _without_locks(error, path):
                raise
            free = True
        yield free


def _without_locks(error: OSError, path: Path) -> bool:
    """Whether an error says that a file system has no locks: then a warning is all there is."""
    if error.errno in _NO_LOCKS:
        log.warning("%s: its file system has no locks; let nothing else write there", path)
    return error.errno in _NO_LOCKS


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


class WriterLock:
    """A folder's lock, held from here to `close`, or to the process's end.

    folder: that is written to. name: of it, such as the flag, for the message. parts: bytes of the lock file, each of
    which stands for a part of the folder; None: all of it.
    A POSIX lock on FOLDER/.lock, not flock: NFS passes it on to other machines. The system drops it with the process.
    The file says who holds it, and stays. Where the file system has no locks, a warning is all there is.
    Raises InputError that says who holds the lock; OSError where the file cannot be written.
    """

    def __init__(self, folder: Path, name: str, parts: Iterable[int] | None = None) -> None:
        path = folder / ".lock"
        self._file = open(path, "a+", errors="replace", opener=not_through_a_link)  # noqa: SIM115 (closed by close)
        try:
            for length, part in [(0, 0)] if parts is None else [(1, part) for part in parts]:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, part)
        except OSError as error:
            if not _without_locks(error, path):
                holder = self._holder(part, length)
                self.close()
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                found = f"{holder} is writing to it; wait for it, or name another folder"
                raise InputError(f"{name}: {found}") from None
        if parts is None:
            self._file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _holder(self, part: int, length: int) -> str:
        """The last line of the process that has this part of the lock, as far as the system knows which that is."""
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, part, length, 0)
        pid = struct.unpack(_FLOCK, fcntl.fcntl(self._file, fcntl.F_GETLK, asked))[-1]
        self._file.seek(0)
        lines = self._file.read().splitlines()
        said = [line for line in lines if line.startswith(f"process {pid} ")] if pid > 0 else lines
        return said[-1][:200] if said else "another process"
