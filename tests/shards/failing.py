"""A disk whose k-th operation fails: what Python writes, opens for writing, renames, makes and removes is counted."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CALLS = (
    "link",
    "replace",
    "rename",
    "mkdir",
    "unlink",
    "remove",
    "rmdir",
    "fsync",
    "write",
    "ftruncate",
    "chmod",
)


class Disk:
    """While it is installed, operation number `fails` (from 1) ends with "no space left"; `done` counts them all.

    What FFmpeg and Arrow write to a path of their own accord is not seen.
    """

    def __init__(self, fails: int, patch: pytest.MonkeyPatch) -> None:
        self.fails, self.done = fails, 0
        open_file, open_descriptor = io.open, os.open

        def opening(file: Any, mode: str = "r", *options: Any, **named: Any) -> Any:
            if (
                not isinstance(file, str | Path)
                or not set(mode) & set("wxa+")
                or str(file).startswith("/dev/")
            ):
                return open_file(file, mode, *options, **named)
            self.count(f"open {file}")
            text = {name: named[name] for name in ("encoding", "errors", "newline") if name in named}
            raw = _Raw(self, file, mode.replace("b", "").replace("t", ""), opener=named.get("opener"))
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, **text)

        def opening_descriptor(path: Any, flags: int, *options: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.count(f"os.open {path}")
            return open_descriptor(path, flags, *options, **named)

        patch.setattr(builtins, "open", opening)
        patch.setattr(io, "open", opening)
        patch.setattr(os, "open", opening_descriptor)
        for name in CALLS:
            patch.setattr(os, name, self._counting(name, getattr(os, name)))

    def count(self, what: str) -> None:
        self.done += 1
        if self.done == self.fails:
            self.what = what
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _counting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count(f"{name} {arguments[0]}")
            return call(*arguments, **options)

        return counted


class _Raw(io.FileIO):
    def __init__(self, disk: Disk, file: Any, mode: str, opener: Any) -> None:
        self._disk = disk
        super().__init__(file, mode, opener=opener)

    def write(self, data: Any) -> int | None:
        self._disk.count(f"write {self.name}")
        return super().write(data)


def every_failure(
    command: Callable[[], int],
    begin: Callable[[], None],
    check: Callable[[int, bool, bool], None],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    again_every: int = 1,
    stride: int = 1,
) -> int:
    """Let the k-th operation fail, for each k (every `stride`-th where each costs seconds); gives how many there are.

    After every `again_every`-th failure the command is repeated, and must come through.
    """
    for number, k in enumerate(range(1, 2000, stride)):
        begin()
        with monkeypatch.context() as patch:
            disk = Disk(k, patch)
            ended = command()
        said = capfd.readouterr().err
        if disk.done < k:
            assert ended == 0 and k > 1
            return disk.done
        shown = [line for line in said.split("\n") if line.startswith(("error: ", "Traceback"))]
        # what only tidies up may fail without a word
        assert ended in (0, status) and "Traceback" not in said, (k, disk.what, said)
        assert len(shown) == (ended != 0), (k, disk.what, said)
        check(k, ended == 0, False)
        if number % again_every:
            continue
        assert command() == 0, (k, disk.what, capfd.readouterr().err)
        check(k, True, True)
        capfd.readouterr()
    raise AssertionError("it never came through")
