"""gpu: NVDEC decodes, and DALI crops and augments what it decoded: pixels never leave the GPU.

NVDEC is given only what a clip needs: DALI's decoder never seeks, it decodes a file from its first packet on.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import colour
from pipelines.backends.base import Backend, Combined, Rendered, Video, is_device_fault
from pipelines.backends.cached import Resident
from pipelines.backends.hybrid import UNDER_WAY, DaliGraph
from pipelines.decode import check_frames
from pipelines.sampler import Sample
from pipelines.transforms import dali
from pipelines.trim import trim
from pipelines.views import ViewSpec
from shards.video.excerpt import indexed
from shards.video.mp4 import DecodeError


@dataclass(frozen=True)
class _Trimmed:
    """A file with what the clips need. numbers: of the frames to show, ascending, among those that the file shows."""

    file: NDArray[np.uint8]
    numbers: NDArray[np.int32]


class NvdecBackend(Backend):
    """Everything on the GPU. threads: of NVDEC, in each of the pipelines that take turns."""

    def __init__(
        self,
        spec: ViewSpec,
        max_samples: int,
        max_clips: int,
        *,
        threads: int,
        device: int | None,
        pipelines: int = UNDER_WAY,
    ) -> None:
        super().__init__(spec, max_samples, max_clips)
        self.concurrent = pipelines
        self._graph = DaliGraph(spec, "video", max_samples, max_clips, threads=threads, device=device)

    def prepare(self, video: Video, sample: Sample, out: Any) -> _Trimmed:
        wanted = np.unique(sample.params.frames)
        found = indexed(video.read_frames(wanted))
        file, numbers = trim(found.index, found.data, wanted)
        return _Trimmed(np.frombuffer(file, np.uint8), numbers)

    def render(self, samples: list[Sample], prepared: list[_Trimmed]) -> Rendered:
        graph = self._graph.fit(samples)
        params = [graph.filled(sample.params, sample.clips) for sample in samples]
        _, inputs = dali.frame_inputs(self.spec, params, graph.clips)
        return graph.render(
            samples,
            {
                **inputs,
                "encoded": [one.file for one in prepared],
                "numbers": [one.numbers for one in prepared],
            },
        )

    def refused(self, samples: list[Sample], prepared: list[_Trimmed], error: RuntimeError) -> dict[int, str]:
        """NVDEC fails a whole batch for one bad video and does not say which: FFmpeg is asked, then DALI one by one."""
        found = {place: reason for place, one in enumerate(prepared) if (reason := _damage(one))}
        if found:
            return found
        alone = {place: self._refusal(samples[place], one) for place, one in enumerate(prepared)}
        found = {place: reason for place, reason in alone.items() if reason}
        if len(found) in (0, len(prepared)):
            raise error
        return found

    def _refusal(self, sample: Sample, one: _Trimmed) -> str:
        """What DALI says of a video on its own; nothing where it decodes."""
        try:
            self.render([sample], [one])()
        except RuntimeError as error:
            if is_device_fault(error):
                raise
            return "DALI: " + " ".join(str(error).rpartition("encountered:")[2].split())
        return ""


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


def _damage(one: _Trimmed) -> str:
    """What FFmpeg says of a file; nothing where it decodes."""
    try:
        check_frames(one.file.tobytes(), one.numbers.tolist())
    except DecodeError as error:
        return str(error)
    return ""


class MemoryBackend(Backend):
    """Renders cached.Resident videos. threads: of DALI's pipelines."""

    concurrent = UNDER_WAY

    def __init__(
        self, spec: ViewSpec, max_samples: int, max_clips: int, *, threads: int, device: int | None
    ) -> None:
        super().__init__(spec, max_samples, max_clips)
        self._graph = DaliGraph(spec, "frames", max_samples, max_clips, threads=threads, device=device)

    def prepare(self, video: Video, sample: Sample, out: Any) -> Any:
        raise NotImplementedError("the cache before this backend keeps the video")

    def render(self, samples: list[Sample], prepared: list[Resident]) -> Rendered:
        graph = self._graph.fit(samples)
        params = [graph.filled(sample.params, sample.clips) for sample in samples]
        numbers, inputs = dali.frame_inputs(self.spec, params, graph.clips)
        with torch.cuda.stream(prepared[0].stream):
            index = torch.from_numpy(np.concatenate(numbers).astype(np.int64))
            if prepared[0].luma.is_cuda:  # from memory that is not pinned, the host would wait for the copy
                index = index.pin_memory().to(prepared[0].luma.device, non_blocking=True)
            parts = index.split([len(one) for one in numbers])
            planes = [video.take(part) for video, part in zip(prepared, parts, strict=True)]
        return graph.render(
            samples,
            {
                **inputs,
                "luma": [luma for luma, _ in planes],
                "chroma": [chroma for _, chroma in planes],
                "to_rgb": [colour.rgb_from_yuv(full=video.full_range) for video in prepared],
            },
            prepared[0].stream,
        )
