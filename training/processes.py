"""What the processes of a run agree upon: results of the main one, and when to stop.

They watch each other, too: when one dies or hangs, the others end with its name instead of waiting for it.
"""

import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch.distributed.distributed_c10d import _get_default_store

from shards import InputError
from shards.documents import one_line_of

T = TypeVar("T")
PATIENCE_S = 20.0  # seconds from a signal in which data may still come
DEAD_S = 30.0  # seconds without a sign of life; a process beats every second
_LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "torch/distributed")
_PR_SET_PDEATHSIG = 1
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


class OwnError(InputError):
    """An error of this process alone, which therefore says it itself."""


@contextmanager
def writing(path: Path, flag: str = "", advice: str = "make room, or choose another place") -> Iterator[None]:
    """Around what writes `path`: raises OwnError, naming it and its flag, where the disk is full or refuses it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or one_line_of(error)
        raise OwnError(f"{flag} {path}: cannot be written ({said}); {advice}".lstrip()) from error


class Stopped(Exception):
    """A signal ended the run. The message says what is left of it."""

    def __init__(self, signum: int, message: str = "what is written is whole") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.status = 128 + signum


class StopSignals:
    """SIGTERM and SIGINT. Before `begin`, they end the run at once; from then on, all processes after the same step.

    Whichever process gets one, `agreed` gives it to all. A second Ctrl-C does not wait for the step to end. A step that
    waits for data, from a server that stalls for instance, is given PATIENCE_S seconds to get it.
    Handlers are put back on leaving the context.
    """

    def __init__(self) -> None:
        self._noted = 0
        self._looping = self._waits = False
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGTERM, signal.SIGINT)}
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
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
        if self._waits:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)

    def _give_up(self, *_: object) -> None:
        message = f"no data came within {PATIENCE_S:g} s; the last checkpoint is whole"
        print(f"\n{Stopped(self._noted, message)}", file=sys.stderr, flush=True)
        os._exit(128 + self._noted)  # threads that read are not waited for

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for data."""
        self._waits = True
        if self._noted and self._before:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        try:
            yield
        finally:
            self._waits = False
            if self._noted and self._before:
                signal.setitimer(signal.ITIMER_REAL, 0)

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


