"""What is measured while a network trains.

Meter: the loop's metrics and its waits between two log lines. Phases: what a step is doing, with --profile.
Evaluator: what looks at the network now and then; Validation validates and lowers the learning rate.
"""

import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from objectives import Objective
from pipelines.loader import to_device
from pipelines.sampler import TrainSampler
from pipelines.views import eval_view
from shards import InputError
from shards.atomic import atomic_write
from shards.documents import number, whole
from training.processes import OwnError, Watch, writing
from training.run import Run
from training.settings import Settings
from training.speed import Speed

PROFILE = "profile.json.gz"
_FIRST = 2  # steps before the profile: one that starts everything, and one in which the profiler warms up
LATE = 1e-3  # seconds of waiting that make a batch a late one


class Meter:
    """Sums over some optimizer steps, counted in `steps`; begins when it is made.

    device: of the model. On a GPU, waiting is what the GPU stands still for: the thread that feeds it runs ahead.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._began, self.steps = time.perf_counter(), 0
        self._cuda = device is not None and device.type == "cuda"
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._waits: list[float] = []  # seconds
        self._sums: dict[str, Tensor] = {}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what fetches a batch."""
        since, before = time.perf_counter(), self._mark()
        yield
        after = self._mark()
        if before and after:
            self._gaps.append((before, after))
        else:
            self._waits.append(time.perf_counter() - since)

    def _mark(self) -> torch.cuda.Event | None:
        if not self._cuda:
            return None
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Metrics of one batch, on any device: a scalar, or (2,), a part and its whole. Nothing is synchronised."""
        for name, value in metrics.items():
            value = value.detach().float()
            pair = value if value.ndim else torch.stack([value, torch.ones_like(value)])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def sums(self, device: torch.device) -> Tensor:
        """(metrics, 2): of each the sum, and what to divide it by. Sums of processes may be added."""
        return torch.stack([pair.to(device) for pair in self._sums.values()])

    def means(self, sums: Tensor) -> dict[str, float]:
        """Of `sums`, by name; without those whose whole is 0."""
        pairs = zip(self._sums, sums.tolist(), strict=True)
        return {name: part / whole for name, (part, whole) in pairs if whole}

    def waits(self) -> list[float]:
        """Seconds that each batch was waited for."""
        if self._gaps:
            self._gaps[-1][1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in self._gaps] or self._waits

    def late(self) -> float:
        """Share of the batches, 0–1, that were waited for."""
        waits = self.waits()
        return sum(wait > LATE for wait in waits) / len(waits)

    def speed(self, clips: int) -> dict[str, float]:
        """data_ms and step_ms, milliseconds a step; clips_per_s for `clips` a step; wait_share, 0–1."""
        waited = sum(self.waits())
        seconds = time.perf_counter() - self._began
        return {
            "data_ms": 1000 * waited / self.steps,
            "step_ms": 1000 * seconds / self.steps,
            "clips_per_s": clips * self.steps / seconds,
            "wait_share": waited / seconds,
        }


class Phases:
    """What a step is doing. steps: to profile, 0 for none. watch: hears of each phase as it begins.

    The trace of torch.profiler goes to OUTPUT/profile.json.gz (chrome://tracing, Perfetto, TensorBoard); its ranges are
    NVTX ranges too, for Nsight Systems.
    """

    def __init__(self, output: Path, steps: int) -> None:
        self._path, self._steps = output / PROFILE, steps
        self.watch: Watch | None = None
        self._profile: profile | None = None
        self._nvtx = bool(steps) and torch.cuda.is_available()

    def begin(self) -> None:
        if self._steps:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._nvtx else [])]
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=_FIRST - 1, warmup=1, active=self._steps, repeat=1),
                on_trace_ready=self._export,
            )
            self._profile.start()

    def notice(self, name: str, step: int | None = None) -> None:
        if self.watch:
            self.watch.notice(name, step)

    @contextmanager
    def __call__(self, name: str, step: int | None = None) -> Iterator[None]:
        self.notice(name, step)
        with (
            record_function(name) if self._profile else nullcontext(),
            torch.cuda.nvtx.range(name) if self._profile and self._nvtx else nullcontext(),
        ):
            yield

    def step(self) -> None:
        """An optimizer step is done. Raises InputError where the trace cannot be written."""
        if self._profile:
            self._profile.step()

    def close(self) -> None:
        """A profile that is not complete is dropped."""
        if self._profile:
            self._profile.on_trace_ready = None
            self._profile.stop()
            self._profile = None

    def _export(self, found: profile) -> None:
        with writing(self._path), tempfile.TemporaryDirectory() as folder, atomic_write(self._path) as out:
            found.export_chrome_trace(f"{folder}/trace.json.gz")
            shutil.copyfile(f"{folder}/trace.json.gz", out)


class Evaluator(ABC):
    """What looks at the network every `every` steps of a Trainer, and must not change how it trains.

    name: of its state in a checkpoint. shape: of that state, as shards.documents has it. every: steps from one look to
    the next. last: step of the last look. factor: on the learning rate.
    enough: training may end before its last step. notice: to be called with a name
    now and then in `run`, so that a long look is not taken for a process that hangs.
    All methods are called in all processes together, with the same steps.
    """

    name: ClassVar[str]
    shape: ClassVar[dict[str, Any]] = {"last": whole(0)}
    every = 1
    last = 0
    factor = 1.0
    enough: bool = False

    def __init__(self) -> None:
        self.notice: Callable[[str], None] = lambda phase: None

    @abstractmethod
    def run(self, step: int) -> dict[str, float]:
        """Look at the network after `step` steps. Returns values for the next line of metrics.jsonl."""

    def due(self, step: int) -> bool:
        return step > self.last and step % self.every == 0

    def begin(self, stage: int) -> None:  # noqa: B027 (few have a state that depends on it)
        """The objective's curriculum is in this stage; called before each step."""

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]

    def close(self) -> None:  # noqa: B027 (few have something open)
        """Release what it holds open."""


