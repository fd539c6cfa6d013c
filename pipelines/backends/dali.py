"""The backends that augment on the GPU, with DALI.

hybrid   FFmpeg decodes, crops and resizes on the CPU; DALI does the rest
memory   DALI crops and augments frames that lie in the GPU's memory, where a cache keeps them
gpu      as memory, of what NVDEC decodes: pixels never leave the GPU
"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline
from torch import Tensor

from pipelines.backends.base import Backend, BackendSettings, Combined, Rendered, Video
from pipelines.backends.cpu import CpuDecodeBackend, Decoded, Frames, stated_colours
from pipelines.decode import boxes_of, check_size
from pipelines.nvdec import Nvdec
from pipelines.sampler import Sample
from pipelines.sampling import NOISE_FRAMES, ViewParams
from pipelines.transforms import dali
from pipelines.transforms.numpy import noise_bank
from pipelines.trim import trim
from pipelines.views import ViewSpec
from shards.tar import Excerpt, indexed

_LAYOUTS = {"pixels": "FCHW", "luma": "FHWC", "chroma": "FHWC"}


class DaliGraph:
    """A graph in as many DALI pipelines as there are batches under way, which take turns.

    max_clips: of a sample. A pipeline is built for a number of clips, a power of two or this one; samples of fewer are
    filled up. device: the GPU's number; None for the CPU, which tests use. threads: of each pipeline.
    """

    def __init__(
        self,
        spec: ViewSpec,
        source: dali.Source,
        max_samples: int,
        max_clips: int,
        *,
        threads: int,
        device: int | None,
    ) -> None:
        self._spec, self._source, self._max_clips, self._device = spec, source, max_clips, device
        self._max_samples, self._threads = max_samples, threads
        self._free: defaultdict[int, list[Pipeline]] = defaultdict(
            list
        )  # by clips; built when they are needed
        self._noise: Any = None

    def render(
        self,
        samples: list[Sample],
        inputs: dict[str, list[Any]],
        stream: torch.cuda.Stream | None = None,
    ) -> Rendered:
        """Begin a batch. inputs: name of a graph's input → an array a sample; what lies on the GPU was made on `stream`."""
        counts = [sample.clips for sample in samples]
        clips = min(1 << (max(counts) - 1).bit_length(), self._max_clips)
        params = [_filled(sample, clips) for sample in samples]
        try:
            pipeline = self._free[clips].pop()
        except IndexError:
            pipeline = self._built(clips)
        with torch.cuda.stream(stream):
            for name, arrays in (dali.inputs(self._spec, self._source, params, clips) | inputs).items():
                pipeline.feed_input(name, arrays, layout=_LAYOUTS.get(name))
            if self._spec.channel_drop:
                pipeline.feed_input("noise_bank", [self._bank()] * len(samples), layout="FHWC")
            pipeline.schedule_run()

        def views() -> Tensor:
            batch = self._taken(pipeline, counts, clips)
            self._free[clips].append(pipeline)  # after a failure it is of no use
            return batch

        return views

    def _built(self, clips: int) -> Pipeline:
        # the work of a batch begins when it is scheduled: two pipelines, each with a queue of one, are two batches
        pipeline = Pipeline(self._max_samples, self._threads, self._device, prefetch_queue_depth=1)
        device = "cpu" if self._device is None else "gpu"
        with pipeline:
            pipeline.set_outputs(dali.define(self._spec, self._source, device, clips))
        pipeline.build()
        return pipeline

    def _taken(self, pipeline: Pipeline, counts: list[int], clips: int) -> Tensor:
        """A pipeline's batch (B, V, C, T, H, W), of the first `counts[i]` of `clips` clips of sample i, ready on torch's
        current stream.

        The host waits for none of it: DALI's stream makes torch's wait. On a GPU it is a copy, in memory of torch's own,
        which torch keeps until every stream has read it; DALI's may be written again once it is let go.
        """
        stream = None if self._device is None else torch.cuda.current_stream(self._device)
        (output,) = pipeline.outputs(stream)
        frames = torch.from_dlpack(output.as_tensor())
        spec = self._spec
        shape = (spec.views, spec.frames, spec.size, spec.size, spec.channels)
        batch = frames.view(len(counts) * clips, *shape)
        if any(count < clips for count in counts):
            parts = zip(batch.split(clips), counts, strict=True)
            batch = torch.cat([part[:count] for part, count in parts])
        elif stream is not None:
            batch = batch.clone()
        return batch.permute(0, 1, 5, 2, 3, 4)

    def _bank(self) -> Any:
        if self._noise is None:
            bank = noise_bank(NOISE_FRAMES, self._spec.size)
            self._noise = bank if self._device is None else torch.from_numpy(bank).to(f"cuda:{self._device}")
        return self._noise


