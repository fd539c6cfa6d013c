"""What is timed of our own code: the loader whole and in its parts, the model, and the model on the loader's batches."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

import objectives
from benchmarks.loader.rounds import Figures, GpuMonitor, Part, Source, rate, synchronise
from models.networks import to_channels_last
from pipelines.backends import BACKENDS, BackendSettings, Kind, open_backend
from pipelines.backends.base import Backend, Rendered, Video
from pipelines.backends.cpu import CpuDecodeBackend
from pipelines.decode import decode_views
from pipelines.loader import Loader, to_device
from pipelines.sampler import Sample
from pipelines.views import ViewSpec
from pipelines.workers import Maker, Region, Worker
from training.metrics import Meter

WARM = 2  # batches that are not timed
CACHED = 3  # batches that a part is timed on, in turns
Step = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """How batches are made. backend: its name. device: where the views go. decode_with: where the CPU decodes.
    The others: see BackendSettings."""

    backend: str
    threads: int
    prefetch: int
    device: torch.device
    nvdec_threads: int = 8
    pipelines: int = 2
    decode_with: str = "threads"
    on_cpu_dali: bool = False
    cache: Literal["host", "gpu"] | None = None
    cpu_share: float = 0.0

    @property
    def kind(self) -> Kind:
        return BACKENDS[self.backend]

    @property
    def settings(self) -> BackendSettings:
        return BackendSettings(
            self.backend,
            threads=self.threads,
            nvdec_threads=self.nvdec_threads,
            pipelines=self.pipelines,
            processes=self.kind.processes(self.threads, self.cpu_share)
            if self.decode_with == "processes"
            else 0,
            cpu_share=self.cpu_share,
            on_cpu_dali=self.on_cpu_dali,
            cache=self.cache,
        )

    def loader(self, source: Source, first: int) -> Loader:
        """A loader that begins at sample `first`; to be closed."""
        loader = Loader(
            source.dataset,
            source.sampler,
            self.settings,
            threads=self.threads,
            prefetch=self.prefetch,
            device=self.device,
        )
        loader.load_state_dict({"samples": first})
        return loader

    def open(self, source: Source, stack: ExitStack) -> Backend:
        """The backend alone, which the stack closes."""
        backend = open_backend(self.settings, source.spec, source.batch_size, 1, source.dataset, source.rows)
        stack.callback(backend.close)
        return backend


def loader_alone(source: Source, options: Options, batches: int) -> Part:
    """Batches taken as fast as they come; with a cache, once an epoch has filled it."""

    def part(first: int) -> Figures:
        with options.loader(source, first) as loader:
            while options.cache and loader.position < first + source.sampler.epoch_clips:
                next(loader)
            for _ in range(
                2 * (options.prefetch + 1)
            ):  # those in the queue at the end lie in memory used before
                next(loader)
            workers = loader.backend.processes()
            return rate(
                lambda: next(loader), batches, source.batch_size, options.device, workers, watched=True
            )

    return part


def decode_alone(source: Source, options: Options, batches: int, stack: ExitStack) -> Part:
    """decode_and_crop: read, decode, crop and resize to uint8 in so many threads or processes, as a backend does."""
    if not options.settings.processes:
        return source.in_pool(partial(pixels, source), options.threads, batches)
    spec, idle = source.spec, SimpleQueue[tuple[Worker, Region]]()
    workers = [Worker(spec, pixels=True) for _ in range(options.threads)]
    made = Maker(spec, pixels=True)
    for worker in workers:
        stack.callback(worker.end)
        idle.put((worker, Region((1, *made.shape), made.dtype)))

    def work(sample: Sample) -> None:
        worker, region = idle.get()
        worker.make(source.read(sample.row), sample.params, region, region.array)
        idle.put((worker, region))

    for sample in source.samples(0, 1)[: options.threads]:  # starts each process, before the time is taken
        work(sample)
    ids = [worker.process for worker in workers if worker.process is not None]
    return source.in_pool(work, options.threads, batches, workers=lambda: ids)


def trim_alone(source: Source, options: Options, batches: int, stack: ExitStack) -> Part:
    """What a backend does on the CPU for NVDEC: read the videos, and trim them."""
    return source.in_pool(partial(prepared, source, options.open(source, stack)), options.threads, batches)


def augment_alone(source: Source, options: Options, batches: int, stack: ExitStack) -> Part:
    """What a backend that decodes on the CPU makes of pixels that are decoded before."""
    backend = options.open(source, stack)
    assert isinstance(backend, CpuDecodeBackend)
    pool = stack.enter_context(ThreadPoolExecutor(options.threads))
    turns = cycle(
        [(batch, list(pool.map(partial(pixels, source), batch))) for batch in source.batches(0, CACHED)]
    )

    def start() -> Rendered:
        samples, decoded = next(turns)
        params = [sample.params for sample in samples]
        return backend.render(
            samples, list(pool.map(backend.accept, decoded, params, backend.buffer(samples)))
        )

    return under_way(start, backend.concurrent, source, options, batches)


def graph_alone(source: Source, options: Options, batches: int, stack: ExitStack) -> Part:
    """What a backend does on the GPU, decoding and augmentation, with files that are read before."""
    backend = options.open(source, stack)
    turns = cycle(
        [(batch, [prepared(source, backend, one) for one in batch]) for batch in source.batches(0, CACHED)]
    )
    return under_way(lambda: backend.render(*next(turns)), backend.concurrent, source, options, batches)


def under_way(
    start: Callable[[], Callable[[], Any]],
    most: int,
    source: Source,
    options: Options,
    batches: int,
    *,
    watched: bool = False,
) -> Part:
    """Batches of which `most` are under way at a time. start: begins one, and returns what waits for it. watched: see rate."""

    def part(_: int) -> Figures:
        begun: deque[Callable[[], Any]] = deque()

        def run() -> None:
            while len(begun) < most:
                begun.append(start())
            begun.popleft()()

        for _ in range(WARM):
            run()
        figures = rate(run, batches, source.batch_size, options.device, watched=watched)
        while begun:
            begun.popleft()()
        return figures

    return part


def copy_alone(source: Source, options: Options, batches: int) -> Part:
    """The host's share of a batch, in pinned memory, to the GPU; gib_per_s too."""
    encoded = int(source.dataset.column(f"{source.component}_size")[source.rows].mean())
    per_clip = options.kind.bytes_to_gpu(source.spec, encoded)
    host = torch.empty(per_clip * source.batch_size, dtype=torch.uint8).pin_memory()

    def copy() -> torch.Tensor:
        return host.to(options.device, non_blocking=True)

    def part(_: int) -> Figures:
        for _ in range(WARM):
            copy()
        figures = rate(copy, batches, source.batch_size, options.device)
        return figures | {"gib_per_s": figures["clips_per_s"] * per_clip / 2**30}

    return part


