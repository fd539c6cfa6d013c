"""What the processes of a run agree upon: results of the main one, and when to stop."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from shards import InputError
from shards.documents import one_line_of
from training.watch import Watch

T = TypeVar("T")
_LOST = re.compile("Connection closed by peer|Connection reset by peer|Broken pipe")  # as gloo says it


def on_main(do: Callable[[], T]) -> T:
    """do() in the main process alone; every process gets its result, or raises its InputError."""
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = do()
        except InputError as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise InputError(outcome[1])
    return outcome[0]


@contextmanager
def writing(path: Path, advice: str = "make room") -> Iterator[None]:
    """Around what writes `path`: raises InputError, naming it, where the disk is full or cannot be written to."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be written ({said}); {advice}") from error


class OwnError(InputError):
    """An error of this process alone, which therefore says it itself."""


class Stopped(Exception):
    """A signal ended the run. The message says what is left of it."""

    def __init__(self, signum: int, message: str = "what is written is whole") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.status = 128 + signum


class StopSignals:
    """SIGTERM and SIGINT. Before `begin`, they end the run at once; from then on, all processes after the same step.

    Whichever process is told, `agreed` tells them all. A second Ctrl-C does not wait for the step to end.
    Handlers are put back on leaving the context.
    """

    def __init__(self) -> None:
        self._noted = 0
        self._looping = False
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _hear(self, signum: int, _: FrameType | None) -> None:
        if not self._looping:
            raise Stopped(signum)
        # a launcher passes Ctrl-C on, and the terminal has sent it already: only alone are two of them two
        if self._noted and signum == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise Stopped(signum, "twice; the last checkpoint is whole")
        self._noted = signum

    def begin(self) -> None:
        """From now on signals are answered by `agreed`. All processes call it together."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")  # on the CPU: asking does not wait for a GPU
        self._looping = True

    def agreed(self) -> int:
        """The signal to stop for, the same in all processes, or 0; to be called by all after each step.

        With several processes a signal is answered one step late: the question travels during a step.
        """
        if self._group is None:
            return self._noted
        answer = 0
        if self._asked:
            self._asked[0].wait()
            answer = int(self._asked[1])
        question = torch.tensor(self._noted)
        self._asked = dist.all_reduce(question, dist.ReduceOp.MAX, self._group, async_op=True), question
        return answer

    def end(self) -> None:
        """The loop is over: the last question is awaited, and signals end the run at once again."""
        if self._asked:
            self._asked[0].wait()
        self._asked, self._looping = None, False


def ended(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run main(argv); what a user can do something about becomes one line. Returns the exit status."""
    rank = int(os.environ.get("RANK", "0"))
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        main(argv)
    except InputError as error:
        if first or isinstance(error, OwnError):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except Lost as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (Stopped, KeyboardInterrupt) as stopped:
        if first:
            print(stopped if isinstance(stopped, Stopped) else "stopped by SIGINT", file=sys.stderr)
        return stopped.status if isinstance(stopped, Stopped) else 130
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        print(f"error: process {rank} lost another one: its own message says why", file=sys.stderr)
        return 1
    return 0


class Lost(Exception):
    """Another process of the run is gone. The message says which."""


@contextmanager
def watched(hang_s: float) -> Iterator[Watch]:
    """Around what several processes do together: one that ends it early tells the others why, who then end too.

    Raises Lost in a process that lost its connection to another one.
    """
    watch = Watch(hang_s)
    try:
        yield watch
    except (InputError, Stopped, KeyboardInterrupt) as error:
        # an InputError of all processes alike, and a signal that they agreed upon, end them all without a verdict
        watch.end(str(error) if isinstance(error, OwnError) else "")
        raise
    except BaseException as error:
        said = watch.lost() if isinstance(error, RuntimeError) and _LOST.search(str(error)) else ""
        watch.end(said or f"{type(error).__name__}: {one_line_of(error)}")
        if said:
            raise Lost(f"process {os.environ.get('RANK', '0')} lost another one: {said}") from error
        raise
    watch.end()
