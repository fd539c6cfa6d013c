"""The backends that work on a GPU: NVDEC decodes, by PyNvVideoCodec, and DALI crops and colours.

hybrid   FFmpeg decodes, crops and resizes on the CPU; DALI does the rest
memory   DALI crops and augments frames that lie in the GPU's memory, where a cache keeps them
gpu      as memory, of what NVDEC decodes: pixels never leave the GPU
"""

import logging
import os
import threading
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline
from torch import Tensor

from pipelines.backends.base import Backend, BackendSettings, Rendered, Video, is_device_fault
from pipelines.backends.cpu import CpuDecodeBackend, Decoded, Frames, to_rgb
from pipelines.decode import boxes_of, check_size
from pipelines.sampler import Sample
from pipelines.sampling import NOISE_FRAMES
from pipelines.transforms import dali
from pipelines.transforms.numpy import noise_bank
from pipelines.trim import trim
from pipelines.views import ViewSpec
from shards.tar import Excerpt, indexed

log = logging.getLogger(__name__)
_DECODERS = 8  # for streams of different kinds, that a thread keeps
_BYTES_AT_ONCE = 2**24  # of frames that a decoder gives at a time

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
        params = [sample.filled(clips) for sample in samples]
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
        planes: dict[str, list[Any]]
        planes = {"luma": [one.luma for one in prepared], "chroma": [one.chroma for one in prepared]}
        if self._stream is None:
            planes = {name: [plane.numpy() for plane in part] for name, part in planes.items()}
        else:
            for made_on in {one.stream for one in prepared if one.stream}:
                self._stream.wait_stream(made_on)
            for plane in planes["luma"] + planes["chroma"]:
                plane.record_stream(self._stream)
        given = planes | {"to_rgb": [one.to_rgb for one in prepared]}
        return self._graph.render(samples, given, self._stream)


