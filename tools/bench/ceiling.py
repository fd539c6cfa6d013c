"""The ceiling of decoding on a CPU: libavcodec alone on the frames that a draw needs, nothing made of them."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import av
import numpy as np
import torch

from pipelines.decode import SEEK_COST
from pipelines.sampling import ViewParams

from .rounds import Figures, Part, rate
from .source import Source

CPU = torch.device("cpu")


def ceiling(source: Source, threads: int, batches: int) -> Part:
    """clips_per_s of decoding alone; frames_decoded_per_frame_used, run-up from the key frames included."""
    gop = int(source.dataset.info["settings"].get("gop") or 1)

    def part(first: int) -> Figures:
        samples = source.samples(first, batches)
        videos = [source.dataset.read(row, source.component) for row, _ in samples]
        numbers = [np.unique(params.frames).tolist() for _, params in samples]
        decoded: list[int] = []

        def run() -> None:
            with ThreadPoolExecutor(threads) as pool:
                decoded.extend(pool.map(partial(frames_decoded, gop=gop), videos, numbers))

        figures = rate(run, 1, len(samples), CPU)
        return figures | {"frames_decoded_per_frame_used": sum(decoded) / sum(map(len, numbers))}

    return part


def frames_decoded(video: bytes, numbers: list[int], gop: int) -> int:
    """Decode what is needed for these ascending frame numbers; returns how many frames that took.

    Seeks are those of pipelines.decode. B-frames that are not asked for stay as they are.
    """
    decoded = 0
    with av.open(io.BytesIO(video), metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        stream.thread_count = 1
        assert stream.average_rate and stream.time_base
        ticks, origin = float(1 / (stream.average_rate * stream.time_base)), stream.start_time or 0
        for stretch in stretches(numbers, gop):
            asked = set(stretch)
            container.seek(origin + int(stretch[0] * ticks), stream=stream)
            for packet in container.demux(stream):
                number = -1 if packet.pts is None else round((packet.pts - origin) / ticks)
                context.skip_frame = "DEFAULT" if number in asked else "NONREF"
                decoded += len(context.decode(packet))
                asked.discard(number)
                if not asked:
                    decoded += len(context.decode(None))
                    break
    return decoded


def stretches(numbers: list[int], gop: int) -> Iterator[list[int]]:
    """The runs of ascending numbers between which a seek to a key frame, one every `gop`, saves frames."""
    first = 0
    for n in range(1, len(numbers) + 1):
        if n == len(numbers) or numbers[n] // gop * gop > numbers[n - 1] + SEEK_COST:
            yield numbers[first:n]
            first = n


def formula(batch_params: list[ViewParams], gop: int) -> float:
    """Frames decoded a frame used when each video is decoded whole from the key frame before the first one on."""
    decoded = used = 0
    for params in batch_params:
        numbers = np.unique(params.frames)
        decoded += int(numbers[-1] - numbers[0] // gop * gop + 1)
        used += len(numbers)
    return decoded / used
