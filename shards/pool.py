"""Work spread over processes, results in the order of the tasks, a dying worker costs one task at most."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeGuard, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Crashed:
    """Stands for the result of a task whose process died, alone with it, a second time."""

    detail: str


def in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result | Crashed]:
    """`function(task)` for each task, in order, computed by `workers` processes.

    At most 2 x workers + 2 tasks are under way or waiting to be taken, so results do not pile up. When a
    process dies, no one can tell which task it died of: each unfinished one is tried again alone, and those
    that kill their process again come out as Crashed. An exception of `function` is raised here. Leaving the
    iterator early, or dying, ends the processes at once.
    """
    pool = _Pool(workers)
    waiting: deque[tuple[Task, Future[Result] | None]] = deque()
    tasks = iter(tasks)
    more = True
    try:
        while True:
            while more and len(waiting) < 2 * workers + 2:
                try:
                    task = next(tasks)
                except StopIteration:
                    more = False
                else:
                    waiting.append((task, pool.submit(function, task)))
            if not waiting:
                break
            task, future = waiting[0]
            try:
                if future is None:
                    raise BrokenProcessPool
                result: Result | Crashed = future.result()
            except BrokenProcessPool:
                pool.close()
                for task, future in waiting:
                    yield future.result() if _is_finished(future) else _alone(function, task)
                waiting.clear()
                pool = _Pool(workers)
            else:
                waiting.popleft()
                yield result
    finally:
        pool.close()


def _is_finished(future: Future[Result] | None) -> TypeGuard[Future[Result]]:
    return future is not None and future.done() and not isinstance(future.exception(), BrokenProcessPool)


def _alone(function: Callable[[Task], Result], task: Task) -> Result | Crashed:
    pool = _Pool(1)
    try:
        future = pool.submit(function, task)
        return Crashed("its process died before taking it") if future is None else future.result()
    except BrokenProcessPool:
        return Crashed("the process that worked on it died, twice")
    finally:
        pool.close()


class _Pool:
    """Spawned processes that live no longer than this object, however its process ends."""

    def __init__(self, workers: int) -> None:
        # spawn, not fork: the caller may hold threads and locks of FFmpeg, DALI or torch
        context = multiprocessing.get_context("spawn")
        self._far, self._near = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(workers, context, _begin, (self._far,))

    def submit(self, function: Callable[[Task], Result], task: Task) -> Future[Result] | None:
        """The future result; None when the pool is broken already."""
        # a process that starts inherits the mask: Ctrl-C is for the parent to handle, with one line
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._executor.submit(function, task)
        except BrokenProcessPool:
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)

    def close(self) -> None:
        self._near.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._far.close()


def _begin(parent: Connection) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    # nothing is ever sent: the pipe reports its end when the parent closes it, or is killed
    parent.poll(None)
    os._exit(1)
