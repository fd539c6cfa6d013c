"""The phases of a step, data, forward, backward and step: who watches is told of them, and --profile measures them."""

import gzip
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from shards import InputError
from shards.atomic import atomic_write
from training.watch import Watch

FILE = "profile.json.gz"
_FIRST = 2  # steps before the profile: one that starts everything, and one in which the profiler warms up


class Phases:
    """What a step is doing. steps: to profile, 0 for none. watch: is told of each phase as it begins.

    The trace of torch.profiler goes to OUTPUT/profile.json.gz (chrome://tracing, Perfetto, TensorBoard); its ranges are
    NVTX ranges too, for Nsight Systems.
    """

    def __init__(self, output: Path, steps: int) -> None:
        self._path, self._steps = output / FILE, steps
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
        try:
            with tempfile.TemporaryDirectory() as folder, atomic_write(self._path) as temporary:
                found.export_chrome_trace(f"{folder}/trace.json")
                with open(f"{folder}/trace.json", "rb") as trace, gzip.open(temporary, "wb") as out:
                    shutil.copyfileobj(trace, out)
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written ({error.strerror}); make room") from error
