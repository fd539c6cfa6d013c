"""Frames that lie in GPU memory (--cache gpu) → views: the gpu backend without its decoder."""

from typing import Any

import torch

from pipelines import colour
from pipelines.backends.base import Backend, Rendered, Video
from pipelines.backends.cached import Resident
from pipelines.backends.hybrid import UNDER_WAY, DaliGraph
from pipelines.sampler import Sample
from pipelines.transforms import dali
from pipelines.views import ViewSpec


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
        params = [self._graph.filled(sample.params, sample.clips) for sample in samples]
        numbers, inputs = dali.frame_inputs(self.spec, params, self.max_clips)
        with torch.cuda.stream(prepared[0].stream):
            planes = [video.take(wanted) for video, wanted in zip(prepared, numbers, strict=True)]
        return self._graph.render(
            samples,
            {
                **inputs,
                "luma": [luma for luma, _ in planes],
                "chroma": [chroma for _, chroma in planes],
                "to_rgb": [colour.rgb_from_yuv(full=video.full_range) for video in prepared],
            },
            prepared[0].stream,
        )
