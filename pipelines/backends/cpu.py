"""Videos that FFmpeg decodes, and videos that stay decoded.

cpu: FFmpeg decodes, crops and resizes; NumPy does the rest, straight into the batch's memory. No DALI.

--cache host, --cache gpu, in front of any backend: decoded videos stay in memory, so that a later clip costs no decoding.
They are kept whole, as their decoder gave them (4:2:0, 1.5 bytes a pixel), and the boxes of each clip are cropped from
them: a cached video gives any view that its file gives. Which videos are kept is fixed before the first is read: those
with the fewest bytes, as many as fit, because that serves the most clips. None ever makes room for another.
"""

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from torch import Tensor

from pipelines import colour
from pipelines.backends.base import Backend, BackendSettings, Combined, Rendered, Video
from pipelines.decode import crop_views, decode_frames, keep_freed_memory
from pipelines.sampler import Sample
from pipelines.sampling import ViewParams
from pipelines.views import ViewSpec
from pipelines.workers import Maker, Region, Worker
from shards import Dataset, InputError
from shards.tar import Excerpt
from shards.video.mp4 import DecodeError

Where = Literal["host", "gpu"]
_FORMATS = ("yuv420p", "yuvj420p")
_GIB = 2**30


class CpuDecodeBackend(Backend):
    """A backend whose videos FFmpeg decodes: in the pool's threads, or in as many processes as the settings say.

    What a clip becomes is written into memory of the batch. pixels: see Maker.
    """

    pixels = False

    def __init__(
        self,
        spec: ViewSpec,
        max_samples: int,
        max_clips: int,
        settings: BackendSettings = BackendSettings(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(spec, max_samples, max_clips)
        keep_freed_memory()
        self._maker = Maker(spec, pixels=self.pixels)
        shape, processes = (max_samples * max_clips, *self._maker.shape), settings.processes
        self._memory = _BatchMemory(shape, self._maker.dtype, shared=processes > 0)
        self._workers = [Worker(spec, pixels=self.pixels) for _ in range(processes)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def buffer(self, samples: list[Sample]) -> list[Tensor]:
        clips = [sample.clips for sample in samples]
        return list(self._memory.take(sum(clips)).split(clips))

    def prepare(self, video: Video, sample: Sample, out: Tensor) -> Tensor:
        data = video.read_frames(sample.params.frames)
        if not self._workers:
            self._maker(data, sample.params, out.numpy())
            return out
        worker = self._idle.get()
        try:
            worker.make(data, sample.params, self._memory.region_of(out), out.numpy())
        finally:
            self._idle.put(worker)
        return out

    def accept(self, pixels: NDArray[np.uint8], params: ViewParams, out: Tensor) -> Tensor:
        """As `prepare`, of the pixels that decode.decode_views gives: (F, size, size, P)."""
        self._maker.finish(pixels, params, out.numpy())
        return out

    def processes(self) -> list[int]:
        return [worker.process for worker in self._workers if worker.process is not None]

    def close(self) -> None:
        for worker in self._workers:
            worker.end()


class CpuBackend(CpuDecodeBackend):
    """Everything on the CPU. The views lie in the computer's memory; pinned where there is a GPU, and no process."""

    def render(self, samples: list[Sample], prepared: list[Tensor]) -> Rendered:
        spec = self.spec
        batch = _rejoined(prepared)
        shape = (len(batch), spec.views, spec.frames, spec.size, spec.size, spec.channels)
        return lambda: batch.view(shape).permute(0, 1, 5, 2, 3, 4)


class _BatchMemory:
    """Batches of one shape. Memory that nobody holds any more is used again: fresh pages cost as much as colours."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, *, shared: bool) -> None:
        self._shape, self._dtype, self._shared = shape, np.dtype(dtype), shared
        self._free: deque[Region | NDArray[Any]] = deque(maxlen=8)
        self._lent: dict[int, Region] = {}  # by where the memory begins

    def take(self, clips: int) -> Tensor:
        """(clips, …), not initialised; pinned for a GPU, which torch itself uses again after the copy."""
        if torch.cuda.is_available() and not self._shared and self._dtype == np.float32:
            return torch.empty(clips, *self._shape[1:], pin_memory=True)
        try:
            whole = self._free.pop()
        except IndexError:
            whole = Region(self._shape, self._dtype) if self._shared else np.empty(self._shape, self._dtype)
        lent = (whole.array if isinstance(whole, Region) else whole)[:clips]
        tensor = torch.from_numpy(lent)
        if isinstance(whole, Region):
            self._lent[tensor.data_ptr()] = whole
        weakref.finalize(lent, self._back, tensor.data_ptr(), whole).atexit = False
        return tensor

    def _back(self, address: int, whole: Region | NDArray[Any]) -> None:
        self._lent.pop(address, None)
        self._free.append(whole)

    def region_of(self, part: Tensor) -> Region:
        """The region that a part of a batch's memory lies in."""
        return self._lent[part.untyped_storage().data_ptr()]


def _rejoined(parts: list[Tensor]) -> Tensor:
    """Parts of one batch's memory as one tensor; without a copy where they follow each other."""
    first, ends = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != ends or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(parts)
        ends += part.numel() * part.element_size()
    size = (sum(len(part) for part in parts), *first.shape[1:])
    return first.as_strided(size, first.stride())


@dataclass(frozen=True)
class Decoded:
    """A video's frames in host memory: planes (F, 3H/2, W) uint8, of each frame Y above U above V, as FFmpeg packs them."""

    planes: NDArray[np.uint8]
    format: av.VideoFormat
    colorspace: int
    color_range: int

    @classmethod
    def of(cls, video: bytes | Excerpt, numbers: list[int]) -> "Decoded":
        """Decode the frames of these ascending numbers; raises DecodeError where they cannot be kept as such."""
        first, planes = None, np.empty(0, np.uint8)
        place_of = {number: place for place, number in enumerate(numbers)}
        for number, frame in decode_frames(video, numbers):
            if first is None:
                first = frame
                if frame.format.name not in _FORMATS or frame.width % 2 or frame.height % 2:
                    raise DecodeError(
                        f"frames are {frame.format.name}, {frame.width}×{frame.height}, not even 4:2:0"
                    )
                planes = np.empty((len(numbers), frame.height * 3 // 2, frame.width), np.uint8)
            planes[place_of[number]] = frame.to_ndarray()
        if first is None:
            raise DecodeError("no frames")
        return cls(planes, first.format, int(first.colorspace), int(first.color_range))

    @property
    def width(self) -> int:
        return int(self.planes.shape[2])

    @property
    def height(self) -> int:
        return int(self.planes.shape[1] * 2 // 3)

    @property
    def full_range(self) -> bool:
        return self.format.name == "yuvj420p" or self.color_range == ColorRange.JPEG

    def crop(self, params: ViewParams, size: int, modality: str) -> NDArray[np.uint8]:
        """What decode.decode_views gives of the file, pixel for pixel."""
        return crop_views(self._frames, params, size, modality)

    def _frames(self, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(self.planes[number], self.format.name)
            frame.colorspace, frame.color_range = self.colorspace, self.color_range
            yield number, frame


@dataclass(frozen=True)
class Frames:
    """Frames on a device: luma (F, H, W, 1), chroma (F, H/2, W/2, 2) uint8.

    to_rgb: (3, 4), see colour.rgb_from_yuv. stream: on which they are made; None where they are there.
    """

    luma: Tensor
    chroma: Tensor
    to_rgb: NDArray[np.float32]
    stream: torch.cuda.Stream | None

    @classmethod
    def of(cls, video: Decoded, device: torch.device, stream: torch.cuda.Stream | None = None) -> "Frames":
        frames, height, width = len(video.planes), video.height, video.width
        planes = torch.from_numpy(video.planes)
        luma = planes[:, :height, :, None].contiguous()
        chroma = (
            planes[:, height:].reshape(frames, 2, height // 2, width // 2).permute(0, 2, 3, 1).contiguous()
        )
        with torch.cuda.stream(stream):
            luma, chroma = luma.to(device), chroma.to(device)
        return cls(luma, chroma, to_rgb(video.full_range, video.colorspace), stream)

    def take(self, numbers: NDArray[np.integer]) -> "Frames":
        """A copy of the frames at these places."""
        with torch.cuda.stream(self.stream):
            index = torch.from_numpy(numbers.astype(np.int64))
            if self.luma.is_cuda:  # from memory that is not pinned, the host would wait for the copy
                index = index.pin_memory().to(self.luma.device, non_blocking=True)
            planes = self.luma.index_select(0, index), self.chroma.index_select(0, index)
        return Frames(*planes, self.to_rgb, self.stream)


def to_rgb(full: bool, colorspace: int) -> NDArray[np.float32]:
    """Frames.to_rgb of a video of full range or limited. colorspace: FFmpeg's number."""
    weights = colour.LUMA_709 if colorspace == Colorspace.ITU709 else colour.LUMA
    return colour.rgb_from_yuv(full=full, luma=weights)


class Cache:
    """Decoded videos of a fixed part of a run's rows, kept from the first time one is looked at.

    rows: (N,) of the data set. component: mp4 or flow.mp4. gib: most memory that the videos may take, in this process.
    where: in the computer's memory, or in that of the GPU of this number; without one, for tests, the computer's plays
    its part. Threads may share it.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: NDArray[np.int64],
        component: str,
        where: Where,
        gib: float,
        gpu: int | None = None,
    ) -> None:
        self.where = where
        on_gpu = where == "gpu" and gpu is not None
        self._device = torch.device(f"cuda:{gpu}" if on_gpu else "cpu")
        _check_room(gib, self._device)
        self.rows = np.unique(rows)
        frames, width, height = (
            dataset.column(name)[self.rows].astype(np.int64) for name in ("num_frames", "width", "height")
        )
        self._shapes = np.stack([frames, height * (2 if component == "flow.mp4" else 1), width], axis=1)
        self.sizes = self._shapes.prod(1) * 3 // 2
        self.chosen = chosen(self.sizes, int(gib * _GIB))
        self._kept: dict[int, Decoded | Frames | None] = {}
        self._stream = torch.cuda.Stream(self._device) if on_gpu else None

    def get(self, row: int, read: Callable[[], bytes]) -> Decoded | Frames | None:
        """The video of a row, whose bytes `read` reads; None if it is not cached or could not be decoded."""
        place = int(np.searchsorted(self.rows, row))
        if place == len(self.rows) or self.rows[place] != row or not self.chosen[place]:
            return None
        if row not in self._kept:
            self._kept[row] = self._decoded(place, read())
        return self._kept[row]

    def _decoded(self, place: int, data: bytes) -> Decoded | Frames | None:
        frames, height, width = self._shapes[place].tolist()
        try:
            video = Decoded.of(data, list(range(frames)))
        except DecodeError:  # perhaps in a frame that no clip shows: who decodes the file will see
            return None
        if (video.height, video.width) != (height, width):
            return None
        return video if self.where == "host" else Frames.of(video, self._device, self._stream)

    def describe(self) -> str:
        """How much of the data set fits, in one line."""
        count, total = int(self.chosen.sum()), len(self.chosen)
        sizes, memory = self.sizes[self.chosen].sum() / _GIB, "GPU" if self.where == "gpu" else "host"
        line = f"--cache {self.where}: {count} of {total} videos are kept decoded, {sizes:.3g} GiB of {memory} memory a process"
        if count == total:
            return line
        return f"{line}; all of them take --cache-gib {np.ceil(self.sizes.sum() / _GIB * 10) / 10:g}"


def chosen(sizes_N: NDArray[np.int64], limit: int) -> NDArray[np.bool_]:
    """Which videos of these sizes are kept: the smallest, the first of equals, while they fit together."""
    order = np.argsort(sizes_N, kind="stable")
    kept = np.zeros(len(sizes_N), dtype=bool)
    kept[order[np.cumsum(sizes_N[order]) <= limit]] = True
    return kept


def _check_room(gib: float, device: torch.device) -> None:
    if not 0 < gib < float("inf"):
        raise InputError(f"--cache-gib {gib:g}: must be above 0")
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if gib * _GIB > there:
        raise InputError(
            f"--cache-gib {gib:g}: the {'GPU' if device.type == 'cuda' else 'machine'} has {there / _GIB:.3g} GiB in all; "
            "leave room for the model and for what is decoded ahead"
        )


class CachedBackend(Combined):
    """A backend with a cache before it.

    memory: the backend that renders what the cache keeps, a CpuDecodeBackend or gpu.MemoryBackend; perhaps `inner`.
    """

    def __init__(self, inner: Backend, memory: Backend, cache: Cache) -> None:
        super().__init__([inner] if memory is inner else [inner, memory])
        self.cache = cache

    def prepare(self, video: Video, sample: Sample, out: Any) -> tuple[int, Any]:
        kept: Any = self.cache.get(video.row, video.read)
        if kept is None:
            return 0, self.members[0].prepare(video, sample, out)
        memory = self.members[-1]
        if isinstance(memory, CpuDecodeBackend):
            pixels = kept.crop(sample.params, self.spec.size, self.spec.modality)
            kept = memory.accept(pixels, sample.params, out)
        else:
            kept = kept.take(np.unique(sample.params.frames))
        return len(self.members) - 1, kept

    def describe(self) -> str:
        return self.cache.describe()