class Decay:
    """The learning rate falls to a tenth after `patience` validations in a row without a new lowest loss, once in a stage
    of the curriculum. patience: 0 for never. factor: on the learning rate, now."""

    def __init__(self, patience: int) -> None:
        self.patience, self.stage = patience, 0
        self.lowest: float | None = None
        self.waited = self.falls = 0

    @property
    def factor(self) -> float:
        return 0.1**self.falls

    def begin(self, stage: int) -> None:
        """The objective is in this stage of its curriculum."""
        if stage != self.stage:
            self.stage, self.lowest, self.waited, self.falls = stage, None, 0, 0

    def judge(self, loss: float) -> None:
        """A validation's loss."""
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.waited = loss, 0
            return
        self.waited += 1
        if not self.falls and 0 < self.patience <= self.waited:
            self.falls, self.waited = 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("stage", "lowest", "waited", "falls")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.state_dict():
            setattr(self, name, state[name])


class Validation(Evaluator):
    """Every --val-every steps, the same clips of --val-split without training-time augmentation.

    decay: what follows for the learning rate.
    """

    name = "validation"
    shape: ClassVar[dict[str, Any]] = {
        "last": whole(0),
        "decay": {
            "stage": whole(0, 1000),
            "lowest?": number(),
            "waited": whole(0),
            "falls": whole(0, 1000),
        },
    }

    def __init__(
        self, settings: Settings, run: Run, accelerator: Accelerator, objective: Objective, speed: Speed
    ) -> None:
        super().__init__()
        self.settings, self.accelerator, self.objective = settings, accelerator, objective
        self.decay, self.every = Decay(objective.plateau()), settings.val_every
        world = accelerator.num_processes
        batch_size = min(settings.batch_size, len(run.val_rows) // world)
        if batch_size == 0:
            raise InputError(
                f"--val-split {settings.val_split}: has {len(run.val_rows)} videos, fewer than the {world} processes"
            )
        self.batches = settings.val_passes * (len(run.val_rows) // (batch_size * world))
        sampler = TrainSampler(
            run.dataset,
            run.val_rows,
            eval_view(objective.view_spec(objective.config)),
            batch_size,
            seed=settings.seed,
            rank=accelerator.process_index,
            world=world,
        )
        self.loader = speed.loader(run.dataset, sampler, accelerator.device, quarantine=True)

    @property
    def factor(self) -> float:  # type: ignore[override]
        return self.decay.factor

    def begin(self, stage: int) -> None:
        self.decay.begin(stage)

    def run(self, step: int) -> dict[str, float]:
        """Means over the split of loss and metrics, "val_…", after `step` steps; all processes call it together."""
        self.loader.load_state_dict({"samples": 0})
        broadcast(list(self.objective.buffers()))  # all validate the model that is saved: the main process's
        meter = Meter()
        self.objective.eval()
        with torch.no_grad():
            for _ in range(self.batches):
                self.notice(self.name)
                try:
                    batch = next(self.loader)
                except InputError as error:
                    raise OwnError(str(error)) from error
                device, channels_last = self.accelerator.device, self.settings.channels_last
                out = self.objective(to_device(batch, device, channels_last=channels_last))
                meter.add({"loss": out.loss, **out.metrics})
        self.objective.train()
        metrics = meter.means(self.accelerator.reduce(meter.sums(self.accelerator.device), "sum"))
        self.decay.judge(metrics["loss"])
        return {"val_step": step} | {f"val_{name}": value for name, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"decay": self.decay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.decay.load_state_dict(state["decay"])

    def close(self) -> None:
        self.loader.close()
