"""The ceiling of decoding on the GPU: DALI's decoder on files that are at hand, nothing made of their frames."""

from collections import deque
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from pipelines.mp4 import read_index
from pipelines.trim import trim

from .parts import CACHED, WARM, Way
from .rounds import Figures, Part, rate
from .source import Source


def nvdec_alone(
    source: Source, way: Way, batches: int, *, trimmed: bool = True, decoder: str = "mixed"
) -> Part:
    """way.pipelines of way.nvdec_threads each. trimmed: files as the backend hands them over, else whole ones.

    decoder: "cpu" for DALI's own, which reads VP9 and MJPEG.
    """
    turns = cycle(
        [
            [_file(source, one.row, np.unique(one.params.frames), trimmed) for one in batch]
            for batch in source.batches(0, CACHED)
        ]
    )
    device = None if decoder == "cpu" else way.device.index or 0
    free = deque(_pipeline(source, way.nvdec_threads, device, decoder) for _ in range(way.pipelines))
    begun: deque[Pipeline] = deque()

    def run() -> None:
        while free:
            pipeline = free.popleft()
            files = next(turns)
            pipeline.feed_input("encoded", [file for file, _ in files])
            pipeline.feed_input("numbers", [numbers for _, numbers in files])
            pipeline.schedule_run()
            begun.append(pipeline)
        begun[0].outputs()
        free.append(begun.popleft())

    def part(_: int) -> Figures:
        for _ in range(WARM):
            run()
        figures = rate(run, batches, source.batch_size, way.device, watched=True)
        while begun:
            begun[0].outputs()
            free.append(begun.popleft())
        return figures

    return part


def _pipeline(source: Source, threads: int, device: int | None, decoder: str) -> Pipeline:
    pipeline = Pipeline(source.batch_size, threads, device, prefetch_queue_depth=1)
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
        pipeline.set_outputs(fn.decoders.video(encoded, device=decoder, frames=numbers))
    pipeline.build()
    return pipeline


def _file(
    source: Source, row: int, numbers: NDArray[np.int32], trimmed: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    video = source.read(row)
    if trimmed:
        video, numbers = trim(read_index(video), video, numbers)
    return np.frombuffer(video, np.uint8), numbers
