"""cpu: FFmpeg decodes, crops and resizes; NumPy does the rest, straight into the batch's memory. No DALI."""

import weakref
from abc import abstractmethod
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.backends.base import Backend, Rendered, Video
from pipelines.decode import decode_views, keep_freed_memory
from pipelines.sampler import Sample
from pipelines.sampling import ViewParams
from pipelines.transforms.numpy import NumpyTransform
from pipelines.views import ViewSpec


class CpuDecodeBackend(Backend):
    """A backend whose videos FFmpeg decodes, in the pool's threads."""

    def __init__(self, spec: ViewSpec, max_samples: int, max_clips: int) -> None:
        super().__init__(spec, max_samples, max_clips)
        keep_freed_memory()

    def prepare(self, video: Video, sample: Sample, out: Any) -> Any:
        pixels = decode_views(video.read(), sample.params, self.spec.size, self.spec.modality)
        return self.accept(pixels, sample.params, out)

    @abstractmethod
    def accept(self, pixels: NDArray[np.uint8], params: ViewParams, out: Any) -> Any:
        """As `prepare`, of the pixels that decode.decode_views gives: (F, size, size, P)."""


class CpuBackend(CpuDecodeBackend):
    """Everything on the CPU. The views lie in the computer's memory; pinned where there is a GPU."""

    def __init__(self, spec: ViewSpec, max_samples: int, max_clips: int) -> None:
        super().__init__(spec, max_samples, max_clips)
        self._transform = NumpyTransform(spec)
        frame = (spec.views * spec.frames, spec.size**2, spec.channels)
        self._memory = _BatchMemory((max_samples * max_clips, *frame))

    def buffer(self, samples: list[Sample]) -> list[Tensor]:
        clips = [sample.clips for sample in samples]
        return list(self._memory.take(sum(clips)).split(clips))

    def accept(self, pixels: NDArray[np.uint8], params: ViewParams, out: Tensor) -> Tensor:
        self._transform(pixels, params, out.numpy().reshape(-1, *out.shape[2:]))
        return out

    def render(self, samples: list[Sample], prepared: list[Tensor]) -> Rendered:
        spec = self.spec
        batch = _rejoined(prepared)
        shape = (len(batch), spec.views, spec.frames, spec.size, spec.size, spec.channels)
        return lambda: batch.view(shape).permute(0, 1, 5, 2, 3, 4)


class _BatchMemory:
    """Batches of one shape. Memory that nobody holds any more is used again: fresh pages cost as much as colours."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._free: deque[NDArray[np.float32]] = deque(maxlen=8)

    def take(self, clips: int) -> Tensor:
        """(clips, …) float32, not initialised; for a GPU pinned, which torch itself uses again after the copy."""
        if torch.cuda.is_available():
            return torch.empty(clips, *self._shape[1:], pin_memory=True)
        try:
            whole = self._free.pop()
        except IndexError:
            whole = np.empty(self._shape, np.float32)
        lent = whole[:clips]
        weakref.finalize(lent, self._free.append, whole).atexit = False
        return torch.from_numpy(lent)


def _rejoined(parts: list[Tensor]) -> Tensor:
    """Parts of one batch's memory as one tensor; without a copy where they follow each other."""
    first, ends = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != ends or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(parts)
        ends += part.numel() * part.element_size()
    size = (sum(len(part) for part in parts), *first.shape[1:])
    return first.as_strided(size, first.stride())