def end_with_launcher() -> None:
    """Be sent SIGTERM when the launcher that started this process dies, so that it saves and ends. A shell is no launcher."""
    try:
        started_by = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return
    if any(name in started_by for name in _LAUNCHERS):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Watch:
    """A thread that tells the other processes once a second that this one lives and how far it got, and looks at them.

    Process 0 judges all, the others judge process 0 and read its verdict, so the traffic grows with the number of
    processes only. A verdict ends the process with status 1 and one line, said by the lowest process that is left.
    """

    def __init__(self, hang_s: float) -> None:
        self._hang_s, self._dead_s = hang_s, min(DEAD_S, hang_s)
        self._marks, self._phase, self._step = 0, "", 0
        self._store: Any = None
        self._ending, self._verdict = threading.Event(), threading.Event()
        self._said = ""
        self._looked = time.monotonic()

    def notice(self, phase: str, step: int | None = None) -> None:
        """This process begins something: it makes progress."""
        self._marks += 1
        self._phase = phase
        self._step = self._step if step is None else step

    def begin(self) -> None:
        """Start to watch. All processes call it together."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        # a connection of its own: the main thread may wait for minutes on the other
        self._store = dist.PrefixStore("slipstream-watch", _get_default_store().clone())
        if self._rank == 0:
            self._store.set("verdict", "")
        self._beat()
        dist.barrier()
        self._thread = threading.Thread(target=self._run, name="slipstream-watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="slipstream-watch-guard", daemon=True).start()

    def end(self, reason: str = "") -> None:
        """Stop to watch. reason: why this process ends before the others, for their verdict."""
        if self._store is None or self._ending.is_set():
            return
        self._ending.set()
        self._thread.join(5)
        if self._thread.is_alive():
            return
        try:
            self._beat(reason or "done")
        except RuntimeError:  # the store is gone: nobody is left to read it
            return

    def lost(self) -> str:
        """A connection to another process broke: which one it was, "" where that does not become known."""
        if self._store is None:
            return ""
        self._dead_s = min(3.0, self._dead_s)
        self._verdict.wait(DEAD_S + 5)
        return self._said

    def _beat(self, ended: str = "") -> None:
        now = {"time": time.time(), "marks": self._marks, "phase": self._phase, "step": self._step}
        self._store.set(str(self._rank), json.dumps(now | {"ended": ended}))

    def _run(self) -> None:
        watched = [rank for rank in range(self._world) if rank != self._rank] if self._rank == 0 else [0]
        beats: dict[int, str] = {}
        changed = dict.fromkeys(watched, time.monotonic())
        last, progress = (), time.monotonic()
        while not self._ending.wait(1):
            try:
                self._beat()
                verdict, *found = (v.decode() for v in self._store.multi_get(["verdict", *map(str, watched)]))
            except RuntimeError:
                if not self._ending.wait(2):
                    self._conclude([0], "process 0, which all others are connected with, is gone")
                return
            if verdict:
                return self._conclude(*json.loads(verdict))
            now = self._looked = time.monotonic()
            for rank, beat in zip(watched, found, strict=True):
                if beats.get(rank) != beat:
                    beats[rank], changed[rank] = beat, now
            states = {rank: json.loads(beat) for rank, beat in beats.items()}
            states[self._rank] = {"marks": self._marks, "phase": self._phase, "step": self._step, "ended": ""}
            marks = tuple(state["marks"] for _, state in sorted(states.items()))
            if marks != last:
                last, progress = marks, now
            silent = [rank for rank in watched if now - changed[rank] > self._dead_s]
            if lost := self._judge(states, silent, now - progress):
                return self._conclude(*lost)

    def _guard(self) -> None:
        """Where process 0, which keeps what all note, stands still, looking at it takes for ever."""
        self._looked = time.monotonic()
        while not self._ending.wait(1) and not self._verdict.is_set():
            if time.monotonic() - self._looked > self._dead_s + 5:
                self._conclude([0], f"process 0 gave no sign of life for {self._dead_s:.0f} s")

    def _judge(
        self, states: dict[int, dict[str, Any]], silent: list[int], stuck_s: float
    ) -> tuple[list[int], str] | None:
        """The processes that are lost and a line about it; None where all is well."""
        for rank, state in sorted(states.items()):
            if state["ended"] == "done":
                return None  # the end of the run
            if state["ended"]:
                return [rank], f"process {rank} ended: {state['ended']}"
        if silent:
            return silent, f"{_named(silent)} gave no sign of life for {self._dead_s:.0f} s"
        if self._rank == 0 and stuck_s > self._hang_s:
            least = min(state["marks"] for state in states.values())
            stuck = [rank for rank, state in states.items() if state["marks"] == least]
            state = states[stuck[0]]
            where = f"{state['phase']} of step {state['step'] + 1}"
            return stuck, f"{_named(sorted(stuck))} made no progress for {self._hang_s:.0f} s in {where}"
        return None

    def _conclude(self, lost: list[int], said: str) -> None:
        self._said = f"{said}; go on with --resume"
        if self._rank == 0:
            with suppress(RuntimeError):
                self._store.set("verdict", json.dumps([lost, said]))
        self._verdict.set()
        # the others read the verdict; the main thread may say the line itself, with what else it has to do
        time.sleep(2)
        if self._ending.is_set():
            return
        speaker = next((rank for rank in range(self._world) if rank not in lost), lost[0])
        if self._rank == speaker:
            print(f"\nerror: {self._said}", file=sys.stderr, flush=True)  # below the progress bar
        os._exit(1)


def _named(ranks: list[int]) -> str:
    return f"process {ranks[0]}" if len(ranks) == 1 else f"processes {', '.join(map(str, ranks))}"


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
