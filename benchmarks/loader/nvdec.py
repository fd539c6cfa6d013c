"""The ceiling of decoding on the GPU: DALI's decoder on files that are at hand, nothing made of their frames."""

from collections import deque
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types

from pipelines.sampler import Sample
from pipelines.trim import trim
from shards.video.mp4 import read_index

from .parts import CACHED, WARM, Way
from .rounds import Figures, Part, rate
from .source import Source


def nvdec_alone(source: Source, way: Way, batches: int, *, trimmed: bool = True) -> Part:
    """way.pipelines of way.nvdec_threads each. trimmed: files as the backend hands them over, else whole ones.

    With way.on_cpu_dali the decoder is DALI's own, which reads VP9 and MJPEG.
    """
    turns = cycle([[encoded(source, one, trimmed) for one in batch] for batch in source.batches(0, CACHED)])
    free = deque(_pipeline(source, way) for _ in range(way.pipelines))
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


def _pipeline(source: Source, way: Way) -> Pipeline:
    device = None if way.on_cpu_dali else torch.cuda.current_device()
    pipeline = Pipeline(source.batch_size, way.nvdec_threads, device, prefetch_queue_depth=1)
    with pipeline:
        files = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
        decoder = "cpu" if way.on_cpu_dali else "mixed"
        pipeline.set_outputs(fn.decoders.video(files, device=decoder, frames=numbers))
    pipeline.build()
    return pipeline


def encoded(
    source: Source, sample: Sample, trimmed: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A file, and the numbers of the frames to show, ascending, each once."""
    video, numbers = source.read(sample.row), np.unique(sample.params.frames)
    if trimmed:
        video, numbers = trim(read_index(video), video, numbers)
    return np.frombuffer(video, np.uint8), numbers
