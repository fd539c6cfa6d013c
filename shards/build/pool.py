"""Work spread over processes, results in the order of the tasks; one that hangs or dies costs its task only.

Why not pebble's ProcessPool (5.2): its workers share one pipe, and one that is killed while it starts or waits for a
task ends the pool. Killed at random, two of its workers left 54 and 58 of 60 tasks with BrokenProcessPool (two runs);
the system kills there too when memory runs out. Memory limits, the second try and the bound on what waits would be ours.
"""

import contextlib
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from shards.errors import require

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 8  # tasks a worker that may be done before the slowest one is: their results are held in memory
ATTEMPTS = 2  # a process may be killed for the memory that another one took
GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What one machine gives to the work; none of it changes a byte of a video that is made."""

    workers: int = 1
    """Processes, each with one video at a time; as many as there are cores when not given."""
    timeout: float | None = 1800.0
    """Seconds a video may take before it is rejected; 1800, with --flow 18000, when not given."""
    memory: float | None = 1.0
    """GiB that each worker may allocate; a video that needs more is rejected as out_of_memory. 8K H.264 takes a third."""

    def __post_init__(self) -> None:
        require(
            self,
            ("workers", self.workers >= 1, "give 1 or more"),
            ("timeout", self.timeout is None or self.timeout > 0, "give seconds, more than 0"),
            (
                "memory",
                self.memory is None or self.memory >= 0.25,
                "a worker does not start with less than 0.25 GiB",
            ),
        )


@dataclass(frozen=True)
class Reject:
    """A task without a result. The pool's reasons are "crashed" (the task killed its process, twice) and "timeout"."""

    reason: str
    detail: str


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    *,
    timeout: float | None = None,
    memory: float | None = None,
) -> Generator[Result | Reject]:
    """`function(task)` for each task, in order, computed by `workers` processes.

    timeout: seconds a task may take. memory: GiB a process may allocate; beyond it allocations fail in it
    (MemoryError). At most 8 x workers tasks are under way or waiting to be taken, so results do not pile up.
    An exception of `function` is raised here. Leaving the iterator early, or dying, ends the processes at once.
    """
    resource_tracker.ensure_running()  # its start would unblock SIGINT in the thread that starts the first process
    ended, end = multiprocessing.Pipe(duplex=False)
    crew: list[_Worker] = []
    own = threading.local()  # each thread has a worker

    def begin() -> None:
        # a process inherits its thread's mask: Ctrl-C is for the parent to handle, with one line
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        own.worker = _Worker(function, timeout, memory, ended)
        crew.append(own.worker)

    threads = ThreadPoolExecutor(workers, "pool", begin)
    waiting: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            waiting.append(threads.submit(lambda task: own.worker.work(task), task))
            while len(waiting) == AHEAD * workers or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        end.close()
        for worker in crew:
            worker.end()
        threads.shutdown(cancel_futures=True)
        ended.close()


class _Ended(Exception):
    """Nobody waits for the results any longer."""


@dataclass(eq=False)
class _Worker:
    """A spawned process, begun when it is needed, that lives no longer than this one, however this one ends.

    ended: becomes readable when nobody waits for results any longer.
    """

    function: Callable[[Any], Any]
    timeout: float | None
    memory: float | None
    ended: Connection
    _process: Any = None
    _connection: Any = None

    def work(self, task: Any) -> Any:
        """The function's result, or a Reject. Raises what the function raises."""
        cause = ""
        for _ in range(ATTEMPTS):
            if self._process is None:
                self._start()
            try:
                self._connection.send(task)
                if not self._answers(self.timeout):
                    self.end()
                    return Reject("timeout", f"not done after {self.timeout:g} s")
                succeeded, value = self._connection.recv()
            except (EOFError, OSError):
                cause = self._cause_of_death()
                continue
            if not succeeded:
                raise value
            return value
        out_of_memory = ", as the system does when memory runs out" if cause == "SIGKILL" else ""
        return Reject("crashed", f"the process that worked on it died twice: {cause}{out_of_memory}")

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(10)  # not for ever: one that waits for a dead disk cannot be killed

    def _start(self) -> None:
        # spawn, not fork: the caller may hold threads and locks of FFmpeg, DALI or torch
        context = multiprocessing.get_context("spawn")
        self._connection, far = context.Pipe()
        with far:
            process = context.Process(target=_serve, args=(far, self.function, self.memory), daemon=True)
            process.start()
        self._process = process
        try:
            self._answers(None)
            self._connection.recv()
        except (EOFError, OSError):
            cause = self._cause_of_death()
            raise RuntimeError(
                f"a worker process could not start ({cause}); its own message is above"
            ) from None

    def _answers(self, timeout: float | None) -> bool:
        """Whether the process says something in time. Raises _Ended, when it has ended the process."""
        ready = wait([self._connection, self.ended], timeout)
        if self.ended in ready:
            self.end()
            raise _Ended
        return bool(ready)

    def _cause_of_death(self) -> str:
        process, self._process = self._process, None
        if process is None:  # ended by the parent's thread
            raise _Ended
        process.join()
        while (code := process.exitcode) is None:  # another thread's start has just asked the system for it
            time.sleep(0.01)
        return signal.Signals(-code).name if code and code < 0 else f"exit status {code}"


def _serve(connection: Connection, function: Callable[[Any], Any], memory: float | None) -> None:
    """What a worker process does: tasks in, results out, until the other end is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # when memory runs out, the system should choose us, not the parent
        Path("/proc/self/oom_score_adj").write_text("900")
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * GIB), resource.RLIM_INFINITY))
    # there are as many processes as cores: threads of BLAS would spin, waiting for each other
    threadpool_limits(1)
    connection.send(None)  # ready: what it took to start is not the first task's fault
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = True, function(task)
        except Exception as error:
            answer = False, _portable(error)
        connection.send(answer)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, if it survives the way to the parent; some libraries' do not."""
    error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
