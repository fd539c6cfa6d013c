"""hybrid: FFmpeg decodes, crops and resizes on the CPU; DALI does the rest on the GPU."""

from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline
from torch import Tensor

from pipelines.backends.base import Rendered
from pipelines.backends.cpu import CpuDecodeBackend
from pipelines.sampler import Sample
from pipelines.sampling import NOISE_FRAMES, ViewParams
from pipelines.transforms import dali
from pipelines.transforms.numpy import noise_bank
from pipelines.views import ViewSpec

UNDER_WAY = 2  # DALI pipelines, that take turns: while one's batch is augmented, the other's is decoded


class DaliGraph:
    """A graph in as many DALI pipelines as there are batches under way, which take turns.

    Samples of fewer than `clips` clips are filled up.

    device: the GPU's number; None for the CPU, which tests use. threads: of each pipeline; NVDEC's with source "video".
    """

    def __init__(
        self,
        spec: ViewSpec,
        source: dali.Source,
        max_samples: int,
        clips: int,
        *,
        threads: int,
        device: int | None,
    ) -> None:
        self._spec, self._source, self._clips, self._device = spec, source, clips, device
        self._max_samples, self._threads = max_samples, threads
        self._free: list[Pipeline] = []  # built when they are needed: as many as there are batches under way
        self._smaller: dict[int, DaliGraph] = {}
        self._noise: Any = None

    def render(
        self,
        samples: list[Sample],
        inputs: dict[str, list[Any]],
        stream: torch.cuda.Stream | None = None,
    ) -> Rendered:
        """Begin a batch. inputs: name of a graph's input → an array a sample, of `clips` clips each; what lies on the
        GPU was made on `stream`."""
        params = [self.filled(sample.params, sample.clips) for sample in samples]
        try:
            pipeline = self._free.pop()
        except IndexError:
            pipeline = self._built()
        with torch.cuda.stream(stream):
            for name, arrays in (dali.inputs(self._spec, params) | inputs).items():
                pipeline.feed_input(name, arrays, layout=_LAYOUTS.get(name))
            if self._spec.channel_drop:
                pipeline.feed_input("noise_bank", [self._bank()] * len(samples), layout="FHWC")
            pipeline.schedule_run()

        def views() -> Tensor:
            batch = self._taken(pipeline, [sample.clips for sample in samples])
            self._free.append(pipeline)  # after a failure it is of no use
            return batch

        return views

    def fit(self, samples: list[Sample]) -> "DaliGraph":
        """This graph, or one for fewer clips a sample, where no sample has as many: a power of two, at least."""
        most = max(sample.clips for sample in samples)
        clips = min(1 << (most - 1).bit_length(), self._clips)
        if clips == self._clips:
            return self
        if clips not in self._smaller:
            self._smaller[clips] = DaliGraph(
                self._spec,
                self._source,
                self._max_samples,
                clips,
                threads=self._threads,
                device=self._device,
            )
        return self._smaller[clips]

    @property
    def clips(self) -> int:
        """Clips of a sample."""
        return self._clips

    def filled(self, params: ViewParams, clips: int) -> ViewParams:
        """The parameters of a sample, its last clip repeated up to the number that the graph is built for."""
        if clips == self._clips:
            return params
        parts = params.clips(clips)
        return ViewParams.concatenated([*parts, *[parts[-1]] * (self._clips - clips)])

    def _built(self) -> Pipeline:
        # the work of a batch begins when it is scheduled: two pipelines, each with a queue of one, are two batches
        pipeline = Pipeline(self._max_samples, self._threads, self._device, prefetch_queue_depth=1)
        device = "cpu" if self._device is None else "gpu"
        with pipeline:
            pipeline.set_outputs(dali.define(self._spec, self._source, device, self._clips))
        pipeline.build()
        return pipeline

    def _taken(self, pipeline: Pipeline, clips: list[int]) -> Tensor:
        """A pipeline's batch (B, V, C, T, H, W), of so many clips of each sample, ready on torch's current stream.

        The host waits for none of it: DALI's stream makes torch's wait. On a GPU it is a copy, in memory of torch's own,
        which torch keeps until every stream has read it; DALI's may be written again once it is let go.
        """
        stream = None if self._device is None else torch.cuda.current_stream(self._device)
        (output,) = pipeline.outputs(stream)
        frames = torch.from_dlpack(output.as_tensor())
        spec = self._spec
        shape = (spec.views, spec.frames, spec.size, spec.size, spec.channels)
        batch = frames.view(len(clips) * self._clips, *shape)
        if any(count < self._clips for count in clips):
            parts = zip(batch.split(self._clips), clips, strict=True)
            batch = torch.cat([part[:count] for part, count in parts])
        elif stream is not None:
            batch = batch.clone()
        return batch.permute(0, 1, 5, 2, 3, 4)

    def _bank(self) -> Any:
        if self._noise is None:
            bank = noise_bank(NOISE_FRAMES, self._spec.size)
            self._noise = bank if self._device is None else torch.from_numpy(bank).to(f"cuda:{self._device}")
        return self._noise


_LAYOUTS = {"pixels": "FCHW", "luma": "FHWC", "chroma": "FHWC"}


class HybridBackend(CpuDecodeBackend):
    """FFmpeg decodes; colour and rotation are the GPU's. Half of a float view's bytes, or less, go over to it."""

    def __init__(
        self,
        spec: ViewSpec,
        max_samples: int,
        max_clips: int,
        *,
        threads: int,
        device: int | None,
        pipelines: int = UNDER_WAY,
        processes: int = 0,
    ) -> None:
        super().__init__(
            spec,
            max_samples,
            max_clips,
            processes=processes,
            shape=(spec.views * spec.decoded, spec.planes, spec.size, spec.size),
            dtype=np.uint8,
            pixels=True,
        )
        self.concurrent = pipelines
        # each clip is a sample of its own there: nothing has to be filled up
        self._graph = DaliGraph(spec, "pixels", max_samples * max_clips, 1, threads=threads, device=device)

    def render(self, samples: list[Sample], prepared: list[Tensor]) -> Rendered:
        clips = [
            Sample(sample.index[place : place + 1], sample.row, params, 1, sample.slot)
            for sample in samples
            for place, params in enumerate(sample.params.clips(sample.clips))
        ]
        return self._graph.render(clips, {"pixels": [clip for part in prepared for clip in part.numpy()]})
