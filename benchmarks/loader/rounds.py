"""How parts are timed, and on which samples.

Rounds: every part is timed once in each of them, in turns, so that other work on the machine slows all parts alike.
Source: the samples of a run, in the order and with the parameters that a loader gives them.
"""

import importlib.util
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines.sampler import Sample, TrainSampler
from pipelines.views import ViewSpec
from shards import Dataset, InputError
from shards.tar import Extent, read_extent

Figures = dict[str, Any]
Part = Callable[[int], Figures]
"""Times one part on the samples from a number on: {"clips_per_s": …} and further figures."""

PERIOD = 0.1  # seconds between two readings of NVML
SPAN = 5.0  # seconds: least length of a timed span in which NVML is read
_NVML_MEAN = 1.0  # seconds: NVML's figures are means over up to this time before
CPU = torch.device("cpu")


def in_turns(parts: dict[str, Part], rounds: int, samples: int, title: str) -> dict[str, list[Figures]]:
    """Each part's figures, one dict a round. samples: by how many a round starts after the one before."""
    found: dict[str, list[Figures]] = {name: [] for name in parts}
    with tqdm(total=rounds * len(parts), desc=title, unit="part", leave=False, dynamic_ncols=True) as bar:
        for number in range(rounds):
            for name, part in parts.items():
                bar.set_postfix_str(name)
                found[name].append(part(number * samples))
                bar.update()
    return found


def medians(rounds: list[Figures]) -> Figures:
    """The median of each figure over the rounds; of what is not a number, the last round's value."""
    return {
        name: statistics.median(figures[name] for figures in rounds)
        if isinstance(value, int | float)
        else value
        for name, value in rounds[-1].items()
    }


def ratio(ours: list[Figures], theirs: list[Figures]) -> float:
    """How many times the clips/s: the median of the rounds' ratios."""
    return statistics.median(a["clips_per_s"] / b["clips_per_s"] for a, b in zip(ours, theirs, strict=True))


def rate(
    do: Callable[[], Any],
    batches: int,
    clips: int,
    device: torch.device,
    workers: Iterable[int] = (),
    *,
    watched: bool = False,
) -> Figures:
    """clips_per_s of `do`, which handles a batch of `clips`; cpu_ms_per_clip of this process and of `workers` (their ids).

    watched: also what GpuMonitor reads of the GPU, which takes some seconds: `do` is then called more often.
    """
    processes = [psutil.Process(), *map(psutil.Process, workers)]

    def used() -> float:
        """Seconds of a core, of all threads."""
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    synchronise(device)
    done = 0
    with GpuMonitor() if watched else nullcontext() as monitor:
        least = monitor.least if monitor else 0.0
        cpu, began = used(), time.perf_counter()
        while done < batches or time.perf_counter() - began < least:
            do()
            done += 1
        synchronise(device)
        seconds = time.perf_counter() - began
        cpu = used() - cpu
    figures = {"clips_per_s": done * clips / seconds, "cpu_ms_per_clip": 1000 * cpu / (done * clips)}
    return figures | (monitor.figures() if monitor else {})


def check_installed(flag: str, name: str, package: str, load: Callable[[], object]) -> None:
    """Raise InputError that says what a peer lacks. load: imports it, and what it needs of FFmpeg."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"--against {flag}: {name} is not installed; pip install -e '.[bench]'")
    try:
        load()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--against {flag}: {name} cannot be loaded ({reason}); it needs FFmpeg's shared libraries from the "
            "system, such as Debian's ffmpeg"
        ) from error


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Usage(NamedTuple):
    """gpu, nvdec: busy, 0–1. used, torch: GiB of the GPU that all processes hold, and that this process's torch holds."""

    gpu: float
    nvdec: float
    used: float
    torch: float


