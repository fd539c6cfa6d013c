"""What is timed of our own code: the loader whole and in its parts, the model, and the model on the loader's batches."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import objectives
from benchmarks.loader.rounds import CPU, Figures, GpuMonitor, Part, Source, rate, synchronise
from models.networks import to_channels_last
from pipelines.backends import BACKENDS, BackendSettings, Kind, open_backend
from pipelines.backends.base import Backend, Rendered, Video
from pipelines.backends.cpu import CpuDecodeBackend
from pipelines.decode import decode_views
from pipelines.loader import Loader, to_device
from pipelines.sampler import Sample
from pipelines.trim import trim
from pipelines.views import ViewSpec
from shards.tar import indexed
from training.metrics import Meter

WARM = 2  # batches that are not timed
CACHED = 3  # batches that a part is timed on, in turns
Step = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Options(BackendSettings):
    """How batches are made. prefetch: made ahead. device: where the views go. decode_with: where the CPU decodes, in
    threads or in as many processes."""

    prefetch: int = 2
    device: torch.device = CPU
    decode_with: str = "threads"

    def __post_init__(self) -> None:
        found = self.kind.processes(self.threads) if self.decode_with == "processes" else 0
        object.__setattr__(self, "processes", found)

    @property
    def kind(self) -> Kind:
        return BACKENDS[self.name]

    def loader(self, source: Source, first: int) -> Loader:
        """A loader that begins at sample `first`; to be closed."""
        loader = Loader(source.dataset, source.sampler, self, prefetch=self.prefetch, device=self.device)
        loader.load_state_dict({"samples": first})
        return loader

    def open(self, source: Source) -> Backend:
        """The backend alone; to be closed."""
        return open_backend(self, source.spec, source.batch_size, 1, source.dataset, source.rows)


class _Decoder(CpuDecodeBackend):
    """The half of a backend that decodes on the CPU."""

    pixels = True

    def render(self, samples: list[Sample], prepared: list[Any]) -> Rendered:
        raise NotImplementedError


def loader_alone(source: Source, options: Options, batches: int) -> Part:
    """Batches taken as fast as they come; with a cache, once an epoch has filled it."""

    def part(first: int) -> Figures:
        with options.loader(source, first) as loader:
            while options.cache and loader.position < first + source.sampler.epoch_clips:
                next(loader)
            # those in the queue at the end lie in memory used before
            for _ in range(2 * (options.prefetch + 1)):
                next(loader)
            workers = loader.backend.processes()
            return rate(
                lambda: next(loader), batches, source.batch_size, options.device, workers, watched=True
            )

    return part


def decode_alone(source: Source, options: Options, batches: int) -> Part:
    """Read, decode, crop and resize to uint8 in so many threads or processes, as a backend does."""
    settings = replace(options, name="hybrid")

    def part(first: int) -> Figures:
        with closing(_Decoder(source.spec, 1, 1, settings)) as backend:
            work = partial(prepared, source, backend)
            # each process starts before the time is taken
            for sample in source.samples(0, 1)[: settings.threads]:
                work(sample)
            return source.in_pool(work, settings.threads, batches, workers=backend.processes)(first)

    return part


def nvdec_alone(source: Source, options: Options, batches: int) -> Part:
    """Read, trim and decode on NVDEC in so many threads, as a backend does."""

    def part(first: int) -> Figures:
        samples = source.samples(first, batches)
        with closing(options.open(source)) as backend, ThreadPoolExecutor(options.threads) as pool:
            run = lambda: deque(pool.map(partial(prepared, source, backend), samples), maxlen=0)  # noqa: E731
            run()  # each thread opens its decoder
            return rate(run, 1, len(samples), options.device, watched=True)

    return part


def trim_alone(source: Source, options: Options, batches: int) -> Part:
    """What the CPU does for NVDEC: read the videos, and trim them."""

    def work(sample: Sample) -> None:
        wanted = np.unique(sample.params.frames)
        found = indexed(Video(source.dataset, sample.row, source.spec.component).read_frames(wanted))
        trim(found.index, found.data, wanted)

    return source.in_pool(work, options.threads, batches)


def augment_alone(source: Source, options: Options, batches: int) -> Part:
    """What a backend that decodes on the CPU makes of pixels that are decoded before."""

    def part(_: int) -> Figures:
        with closing(options.open(source)) as backend, ThreadPoolExecutor(options.threads) as pool:
            assert isinstance(backend, CpuDecodeBackend)
            decoded = partial(pixels, source)
            turns = cycle([(batch, list(pool.map(decoded, batch))) for batch in source.batches(0, CACHED)])

            def start() -> Rendered:
                samples, found = next(turns)
                params = [sample.params for sample in samples]
                accepted = pool.map(backend.accept, found, params, backend.buffer(samples))
                return backend.render(samples, list(accepted))

            return under_way(start, backend.concurrent, source, options, batches)

    return part


def graph_alone(source: Source, options: Options, batches: int) -> Part:
    """What a backend's graph makes of frames that are decoded before."""

    def part(_: int) -> Figures:
        with closing(options.open(source)) as backend:
            read = partial(prepared, source, backend)
            turns = cycle([(batch, list(map(read, batch))) for batch in source.batches(0, CACHED)])
            start = lambda: backend.render(*next(turns))  # noqa: E731
            return under_way(start, backend.concurrent, source, options, batches)

    return part


def under_way(
    start: Callable[[], Callable[[], Any]],
    most: int,
    source: Source,
    options: Options,
    batches: int,
    *,
    watched: bool = False,
) -> Figures:
    """Times batches of which `most` are under way at a time. start: begins one, and returns what waits for it."""
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


def copy_alone(source: Source, options: Options, batches: int) -> Part:
    """The host's share of a batch, in pinned memory, to the GPU; gib_per_s too."""
    encoded = int(source.dataset.column(f"{source.spec.component}_size")[source.rows].mean())
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
    return backend.prepare(Video(source.dataset, sample.row, source.spec.component), sample, out)


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
                    meter.steps += 1
                synchronise(options.device)
                speed = meter.speed(source.batch_size)
            return speed | monitor.figures()

    return part
