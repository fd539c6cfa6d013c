"""Locks between threads and processes, and what a process that dies leaves behind."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from independent import ENVIRONMENT

from shards.atomic import WriterLock, locked, made_once
from shards.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from shards.atomic import locked
with locked(Path(sys.argv[1]), wait=False) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""
RENDER = """
import os, sys, time
from pathlib import Path
from shards.atomic import made_once
def make(folder):
    (folder / "half").write_text("x")
    print("begun", flush=True)
    time.sleep(60)
made_once(Path(sys.argv[1]), make)
"""


WRITE = """
import sys, time
from pathlib import Path
from shards.atomic import WriterLock
folder, part = sys.argv[1].split(":")
lock = WriterLock(Path(folder), "--out", [int(part)])
print("mine", flush=True)
time.sleep(60)
"""


def started(code: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_lock_excludes_processes_and_threads_and_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = started(HOLD, path)
    assert said(holder) == "True"
    with locked(path, wait=False) as mine:
        assert not mine
    open(path).close()  # which would give a plain POSIX lock of our own back
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(path, wait=False) as mine:
        assert mine
        found: list[bool] = []

        def look() -> None:
            with locked(path, wait=False) as theirs:
                found.append(theirs)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert found == [False]
        open(path).close()
        other = started(HOLD, path)
        assert said(other) == "False"
        other.kill()
        other.wait()


def test_who_writes_the_same_part_of_a_folder_is_named(tmp_path: Path) -> None:
    holders = [started(WRITE, Path(f"{tmp_path}:{part}")) for part in (1, 2)]
    try:
        assert [said(one) for one in holders] == ["mine", "mine"]
        for part, holder in enumerate(holders, 1):
            with pytest.raises(InputError, match=f"--out: process {holder.pid} on .* is writing to it"):
                WriterLock(tmp_path, "--out", [0, part])
    finally:
        for one in holders:
            one.kill()
            one.wait()


def test_it_is_a_lock_that_other_machines_see(tmp_path: Path) -> None:
    """An open file description lock, which NFS passes on; flock is this machine's own on several file systems."""
    with locked(tmp_path / "lock") as mine:
        assert mine
        inode = os.stat(tmp_path / "lock").st_ino
        lines = [line for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]
        assert len(lines) == 1 and "OFDLCK" in lines[0] and "WRITE" in lines[0], lines


def test_a_folder_whose_maker_was_killed_is_made_by_the_next(tmp_path: Path) -> None:
    done = tmp_path / "cache" / "demo"
    maker = started(RENDER, done)
    assert said(maker) == "begun"
    maker.kill()
    maker.wait()
    assert not done.exists()

    def make(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "whole").write_text("y")

    assert made_once(done, make) == done
    assert [path.name for path in done.iterdir()] == ["whole"]
    assert sorted(path.name for path in done.parent.iterdir()) == [".demo.lock", "demo"]


def test_a_disk_without_locks_is_written_to_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", refused)
    monkeypatch.setattr(fcntl, "lockf", refused)
    with caplog.at_level(logging.WARNING), locked(tmp_path / "lock") as mine:
        assert mine and "no locks" in caplog.text
    caplog.clear()
    WriterLock(tmp_path, "--out").close()
    assert "no locks" in caplog.text
