"""cpu: FFmpeg decodes, crops and resizes; NumPy does the rest, straight into the batch's memory. No DALI."""

import weakref
from collections import deque
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.backends.base import Backend, BackendSettings, Rendered, Video
from pipelines.decode import keep_freed_memory
from pipelines.sampler import Sample
from pipelines.sampling import ViewParams
from pipelines.views import ViewSpec
from pipelines.workers import Maker, Region, Worker


class CpuDecodeBackend(Backend):
    """A backend whose videos FFmpeg decodes: in the pool's threads, or in as many processes as the settings say.

    What a clip becomes is written into memory of the batch, `shape` and `dtype` a clip. pixels: of decoded frames.
    """

    def __init__(
        self,
        spec: ViewSpec,
        max_samples: int,
        max_clips: int,
        settings: BackendSettings,
        *,
        shape: tuple[int, ...],
        dtype: Any,
        pixels: bool,
    ) -> None:
        super().__init__(spec, max_samples, max_clips, settings)
        processes = settings.processes
        keep_freed_memory()
        self._maker = Maker(spec, pixels=pixels)
        self._memory = _BatchMemory((max_samples * max_clips, *shape), dtype, shared=processes > 0)
        self._workers = [Worker(spec, pixels=pixels) for _ in range(processes)]
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

    def __init__(
        self,
        spec: ViewSpec,
        max_samples: int,
        max_clips: int,
        settings: BackendSettings = BackendSettings(),  # noqa: B008 (frozen)
    ) -> None:
        shape = (spec.views * spec.frames, spec.size**2, spec.channels)
        super().__init__(spec, max_samples, max_clips, settings, shape=shape, dtype=np.float32, pixels=False)

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
