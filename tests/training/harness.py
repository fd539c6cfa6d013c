"""Runs of train.py in processes forked from one that has loaded torch and DALI: no start-up of seconds each."""

import gc
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.training.preloaded"])
BASE = ("--device", "cpu", "--threads", "2")
LIMIT = 120  # seconds; a run that hangs fails its test
TOY = ("--objective", "toy", "--log-every", "1")


@dataclass(frozen=True)
class Ended:
    """status: of exit, −9 after SIGKILL. said: standard output and error."""

    status: int
    said: str


class Started:
    """A process on its way; `end` waits for it."""

    def __init__(
        self, argv: tuple[str, ...], environment: dict[str, str], file_limit: int | None = None
    ) -> None:
        self._log = Path(tempfile.mkstemp(suffix=".log")[1])
        self.process = _context.Process(target=_run, args=(argv, environment, str(self._log), file_limit))
        self.process.start()

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def signal(self, signum: int) -> None:
        if self.process.exitcode is None and self.process.pid:
            os.kill(self.process.pid, signum)

    def end(self) -> Ended:
        self.process.join(LIMIT)
        hung = self.process.exitcode is None
        if hung:
            self.process.kill()
            self.process.join()
        said, group = self.said(), self.process.pid
        self._log.unlink()
        assert not hung, f"the run did not end:\n{said}"
        assert not (left := members(group)), f"processes {left} are left behind"
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, said)


def members(group: int | None) -> list[int]:
    """Processes of a process group: a run and everything that it started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def _run(argv: tuple[str, ...], environment: dict[str, str], log: str, file_limit: int | None) -> None:
    os.setpgrp()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    os.environ.update(environment)
    if file_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    import train
    from training.processes import ended

    before = open_files()
    status = ended(train.main, [*BASE, *argv])
    gc.collect()  # an error's traceback holds on to what it came through
    threads = {thread.name for thread in threading.enumerate()} - {"MainThread", "tqdm_monitor"}
    if "--torch-compile" in argv:  # torch keeps a pool of its own
        threads = {name for name in threads if not name.startswith("ThreadPoolExecutor-")}
    if left := threads | (open_files() - before):
        sys.exit(f"left behind: {left}")
    sys.exit(status)


def open_files() -> set[str]:
    """Of this process; sockets and pipes are left out, since they end with it."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(link))
    return {path for path in links if path.startswith("/") and not path.startswith(("/dev/", "/proc/"))}


def start(*argv: object, file_limit: int | None = None) -> Started:
    return Started(tuple(map(str, argv)), {"ACCELERATE_USE_CPU": "true"}, file_limit)


def train(*argv: object, file_limit: int | None = None) -> Ended:
    return start(*argv, file_limit=file_limit).end()


def start_together(
    world: int,
    *argv: object,
    others: tuple[object, ...] = (),
    last: tuple[object, ...] = (),
    file_limit: int | None = None,
) -> list[Started]:
    """The processes that torchrun would start, without torchrun: nobody ends the others when one dies.

    last: further flags for the last process alone. others: for all but the last.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    own = [(*argv, *others)] * (world - 1) + [(*argv, *last)]
    return [
        Started(tuple(map(str, a)), shared | rank, file_limit) for a, rank in zip(own, ranks, strict=True)
    ]


def train_together(world: int, *argv: object) -> list[Ended]:
    started = start_together(world, *argv)
    return [process.end() for process in started]


def wait_for(condition: Callable[[], object], started: Started) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert started.process.exitcode is None and time.monotonic() < deadline, started.said()
        time.sleep(0.001)


def lines(run: Path) -> list[dict]:
    """A run's metrics; a line that is being written does not count yet."""
    whole, _, _ = (run / "metrics.jsonl").read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(run)}


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints that are there."""
    return sorted(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*"))
