"""What is measured of the loop: its metrics and its waits between two log lines, and with --profile its phases."""

import gzip
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from shards.atomic import atomic_write
from training.processes import Watch, writing

PROFILE = "profile.json.gz"
_FIRST = 2  # steps before the profile: one that starts everything, and one in which the profiler warms up
LATE = 1e-3  # seconds of waiting that make a batch a late one


class Meter:
    """Sums over some optimizer steps; begins when it is made.

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

    def step(self) -> None:
        """An optimizer step is done."""
        self.steps += 1

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
        if self._profile is None:
            yield
            return
        with ExitStack() as ranges:
            ranges.enter_context(record_function(name))
            if self._nvtx:
                ranges.enter_context(torch.cuda.nvtx.range(name))
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
            found.export_chrome_trace(f"{folder}/trace.json")
            with open(f"{folder}/trace.json", "rb") as trace, gzip.open(out, "wb") as packed:
                shutil.copyfileobj(trace, packed)