def _filled(sample: Sample, clips: int) -> ViewParams:
    """The parameters of a sample, its last clip repeated up to this number."""
    if sample.clips == clips:
        return sample.params
    parts = sample.params.clips(sample.clips)
    return ViewParams.concatenated([*parts, *[parts[-1]] * (clips - sample.clips)])


class HybridBackend(CpuDecodeBackend):
    """FFmpeg decodes; colour and rotation are the GPU's. Half of a float view's bytes, or less, go over to it."""

    pixels = True

    def __init__(self, spec: ViewSpec, max_samples: int, max_clips: int, settings: BackendSettings) -> None:
        super().__init__(spec, max_samples, max_clips, settings)
        self.concurrent, threads = settings.pipelines, settings.threads
        # each clip is a sample of its own there: nothing has to be filled up
        clips = max_samples * max_clips
        self._graph = DaliGraph(spec, "pixels", clips, 1, threads=threads, device=settings.gpu)

    def render(self, samples: list[Sample], prepared: list[Tensor]) -> Rendered:
        clips = [
            Sample(sample.index[place : place + 1], sample.row, params, 1, sample.slot)
            for sample in samples
            for place, params in enumerate(sample.params.clips(sample.clips))
        ]
        return self._graph.render(clips, {"pixels": [clip for part in prepared for clip in part.numpy()]})


class MemoryBackend(Backend):
    """Renders frames that lie in the device's memory: a cache's, or NVDEC's."""

    def __init__(self, spec: ViewSpec, max_samples: int, max_clips: int, settings: BackendSettings) -> None:
        super().__init__(spec, max_samples, max_clips)
        self.concurrent, threads, self._gpu = settings.pipelines, settings.threads, settings.gpu
        self._graph = DaliGraph(spec, "frames", max_samples, max_clips, threads=threads, device=self._gpu)
        self._stream = None if self._gpu is None else torch.cuda.Stream(self._gpu)

    def prepare(self, video: Video, sample: Sample, out: Any) -> Any:
        raise NotImplementedError("the cache before this backend keeps the video")

    def render(self, samples: list[Sample], prepared: list[Frames]) -> Rendered:
        given: dict[str, list[Any]] = {"luma": [], "chroma": [], "to_rgb": [one.to_rgb for one in prepared]}
        for one in prepared:
            for name, plane in (("luma", one.luma), ("chroma", one.chroma)):
                given[name].append(plane if self._stream else plane.numpy())
                if self._stream:
                    plane.record_stream(self._stream)
            if self._stream and one.stream:
                self._stream.wait_stream(one.stream)
        return self._graph.render(samples, given, self._stream)


class NvdecBackend(MemoryBackend):
    """Everything on the GPU. NVDEC is given only what a clip needs: it decodes a file from its first packet on.

    On a CPU, for tests, FFmpeg plays NVDEC's part.
    """

    def __init__(self, spec: ViewSpec, max_samples: int, max_clips: int, settings: BackendSettings) -> None:
        super().__init__(spec, max_samples, max_clips, settings)
        self._nvdec = None if self._gpu is None else Nvdec(self._gpu)

    def prepare(self, video: Video, sample: Sample, out: Any) -> Frames:
        found, file, numbers = trimmed(video, sample)
        if self._nvdec is None:
            frames = Frames.of(Decoded.of(file, numbers.tolist()), torch.device("cpu"))
        else:
            frames = Frames(
                *self._nvdec(file, numbers), stated_colours(found, int(sample.params.frames[0, 0])), None
            )
        _, height, width, _ = frames.luma.shape
        for box in boxes_of(sample.params):
            check_size(box, width, height // (2 if self.spec.modality == "flow" else 1))
        return frames


def trimmed(video: Video, sample: Sample) -> tuple[Excerpt, bytes, NDArray[np.int32]]:
    """What of a video a sample needs; the same as a file of its own, for NVDEC; and the numbers that the sample's frames,
    ascending and each once, have in that file."""
    wanted = np.unique(sample.params.frames)
    found = indexed(video.read_frames(wanted))
    return found, *trim(found.index, found.data, wanted)


class SharedBackend(Combined):
    """NVDEC and the CPU side by side: the share of the samples that the CPU decodes is spread evenly over them."""

    def __init__(self, nvdec: Backend, on_cpu: Backend, cpu_share: float) -> None:
        super().__init__([nvdec, on_cpu])
        self._share = cpu_share

    def prepare(self, video: Video, sample: Sample, out: Any) -> tuple[int, Any]:
        number = int(in_share(sample.slot, self._share))
        return number, self.members[number].prepare(video, sample, out)


def in_share(slot: int, share: float) -> bool:
    """Whether this slot is one of the `share` (0–1) of all slots, which are spread evenly over them."""
    return int((slot + 1) * share) > int(slot * share)
