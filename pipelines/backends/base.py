"""The seam between a loader and what decodes and augments for it: a backend is one class in one file.

A loader calls `prepare` for each video, from the threads of a pool, and `render` for each batch. Nobody else asks which
backend it is.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.sampler import Sample
from pipelines.trim import span
from pipelines.views import ViewSpec
from shards import Dataset
from shards.tar import Excerpt

# What CUDA, NVDEC and DALI say of a GPU in trouble. NVDEC's calls give a number, one of CUDA's errors.
_MEMORY = "out of memory|bad_alloc|can't allocate memory|MEMORY_ALLOCATION|MemoryAllocation|OUT_OF_MEMORY"
_OF_MEMORY = re.compile(_MEMORY, re.IGNORECASE)
_OF_THE_DEVICE = re.compile(
    rf"CUDA error:|{_MEMORY}|ILLEGAL_ADDRESS|IllegalAddress|LAUNCH_FAILED|LaunchFailure|LAUNCH_TIMEOUT|LaunchTimeout|ECC"
    r"|HARDWARE_STACK|NO_DEVICE|NoDevice|DEVICE_LOST|DEVICES_UNAVAILABLE|DevicesUnavailable|device-side assert"
    r"|NOT_INITIALIZED|DEINITIALIZED|returned error (2|3|46|100|101|201)\b",
)

Rendered = Callable[[], Tensor]
"""Waits for a batch's views (B, V, C, T, H, W), float32 in channels-last-3d strides, and returns them; to be called
once. B counts clips. On a GPU they are ready for what torch's current stream is given from then on. Raises RuntimeError
where the GPU is in trouble: a video is judged when it is prepared."""


@dataclass(frozen=True)
class BackendSettings:
    """Which backend makes the views, and with what.

    name: of BACKENDS. processes: that decode, where the CPU does; 0 leaves it to the loader's threads. threads: of
    the loader's pool, and of each of DALI's pipelines. pipelines: of DALI, that take turns, and so the batches that are
    under way on the GPU. cache: keep decoded videos in host or GPU memory, at most cache_gib GiB in this process.
    on_cpu_dali: DALI's CPU operators in place of the GPU's, for tests.
    """

    name: str = "cpu"
    threads: int = 2
    processes: int = 0
    pipelines: int = 2
    cache: Literal["host", "gpu"] | None = None
    cache_gib: float = 16.0
    on_cpu_dali: bool = False

    @property
    def gpu(self) -> int | None:
        """The GPU's number, to be asked in the main thread: others begin with the first GPU. None with on_cpu_dali."""
        return None if self.on_cpu_dali else torch.cuda.current_device()


class Video:
    """The encoded video of a row, read when it is asked for. Raises as Dataset.read does, DecodeError if it lacks a frame."""

    def __init__(self, dataset: Dataset, row: int, component: str) -> None:
        self.row = row
        self._dataset, self._component = dataset, component

    def read(self) -> bytes:
        """The whole file."""
        return self._dataset.read(self.row, self._component)

    def read_frames(self, numbers: NDArray[np.integer]) -> bytes | Excerpt:
        """What these frames are decoded from: the part of the file that holds them, if it can be read alone."""
        index = self._dataset.packet_index(self.row, self._component)
        if index is None:
            return self.read()
        first, last = span(index, np.unique(numbers))
        return self._dataset.read_packets(self.row, first, last, self._component)


class Backend(ABC):
    """Makes the views of a spec's clips.

    spec: how clips are looked at. max_samples: videos in a batch, at most. max_clips: clips of a video, at most.
    concurrent: batches that may be rendered at the same time.
    """

    concurrent = 1

    def __init__(self, spec: ViewSpec, max_samples: int, max_clips: int) -> None:
        self.spec, self.max_samples, self.max_clips = spec, max_samples, max_clips

    def buffer(self, samples: list[Sample]) -> list[Any]:
        """For each sample the memory that `prepare` writes its views to; None where a backend needs none."""
        return [None] * len(samples)

    @abstractmethod
    def prepare(self, video: Video, sample: Sample, out: Any) -> Any:
        """What `render` needs of one video: read it, trim or decode it. Called from many threads.

        Raises DecodeError or shards.DamagedError for a video that cannot be used.
        """

    @abstractmethod
    def render(self, samples: list[Sample], prepared: list[Any]) -> Rendered:
        """Begin to make the views of a batch, clip after clip; at most `concurrent` batches are under way."""

    def processes(self) -> list[int]:
        """Numbers of the other processes that work for this backend."""
        return []

    def describe(self) -> str:
        """A line for people about what the backend keeps; empty where it keeps nothing."""
        return ""

    def close(self) -> None:  # noqa: B027 (most have nothing to let go of)
        """Let go of threads and memory."""


class Combined(Backend):
    """Several backends in one. Each sample is made by one of `members`; all of them make the same views."""

    def __init__(self, members: list[Backend]) -> None:
        first = members[0]
        super().__init__(first.spec, first.max_samples, first.max_clips)
        self.members = members
        self.concurrent = min(member.concurrent for member in members)

    def buffer(self, samples: list[Sample]) -> list[Any]:
        """Memory of the first member that needs some."""
        for member in self.members:
            lent = member.buffer(samples)
            if lent[0] is not None:
                return lent
        return [None] * len(samples)

    @abstractmethod
    def prepare(self, video: Video, sample: Sample, out: Any) -> tuple[int, Any]:
        """The number of the member that renders the sample, and what it needs for that."""

    def render(self, samples: list[Sample], prepared: list[tuple[int, Any]]) -> Rendered:
        places_of = {number: self._places(prepared, number) for number in sorted({n for n, _ in prepared})}
        started = [
            self.members[number].render([samples[p] for p in places], [prepared[p][1] for p in places])
            for number, places in places_of.items()
        ]
        if len(started) == 1:
            return started[0]
        firsts = np.cumsum([0, *(sample.clips for sample in samples)])

        def views() -> Tensor:
            made = [rendered() for rendered in started]
            _, V, C, T, H, W = made[0].shape
            out = made[0].new_empty(firsts[-1], V, T, H, W, C).permute(0, 1, 5, 2, 3, 4)
            for part, places in zip(made, places_of.values(), strict=True):
                clips = part.split([samples[place].clips for place in places])
                for place, views in zip(places, clips, strict=True):
                    out[firsts[place] : firsts[place + 1]] = views
            return out

        return views

    def processes(self) -> list[int]:
        return [process for member in self.members for process in member.processes()]

    def close(self) -> None:
        for member in self.members:
            member.close()

    @staticmethod
    def _places(prepared: list[tuple[int, Any]], number: int) -> list[int]:
        """The samples that a member makes."""
        return [place for place, (one, _) in enumerate(prepared) if one == number]


def is_device_fault(error: Exception) -> bool:
    """Whether a GPU is in trouble, and not a video: then nothing is quarantined."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_OF_THE_DEVICE.search(str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the GPU or of the computer."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_OF_MEMORY.search(str(error)))