class GpuMonitor:
    """Reads how busy torch's current GPU is, from when it is entered until it is left.

    read: NVML's figures by default; without NVML nothing is read.
    """

    def __init__(self, read: Callable[[], Usage] | None = None) -> None:
        self._read = read or _nvml()
        self.least = SPAN if self._read else 0.0  # seconds that the span should last
        self._usage: list[tuple[float, Usage]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def figures(self) -> dict[str, float | None]:
        """gpu_use, nvdec_use: means, 0–1. device_gib: the most that all processes held; beside_torch_gib: of it, what this
        process's torch did not hold: DALI's pool, NVDEC's sessions, CUDA's own. None where nothing was read."""
        if not self._usage:
            return dict.fromkeys(("gpu_use", "nvdec_use", "device_gib", "beside_torch_gib"))
        first = self._usage[0][0]
        late = [usage for at, usage in self._usage if at - first >= _NVML_MEAN]
        gpu, nvdec, used, held = zip(*(late or [usage for _, usage in self._usage]), strict=True)
        return {
            "gpu_use": statistics.mean(gpu),
            "nvdec_use": statistics.mean(nvdec),
            "device_gib": max(used),
            "beside_torch_gib": max(a - b for a, b in zip(used, held, strict=True)),
        }

    def _watch(self) -> None:
        while self._read and not self._done.wait(PERIOD):
            self._usage.append((time.perf_counter(), self._read()))


def _nvml() -> Callable[[], Usage] | None:
    """What reads the figures of torch's GPU, with pynvml (nvidia-ml-py)."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        handle: Any = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except Exception:  # not installed, or a driver that does not answer: the figures stay null
        return None

    return lambda: Usage(
        nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        nvml.nvmlDeviceGetDecoderUtilization(handle)[0] / 100,
        nvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30,
        torch.cuda.memory_reserved() / 2**30,
    )


@dataclass(frozen=True)
class Source:
    """Rows (N,) of a data set, viewed through a spec; a pickled one opens its files again. clips: of one video in a batch."""

    dataset: Dataset
    rows: NDArray[np.int64]
    spec: ViewSpec
    batch_size: int
    seed: int
    clips: int = 1

    @cached_property
    def sampler(self) -> TrainSampler:
        return TrainSampler(
            self.dataset, self.rows, self.spec, self.batch_size, seed=self.seed, clips=self.clips
        )

    def batches(self, first: int, count: int) -> list[list[Sample]]:
        """`count` batches from sample `first` on, which begins a batch; `first` counts over all epochs, from 0."""
        return [self.sampler.batch(first + n * self.batch_size).samples for n in range(count)]

    def samples(self, first: int, count: int) -> list[Sample]:
        """Those of `count` batches."""
        return [sample for batch in self.batches(first, count) for sample in batch]

    def read(self, row: int) -> bytes:
        """The row's video, as our loader reads it: its sha256 is checked."""
        return self.dataset.read(row, self.spec.component)

    def read_unchecked(self, row: int) -> bytes:
        """The row's video, as a user's own data set would read it."""
        dataset, component = self.dataset, self.spec.component
        size, offset = (int(dataset.column(f"{component}_{what}")[row]) for what in ("size", "offset"))
        return read_extent(dataset.path / dataset.shards[dataset.shard_numbers[row]], Extent(offset, size))

    def in_pool(
        self,
        work: Callable[[Any], Any],
        threads: int,
        batches: int,
        prepare: Callable[[Sample], Any] = lambda sample: sample,
        workers: Callable[[], Iterable[int]] = tuple,
    ) -> Part:
        """Times `work` on every sample of so many batches, in a pool of threads.

        prepare: gives `work` its argument, before the time is taken. workers: ids of processes that do the work for it.
        """

        def part(first: int) -> Figures:
            items = [prepare(sample) for sample in self.samples(first, batches)]

            def run() -> None:
                with ThreadPoolExecutor(threads) as pool:
                    for _ in pool.map(work, items):
                        pass

            return rate(run, 1, len(items), CPU, workers())

        return part
