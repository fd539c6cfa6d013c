"""One writer a folder: a lock that a killed process cannot leave behind, also between machines that share a disk."""

import errno
import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from shards.atomic import not_through_a_link
from shards.errors import InputError

log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class WriterLock:
    """A folder's lock, held from here to `close`, or to the process's end.

    folder: that is written to. name: of it, such as the flag, for the message.
    A POSIX lock on FOLDER/.lock, not flock: NFS passes it on to other machines. The system drops it with the process. The
    file says who holds it, and stays. Where the file system has no locks, a warning is all there is.
    Raises InputError that says who holds the lock; OSError where the file cannot be written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / ".lock"
        self._file = open(path, "a+", opener=not_through_a_link)  # noqa: SIM115 (closed by close)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                log.warning("%s: its file system has no locks; let nothing else write to it", path)
            else:
                self._file.seek(0)
                holder = self._file.read(200).strip()
                self.close()
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                raise InputError(
                    f"{name}: {holder or 'another process'} is writing to it; wait for it, or name another folder"
                ) from None
        self._file.truncate(0)
        self._file.write(
            f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        self._file.flush()

    def close(self) -> None:
        self._file.close()
