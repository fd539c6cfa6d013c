"""The loader whole and in its parts: decoding alone, augmentation alone, the copy to the GPU."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from pipelines.graph import Graph, Placement

from pipelines.decode import decode_views
from pipelines.loader import Loader
from pipelines.sampling import ViewParams

from .rounds import Figures, Part, rate
from .source import Source

WARM = 2  # batches that are not counted
CACHED = 3  # batches that the augmentation is timed on, in turns


@dataclass(frozen=True)
class Way:
    """How batches are made; `device` is where the views go."""

    placement: Placement
    threads: int
    prefetch: int
    device: torch.device

    def loader(self, source: Source, first: int) -> Loader:
        """A loader that goes on from sample `first`; to be closed."""
        loader = Loader(
            source.dataset,
            source.rows,
            source.spec,
            batch_size=source.batch_size,
            seed=source.seed,
            placement=self.placement,
            threads=self.threads,
            prefetch=self.prefetch,
            device=self.device,
        )
        loader.load_state_dict({"samples": first})
        return loader


def loader_alone(source: Source, way: Way, batches: int) -> Part:
    """Batches taken as fast as they come."""

    def part(first: int) -> Figures:
        with way.loader(source, first) as loader:
            for _ in range(2 * (way.prefetch + 1)):  # those in the queue at the end lie in memory used before
                next(loader)
            return rate(lambda: next(loader), batches, source.batch_size, way.device)

    return part


def decode_alone(source: Source, way: Way, batches: int) -> Part:
    """Reading and decoding as the loader's pool does; with the placement gpu, NVDEC through DALI."""
    return _nvdec(source, way, batches) if way.placement == "gpu" else _pool(source, way, batches)


def _pool(source: Source, way: Way, batches: int) -> Part:
    def work(sample: tuple[int, ViewParams]) -> None:
        pixels(source, *sample)

    def part(first: int) -> Figures:
        samples = source.samples(first, batches)

        def run() -> None:
            with ThreadPoolExecutor(way.threads) as pool:
                for _ in pool.map(work, samples):
                    pass

        return rate(run, 1, len(samples), torch.device("cpu"))

    return part


def _nvdec(source: Source, way: Way, batches: int) -> Part:
    pipeline = Pipeline(source.batch_size, way.threads, torch.cuda.current_device(), prefetch_queue_depth=1)
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
        pipeline.set_outputs(fn.decoders.video(encoded, device="mixed", frames=numbers))
    pipeline.build()

    def part(first: int) -> Figures:
        chunks = batched(source.samples(first, batches + WARM), source.batch_size)

        def run() -> None:
            chunk = next(chunks)
            pipeline.feed_input("encoded", [encoded_video(source, row) for row, _ in chunk])
            pipeline.feed_input("numbers", [np.unique(params.frames) for _, params in chunk])
            pipeline.run()

        for _ in range(WARM):
            run()
        return rate(run, batches, source.batch_size, way.device)

    return part


def graph_alone(source: Source, way: Way, batches: int) -> Part:
    """The DALI graph on cached pixels: augmentation; with the placement gpu on cached bytes: decoding too."""
    material = encoded_video if way.placement == "gpu" else None
    cached = []
    for chunk in batched(source.samples(0, CACHED), source.batch_size):
        batch_params = [params for _, params in chunk]
        cached.append(
            (
                batch_params,
                [material(source, row) if material else pixels(source, row, d) for row, d in chunk],
            )
        )
    graph = Graph(source.spec, source.batch_size, way.placement, threads=way.threads)
    turns = cycle(cached)

    def part(_: int) -> Figures:
        for _ in range(WARM):
            graph.run(*next(turns))
        return rate(lambda: graph.run(*next(turns)), batches, source.batch_size, way.device)

    return part


def copy_alone(source: Source, way: Way, batches: int) -> Part:
    """The host's share of a batch, in pinned memory, to the GPU; gib_per_s too."""
    spec, clips = source.spec, source.batch_size
    pixels_a_clip = spec.views * spec.frames * spec.size**2
    per_clip = {
        "gpu": int(source.dataset.column(f"{source.component}_size")[source.rows].mean()),
        "hybrid": pixels_a_clip * spec.planes,
        "cpu": pixels_a_clip * spec.channels * 4,
    }[way.placement]
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


def pixels(source: Source, row: int, params: ViewParams) -> np.ndarray:
    video = source.dataset.read(row, source.component)
    return decode_views(video, params, source.spec.size, source.spec.modality)


def encoded_video(source: Source, row: int) -> np.ndarray:
    return np.frombuffer(source.dataset.read(row, source.component), np.uint8)


def batched(samples: list[tuple[int, ViewParams]], size: int) -> Iterator[list[tuple[int, ViewParams]]]:
    for first in range(0, len(samples), size):
        yield samples[first : first + size]
