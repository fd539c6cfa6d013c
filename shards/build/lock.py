"""One writer a shard: locks that a killed process cannot leave behind, also between machines that share a disk."""

import fcntl
import os
import shutil
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from shards.atomic import sweep
from shards.build.job import Job, Notes, Part, check_same
from shards.errors import InputError
from shards.schema import DESCRIPTION, REJECTED

# Byte n of the lock file stands for shard n, the one far behind them for the outline. POSIX locks, not flock:
# NFS passes them on to other machines.
OUTLINE_BYTE = 2**40
_FLOCK = "hhqqi4x"  # struct flock


@contextmanager
def locked_job(job: Job, part: Part | None) -> Iterator[None]:
    """Be the only one to write a part of a job, or all of it (None), in a new folder or where it was cut off.

    Raises InputError when another process is at work on one of these shards, or the folder holds something
    else than this job.
    """
    notes = job.notes
    _check_free(notes)
    with locked_shards(notes, None if part is None else job.shards(part)) as lock:
        if part is not None:
            fcntl.lockf(lock, fcntl.LOCK_EX, 1, OUTLINE_BYTE)
        begin(notes, job.outline)
        if part is not None:
            fcntl.lockf(lock, fcntl.LOCK_UN, 1, OUTLINE_BYTE)
        if job.unread:  # the tars change: until they have, this is no complete data set
            (notes.out / DESCRIPTION).unlink(missing_ok=True)
        for shard in job.shards(part or Part()):
            if notes.scratch(shard).is_dir():
                shutil.rmtree(notes.scratch(shard))
        yield


@contextmanager
def locked_shards(notes: Notes, shards: Iterable[int] | None) -> Iterator[BufferedRandom]:
    """Hold the shards' locks; None: the whole folder's. Raises InputError when another process has one."""
    notes.folder.mkdir(parents=True, exist_ok=True)
    with open(notes.folder / "lock", "ab+") as lock:
        try:
            if shards is None:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                for shard in shards:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
        except OSError as error:
            if not isinstance(error, BlockingIOError | PermissionError):
                raise
            who = _holder(lock)
            raise InputError(
                f"--out {notes.out}: another make_shards.py is at work on it{who}; wait for it"
            ) from None
        lock.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
        lock.flush()
        yield lock


def _holder(lock: BufferedRandom) -> str:
    """Which process has a part of the lock, as far as the system knows it."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    pid = struct.unpack(_FLOCK, fcntl.fcntl(lock, fcntl.F_GETLK, asked))[-1]
    lock.seek(0)
    lines = lock.read().decode(errors="replace").splitlines()
    hosts = [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == str(pid)]
    return f" (process {pid}{f' on {hosts[-1]}' if hosts else ''})" if pid > 0 else ""


def begin(notes: Notes, outline: dict[str, Any]) -> None:
    """Write the outline of a job into its folder, or check that it is the one there. Hold its lock."""
    there = notes.outline
    if there is None:
        sweep(notes.folder)
        notes.begin(outline)
    else:
        check_same(notes.out, there["settings"], outline["settings"])


def _check_free(notes: Notes) -> None:
    if not notes.out.exists() or notes.outline is not None:
        return
    strangers = [path.name for path in _content(notes.out) if path.name != REJECTED]
    if strangers:
        found = f"holds {strangers[0]} and no data set"
        raise InputError(f"--out {notes.out}: {found}; give an empty or a new folder")


def _content(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
