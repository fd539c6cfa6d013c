"""Work spread over processes, results in the order of the tasks; one that hangs or dies costs its task only.

Why not pebble's ProcessPool (5.2): its workers share one pipe, and one that is killed while it starts or waits for a task
ends the pool. Killed at random, two of its workers left 54 and 58 of 60 tasks with BrokenProcessPool (two runs); the
system kills there too when memory runs out. Memory limits, the second try and the bound on what waits would be ours.
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
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from threadpoolctl import threadpool_limits

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 8  # tasks a worker that may be done before the slowest one is: their results are held in memory
ATTEMPTS = 2  # a process may be killed for the memory that another one took
GIB = 2**30


@dataclass(frozen=True)
class Crashed:
    """Stands for the result of a task that killed its process, twice ("crashed"), or took too long ("timeout")."""

    detail: str
    reason: str = "crashed"


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    *,
    timeout: float | None = None,
    memory: float | None = None,
) -> Generator[Result | Crashed]:
    """`function(task)` for each task, in order, computed by `workers` processes.

    timeout: seconds a task may take. memory: GiB a process may allocate; beyond it allocations fail in it
    (MemoryError). At most 8 x workers tasks are under way or waiting to be taken, so results do not pile up.
    An exception of `function` is raised here. Leaving the iterator early, or dying, ends the processes at once.
    """
    crew = [_Worker(function, timeout, memory) for _ in range(workers)]
    window: deque[_Slot[Task, Result]] = deque()
    again: deque[_Slot[Task, Result]] = deque()
    todo = iter(tasks)

    def next_slot() -> _Slot[Task, Result] | None:
        if again:
            return again.popleft()
        if len(window) < AHEAD * workers:
            for task in todo:
                window.append(_Slot(task))
                return window[-1]
        return None

    try:
        while True:
            for worker in crew:
                if worker.slot is None and (slot := next_slot()) is not None:
                    worker.give(slot)
            if not window:
                return
            if window[0].results:
                yield window.popleft().results[0]
                continue
            again.extend(_collect(crew))
    finally:
        for worker in crew:
            worker.end()


def _collect(crew: "list[_Worker]") -> "Iterator[_Slot]":
    """Wait until a worker has something to say, or its time is up; gives the tasks to try again."""
    busy = {worker.connection: worker for worker in crew if worker.slot is not None}
    deadlines = [worker.deadline for worker in busy.values() if worker.deadline is not None]
    patience = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
    said = wait(list(busy), patience)
    for connection, worker in busy.items():
        if connection in said:
            slot = worker.hear()
            if slot is not None:
                yield slot
        elif worker.deadline is not None and time.monotonic() >= worker.deadline:
            worker.give_up()


class _Slot(Generic[Task, Result]):
    """A task, and its result once there is one."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.results: list[Result | Crashed] = []
        self.attempts = 0


class _Worker:
    """A spawned process, begun when it is needed, that lives no longer than this one, however this one ends."""

    def __init__(self, function: Callable[[Any], Any], timeout: float | None, memory: float | None) -> None:
        self._function, self._timeout, self._memory = function, timeout, memory
        self._process: Any = None
        self.connection: Connection
        self.slot: _Slot | None = None
        self.deadline: float | None = None

    def give(self, slot: _Slot) -> None:
        self.slot = slot
        slot.attempts += 1
        if self._process is None:
            self._start()
        elif self._timeout is not None:
            self.deadline = time.monotonic() + self._timeout
        with contextlib.suppress(BrokenPipeError):  # it died while it was idle: `hear` will find out
            self.connection.send(slot.task)

    def hear(self) -> _Slot | None:
        """Take what the process says; the slot, when its task is to be tried again in a new process."""
        assert self.slot is not None
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            return self._mourn()
        if answer is None:  # it is ready: what it took to start is not the task's fault
            self._ready = True
            self.deadline = None if self._timeout is None else time.monotonic() + self._timeout
            return None
        succeeded, value = answer
        if not succeeded:
            raise value
        self.slot.results.append(value)
        self.slot = self.deadline = None
        return None

    def give_up(self) -> None:
        """The task's time is up."""
        assert self.slot is not None
        self.slot.results.append(Crashed(f"not done after {self._timeout:g} s", "timeout"))
        self.end()

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(10)  # not for ever: one that waits for a dead disk cannot be killed
            self.connection.close()
        self._process = self.slot = self.deadline = None

    def _start(self) -> None:
        # spawn, not fork: the caller may hold threads and locks of FFmpeg, DALI or torch
        context = multiprocessing.get_context("spawn")
        self._ready = False
        self.connection, far = context.Pipe()
        # a process that starts inherits the mask: Ctrl-C is for the parent to handle, with one line; the first
        # start of multiprocessing's own helper would lift the mask
        resource_tracker.ensure_running()
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            arguments = (far, self._function, self._memory)
            self._process = context.Process(target=_serve, args=arguments, daemon=True)
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            far.close()

    def _mourn(self) -> _Slot | None:
        slot = self.slot
        assert slot is not None
        self._process.join()
        code = self._process.exitcode
        cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        self.end()
        if not self._ready:
            raise RuntimeError(f"a worker process could not start ({cause}); its own message is above")
        if slot.attempts < ATTEMPTS:
            return slot
        out_of_memory = ", as the system does when memory runs out" if cause == "SIGKILL" else ""
        slot.results.append(Crashed(f"the process that worked on it died twice: {cause}{out_of_memory}"))
        return None


def _serve(connection: Connection, function: Callable[[Any], Any], memory: float | None) -> None:
    """What a worker process does: tasks in, results out, until the other end is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # when memory runs out, the system should choose us, not the parent
        Path("/proc/self/oom_score_adj").write_text("900")
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * GIB), resource.RLIM_INFINITY))
    threadpool_limits(
        1
    )  # there are as many processes as cores: threads of BLAS would spin, waiting for each other
    connection.send(None)
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