def pixels(source: Source, sample: Sample) -> NDArray[np.uint8]:
    return decode_views(source.read(sample.row), sample.params, source.spec.size, source.spec.modality)


def prepared(source: Source, backend: Backend, sample: Sample) -> Any:
    (out,) = backend.buffer([sample])
    return backend.prepare(Video(source.dataset, sample.row, source.component), sample, out)


def random_batch(spec: ViewSpec, clips: int, device: torch.device) -> dict[str, Any]:
    """A batch as a loader's, of random numbers."""
    shape = (clips, spec.views, spec.frames, spec.size, spec.size, spec.channels)
    batch = {"views": torch.randn(shape, device=device).permute(0, 1, 5, 2, 3, 4)}
    batch["label"] = torch.zeros(clips, dtype=torch.int64)
    if spec.paces:
        batch["pace"] = torch.randint(len(spec.paces), shape[:2])
    return batch


def training_step(
    objective: objectives.Objective, precision: str, device: torch.device, *, channels_last: bool = True
) -> Step:
    """An optimizer step on a batch of the loader."""
    to_channels_last(objective, channels_last)
    optimizer = objective.optimizer()

    def step(batch: dict[str, Any]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = objective(to_device(batch, device, channels_last=channels_last)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def model_alone(step: Step, batch: dict[str, Any], source: Source, options: Options, batches: int) -> Part:
    """Steps on one cached batch: no loader can make training faster than this."""

    def part(_: int) -> Figures:
        step(batch)
        return rate(lambda: step(batch), batches, source.batch_size, options.device)

    return part


def together(step: Step, source: Source, options: Options, batches: int) -> Part:
    """Steps on fresh batches; wait_share (0–1) is the part of the time spent waiting for them."""

    def part(first: int) -> Figures:
        with options.loader(source, first) as loader:
            for _ in range(WARM):
                step(next(loader))
            synchronise(options.device)
            with GpuMonitor() as monitor:
                meter, began = Meter(options.device), time.perf_counter()
                while meter.steps < batches or time.perf_counter() - began < monitor.least:
                    with meter.waiting():
                        batch = next(loader)
                    step(batch)
                    meter.step()
                synchronise(options.device)
                speed = meter.speed(source.batch_size)
            return speed | monitor.figures()

    return part
