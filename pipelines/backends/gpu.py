"""The backends that work on a GPU: NVDEC decodes, by PyNvVideoCodec, and DALI crops and colours.

hybrid   FFmpeg decodes, crops and resizes on the CPU; DALI does the rest
memory   DALI crops and augments frames that lie in the GPU's memory, where a cache keeps them
gpu      as memory, of what NVDEC decodes: pixels never leave the GPU
"""

import os
import threading
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline
from torch import Tensor

from pipelines.backends.base import Backend, BackendSettings, Combined, Rendered, Video, is_device_fault
from pipelines.backends.cpu import CpuDecodeBackend, Decoded, Frames, to_rgb
from pipelines.decode import boxes_of, check_size
from pipelines.sampler import Sample
from pipelines.sampling import NOISE_FRAMES, ViewParams
from pipelines.transforms import dali
from pipelines.transforms.numpy import noise_bank
from pipelines.trim import trim
from pipelines.views import ViewSpec
from shards.tar import Excerpt, indexed
from shards.video.mp4 import DecodeError

_AT_ONCE = 128  # frames that lie in NVDEC's memory together; few trimmed files have more
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


class Nvdec:
    """Decodes on the GPU of this number, from any number of threads.

    Each thread has a decoder and a stream of its own, kept from one video to the next, since to open one is slow.
    Frames are taken as NVDEC gives them (NV12).
    """

    def __init__(self, device: int) -> None:
        self._device, self._kept = device, threading.local()

    def __call__(self, file: bytes, numbers: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """Luma (F, H, W, 1) and chroma (F, H/2, W/2, 2), uint8, of the frames of these ascending numbers, each once.

        They are there when this returns, for any stream. Raises DecodeError for a file that NVDEC does not decode, or
        without one of the frames; RuntimeError where the GPU is in trouble.
        """
        with torch.cuda.device(self._device):
            session = getattr(self._kept, "session", None) or _Session(self._device)
            self._kept.session = None  # after a failure it is of no use
            try:
                planes = session.decode(file, numbers)
            except DecodeError:
                raise
            except Exception as error:  # PyNvVideoCodec's have no common class
                words = " ".join(str(error).split())
                if is_device_fault(error):
                    raise RuntimeError(f"NVDEC: {words}") from error
                raise DecodeError(f"NVDEC: {words}") from error
            self._kept.session = session
            return planes


class _Session:
    """A thread's decoder, stream, and a file in memory: PyNvVideoCodec opens files by name."""

    def __init__(self, device: int) -> None:
        self._device, self._stream = device, torch.cuda.Stream()
        self._file = os.memfd_create("slipstream-nvdec", os.MFD_CLOEXEC)
        self._decoder: Any = None

    def __del__(self) -> None:
        os.close(self._file)

    def decode(self, file: bytes, numbers: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        self._open(file)
        places = {int(number): place for place, number in enumerate(numbers)}
        first, end, planes = 0, int(numbers[-1]) + 1, None
        with torch.cuda.stream(self._stream):
            while first < end:
                frames = self._decoder.get_batch_frames(min(_AT_ONCE, end - first))
                if not frames:
                    raise DecodeError(f"NVDEC: frame {first} of {end} does not decode")
                planes = planes or _Planes(torch.from_dlpack(frames[0]), len(numbers), self._stream)
                for number, frame in enumerate(frames, first):
                    if number in places:
                        planes.take(frame.GetPtrToPlane(0), places[number])
                first += len(frames)
        assert planes
        self._stream.record_event().synchronize()  # the next frames are written where these lie
        return planes.luma, planes.chroma

    def _open(self, file: bytes) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, file, 0)
        name = f"/proc/self/fd/{self._file}"
        if self._decoder is None:
            import PyNvVideoCodec

            self._decoder = PyNvVideoCodec.SimpleDecoder(
                name,
                gpu_id=self._device,
                cuda_stream=self._stream.cuda_stream,
                use_device_memory=True,
                output_color_type=PyNvVideoCodec.OutputColorType.NATIVE,
            )
        else:
            self._decoder.reconfigure_decoder(name)


class _Planes:
    """Memory for frames of one size. like: one of them (3H/2, W), luma above interleaved chroma."""

    def __init__(self, like: Tensor, count: int, stream: torch.cuda.Stream) -> None:
        rows, width = like.shape if like.ndim == 2 else (0, 0)
        if like.dtype != torch.uint8 or not rows or rows % 3 or width % 2:
            raise DecodeError(
                f"NVDEC gives frames of {tuple(like.shape)} {like.dtype}, not of 8 bits in 4:2:0"
            )
        self._height, self._width, self._pitch = rows * 2 // 3, width, like.stride(0)
        self.luma = like.new_empty(count, self._height, width, 1)
        self.chroma = like.new_empty(count, self._height // 2, width // 2, 2)
        self._to = self.luma.data_ptr(), self.chroma.data_ptr()
        self._stream = stream.cuda_stream

    def take(self, address: int, place: int) -> None:
        """Copy the frame that lies at an address. With a torch tensor of each, threads waited for Python's lock."""
        height, pixels = self._height, self._height * self._width
        self._copy(self._to[0] + place * pixels, address, height)
        self._copy(self._to[1] + place * pixels // 2, address + height * self._pitch, height // 2)

    def _copy(self, to: int, address: int, rows: int) -> None:
        from cuda.bindings import runtime

        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        (error,) = runtime.cudaMemcpy2DAsync(
            to, self._width, address, self._pitch, self._width, rows, kind, self._stream
        )
        if error != runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"CUDA error: {error.name} while a frame was copied")


def stated_colours(video: Excerpt, number: int) -> NDArray[np.float32]:
    """to_rgb of a video as its container states it; what that leaves open is read off the frame of this number."""
    full, colorspace = video.index.full_range, video.index.colorspace
    if full is None or colorspace is None:
        shown = Decoded.of(video, [number])
        full, colorspace = shown.full_range, shown.colorspace
    return to_rgb(full, colorspace)


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