class NvdecBackend(MemoryBackend):
    """Everything on the GPU. NVDEC is given only what a clip needs: it decodes a file from its first packet on.

    What NVDEC cannot decode, FFmpeg does, which also judges whether the video is bad; on a CPU, for tests, FFmpeg decodes
    all.
    """

    def __init__(self, spec: ViewSpec, max_samples: int, max_clips: int, settings: BackendSettings) -> None:
        super().__init__(spec, max_samples, max_clips, settings)
        self._nvdec = None if self._gpu is None else Nvdec(self._gpu)
        self._device = torch.device("cpu" if self._gpu is None else f"cuda:{self._gpu}")
        self._unsuited: set[StreamKind] = set()
        self._colours: dict[Any, NDArray[np.float32]] = {}
        self._warned = False

    def prepare(self, video: Video, sample: Sample, out: Any) -> Frames:
        wanted = np.unique(sample.params.frames)
        found = indexed(video.read_frames(wanted))
        frames = self._by_nvdec(found, wanted) if self._nvdec else None
        frames = frames or Frames.of(Decoded.of(found, wanted.tolist()), self._device, self._stream)
        _, height, width, _ = frames.luma.shape
        for box in boxes_of(sample.params):
            check_size(box, width, height // (2 if self.spec.modality == "flow" else 1))
        return frames

    def _by_nvdec(self, video: Excerpt, wanted: NDArray[np.int32]) -> Frames | None:
        """None where FFmpeg has to decode. Raises RuntimeError where the GPU is in trouble."""
        assert self._nvdec
        if not video.index.description:  # a file as it is, of which NVDEC may show other frames
            return None
        kind = StreamKind(video.index.width, video.index.height, video.index.extradata)
        if kind in self._unsuited:
            return None
        file, numbers = trim(video.index, video.data, wanted)
        colours = self._to_rgb(video, wanted)
        try:
            return Frames(*self._nvdec(file, numbers, kind), colours, None)
        except Exception as error:  # PyNvVideoCodec's have no common class
            words = " ".join(str(error).split())
            if is_device_fault(error):
                raise RuntimeError(f"NVDEC: {words}") from error
            if isinstance(error, UnsuitedError):
                self._unsuited.add(kind)
            if not self._warned:
                log.warning("NVDEC does not decode some videos (%s): FFmpeg does", words)
            self._warned = True
            return None

    def _to_rgb(self, video: Excerpt, wanted: NDArray[np.int32]) -> NDArray[np.float32]:
        index = video.index
        key = index.extradata, index.full_range, index.colorspace
        known = self._colours.get(key) if index.extradata else None
        if known is None:
            known = self._colours[key] = stated_colours(video, int(wanted[0]))
        return known


def stated_colours(video: Excerpt, number: int) -> NDArray[np.float32]:
    """to_rgb of a video as its container states it; what that leaves open is read off the frame of this number."""
    full, colorspace = video.index.full_range, video.index.colorspace
    if full is None or colorspace is None:
        shown = Decoded.of(video, [number])
        full, colorspace = shown.full_range, shown.colorspace
    return to_rgb(full, colorspace)


Planes = tuple[Tensor, Tensor]
"""Luma (F, H, W, 1) and chroma (F, H/2, W/2, 2), uint8."""


class StreamKind(NamedTuple):
    """Streams that one decoder may decode in turns: of one size, with one header (extradata), so that they need the
    same number of surfaces."""

    width: int
    height: int
    header: bytes


class UnsuitedError(Exception):
    """NVDEC decodes streams of this kind to frames that are not 8 bit 4:2:0, or of another size."""


class Nvdec:
    """Decodes on the GPU of this number, from any number of threads. Raises ImportError where a library is missing.

    Each thread keeps its decoders from one video to the next, since to open one is slow, and a stream.
    Frames are taken as NVDEC gives them (NV12).
    """

    def __init__(self, gpu: int) -> None:
        import PyNvVideoCodec
        from cuda.bindings import runtime

        self._libraries = PyNvVideoCodec, runtime
        self._gpu, self._kept = gpu, threading.local()

    def __call__(self, file: bytes, numbers: NDArray[np.int32], kind: StreamKind) -> Planes:
        """The frames of these ascending numbers, each once.

        file: an mp4 file, of this kind. The frames are there when this returns, for any stream.
        Raises what PyNvVideoCodec raises, RuntimeError for a frame that is missing, and UnsuitedError.
        """
        with torch.cuda.device(self._gpu):
            session = getattr(self._kept, "session", None) or _Session(self._gpu, *self._libraries)
            self._kept.session = None  # after a failure it is of no use
            planes = session.decode(file, numbers, kind)
            self._kept.session = session
            return planes


class _Session:
    """A thread's decoders and stream."""

    def __init__(self, gpu: int, library: Any, runtime: Any) -> None:
        self._gpu, self._library, self._runtime = gpu, library, runtime
        self._stream, self._done = torch.cuda.Stream(), torch.cuda.Event(blocking=True)
        self._decoders: dict[StreamKind, tuple[Any, Any]] = {}  # each with its file; the last used at the end

    def decode(self, file: bytes, numbers: NDArray[np.int32], kind: StreamKind) -> Planes:
        """As Nvdec."""
        decoder, (width, height, _) = self._opened(file, kind), kind
        place_of = {int(number): place for place, number in enumerate(numbers)}
        first, end = 0, int(numbers[-1]) + 1
        at_once = max(8, _BYTES_AT_ONCE // (width * height * 3 // 2))
        with torch.cuda.stream(self._stream):  # memory that no other stream still works on
            luma = torch.empty(len(numbers), height, width, 1, dtype=torch.uint8, device=f"cuda:{self._gpu}")
            chroma = luma.new_empty(len(numbers), height // 2, width // 2, 2)
            while first < end:
                frames = decoder.get_batch_frames(min(at_once, end - first))
                if not frames:
                    raise RuntimeError(f"frame {first} of {end} is not there")
                shown = torch.from_dlpack(frames[0])
                if shown.dtype != torch.uint8 or shown.shape != (height * 3 // 2, width):
                    raise UnsuitedError(f"frames are {tuple(shown.shape)} {shown.dtype}, not 8 bit 4:2:0")
                pitch = shown.stride(0)
                for number, frame in enumerate(frames, first):
                    if (place := place_of.get(number)) is not None:
                        address = frame.GetPtrToPlane(0)
                        self._copy(luma, place, address, pitch, width, height)
                        self._copy(chroma, place, address + height * pitch, pitch, width, height // 2)
                first += len(frames)
        self._done.record(self._stream)
        self._done.synchronize()  # whoever takes the frames need not know this stream
        return luma, chroma

    def _opened(self, file: bytes, kind: StreamKind) -> Any:
        """A decoder of this kind, at a file's first frame. It opens files by name, now and perhaps later: this one lies in
        memory, as long as the decoder is at it."""
        held = os.fdopen(os.memfd_create("slipstream", os.MFD_CLOEXEC), "wb")
        held.write(file)
        held.flush()
        name = f"/proc/self/fd/{held.fileno()}"
        before, decoder = self._decoders.pop(kind, (None, None))
        if decoder is not None:
            decoder.reconfigure_decoder(name)
            before.close()
        else:
            native = self._library.OutputColorType.NATIVE
            stream = self._stream.cuda_stream
            decoder = self._library.SimpleDecoder(
                name, self._gpu, cuda_stream=stream, use_device_memory=True, output_color_type=native
            )
        if len(self._decoders) == _DECODERS:
            del self._decoders[next(iter(self._decoders))]
        self._decoders[kind] = held, decoder
        return decoder

    def _copy(self, to: Tensor, place: int, address: int, pitch: int, width: int, rows: int) -> None:
        """One plane of a frame. With a torch tensor of each frame, threads waited for each other longer."""
        cuda, target = self._runtime, to.data_ptr() + place * width * rows
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        (error,) = cuda.cudaMemcpy2DAsync(
            target, width, address, pitch, width, rows, kind, self._stream.cuda_stream
        )
        if error != cuda.cudaError_t.cudaSuccess:
            raise RuntimeError(f"CUDA error: {error.name} while a frame was copied")
