"""The loader whole and in its parts: decoding alone, augmentation alone, the copy to the GPU."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.backends import BACKENDS, BackendSettings, Kind, open_backend
from pipelines.backends.base import Backend, Rendered, Video
from pipelines.backends.cpu import CpuDecodeBackend
from pipelines.decode import decode_views
from pipelines.loader import Loader
from pipelines.sampler import Sample
from pipelines.workers import Region, Worker

from .rounds import Figures, Part, rate
from .source import Source

WARM = 2  # batches that are not counted
CACHED = 3  # batches that a part is timed on, in turns
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Way:
    """How batches are made. backend: its name. device: where the views go. processes: as many as threads decode, where the CPU
    does. The others: see BackendSettings."""

    backend: str
    threads: int
    prefetch: int
    device: torch.device
    nvdec_threads: int = 8
    pipelines: int = 2
    processes: bool = False
    on_cpu_dali: bool = False

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
            processes=self.kind.processes(self.threads, 0.0) if self.processes else 0,
            on_cpu_dali=self.on_cpu_dali,
        )

    def loader(self, source: Source, first: int) -> Loader:
        """A loader that goes on from sample `first`; to be closed."""
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

    def open(self, source: Source) -> Backend:
        """The backend alone; to be closed."""
        return open_backend(self.settings, source.spec, source.batch_size, 1, source.dataset, source.rows)


def loader_alone(source: Source, way: Way, batches: int) -> Part:
    """Batches taken as fast as they come."""

    def part(first: int) -> Figures:
        with way.loader(source, first) as loader:
            for _ in range(2 * (way.prefetch + 1)):  # those in the queue at the end lie in memory used before
                next(loader)
            workers = loader.backend.processes()
            return rate(lambda: next(loader), batches, source.batch_size, way.device, workers, watched=True)

    return part


def decode_alone(source: Source, way: Way, batches: int, stack: ExitStack) -> Part:
    """decode_and_crop: read, decode, crop and resize to uint8 in so many threads or processes, as a backend does."""
    if not way.settings.processes:
        return _in_pool(partial(pixels, source), source, way, batches)
    spec, idle = source.spec, SimpleQueue[tuple[Worker, Region]]()
    crew = [Worker(spec, pixels=True) for _ in range(way.threads)]
    shape = (1, spec.views * spec.decoded, spec.planes, spec.size, spec.size)
    for worker in crew:
        stack.callback(worker.end)
        idle.put((worker, Region(shape, np.uint8)))

    def work(sample: Sample) -> None:
        worker, region = idle.get()
        worker.make(source.read(sample.row), sample.params, region, region.array)
        idle.put((worker, region))

    for sample in source.samples(0, 1)[: way.threads]:  # each is started, and not in the time that is taken
        work(sample)
    return _in_pool(
        work, source, way, batches, lambda: [one.process for one in crew if one.process is not None]
    )


def trim_alone(source: Source, way: Way, batches: int, stack: ExitStack) -> Part:
    """What a backend does on the CPU for a decoder elsewhere: read the videos, and trim them."""
    backend = opened(source, way, stack)
    return _in_pool(partial(prepared, source, backend), source, way, batches)


def _in_pool(
    work: Callable[[Sample], Any],
    source: Source,
    way: Way,
    batches: int,
    workers: Callable[[], list[int]] = list,
) -> Part:
    """workers: numbers of the processes that do the work beside this one, once they run."""

    def part(first: int) -> Figures:
        samples = source.samples(first, batches)

        def run() -> None:
            with ThreadPoolExecutor(way.threads) as pool:
                for _ in pool.map(work, samples):
                    pass

        return rate(run, 1, len(samples), CPU, workers())

    return part


def augment_alone(source: Source, way: Way, batches: int, stack: ExitStack) -> Part:
    """What a backend that decodes on the CPU makes of pixels, which are at hand."""
    backend = opened(source, way, stack)
    assert isinstance(backend, CpuDecodeBackend)
    pool = stack.enter_context(ThreadPoolExecutor(way.threads))
    turns = cycle(
        [(batch, list(pool.map(partial(pixels, source), batch))) for batch in source.batches(0, CACHED)]
    )

    def start() -> Rendered:
        samples, decoded = next(turns)
        params = [sample.params for sample in samples]
        return backend.render(
            samples, list(pool.map(backend.accept, decoded, params, backend.buffer(samples)))
        )

    return _under_way(start, backend.concurrent, source, way, batches)


def graph_alone(source: Source, way: Way, batches: int, stack: ExitStack) -> Part:
    """What a backend does on the GPU, decoding and augmentation, of files that are at hand."""
    backend = opened(source, way, stack)
    turns = cycle(
        [(batch, [prepared(source, backend, one) for one in batch]) for batch in source.batches(0, CACHED)]
    )
    return _under_way(lambda: backend.render(*next(turns)), backend.concurrent, source, way, batches)


def _under_way(start: Callable[[], Rendered], most: int, source: Source, way: Way, batches: int) -> Part:
    """Batches of which `most` are under way at a time."""

    def part(_: int) -> Figures:
        begun: deque[Rendered] = deque()

        def run() -> torch.Tensor:
            while len(begun) < most:
                begun.append(start())
            return begun.popleft()()

        for _ in range(WARM):
            run()
        figures = rate(run, batches, source.batch_size, way.device)
        while begun:
            begun.popleft()()
        return figures

    return part


def copy_alone(source: Source, way: Way, batches: int) -> Part:
    """The host's share of a batch, in pinned memory, to the GPU; gib_per_s too."""
    spec, clips = source.spec, source.batch_size
    encoded = int(source.dataset.column(f"{source.component}_size")[source.rows].mean())
    per_clip = way.kind.bytes_to_gpu(spec, encoded)
    host = torch.empty(per_clip * clips, dtype=torch.uint8).pin_memory()

    def part(_: int) -> Figures:
        for _ in range(WARM):
            host.to(way.device, non_blocking=True)
        figures = rate(lambda: host.to(way.device, non_blocking=True), batches, clips, way.device)
        return figures | {"gib_per_s": figures["clips_per_s"] * per_clip / 2**30}

    return part


def allowed(decode: float, augment: float) -> float:
    """Clips/s that the two parts allow, done one after the other: 1 / (1/decode + 1/augment)."""
    return 1 / (1 / decode + 1 / augment)


def opened(source: Source, way: Way, stack: ExitStack) -> Backend:
    backend = way.open(source)
    stack.callback(backend.close)
    return backend


def pixels(source: Source, sample: Sample) -> NDArray[np.uint8]:
    return decode_views(source.read(sample.row), sample.params, source.spec.size, source.spec.modality)


def prepared(source: Source, backend: Backend, sample: Sample) -> Any:
    (out,) = backend.buffer([sample])
    return backend.prepare(Video(source.dataset, sample.row, source.component), sample, out)
