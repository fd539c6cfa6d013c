"""The ceiling of decoding on a CPU: libavcodec alone on the packets that the samples need, nothing made of them."""

from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import torch

from pipelines.trim import runs, trim
from shards.video.mp4 import PacketIndex, read_index

from .rounds import Figures, Part, rate
from .source import Source

CPU = torch.device("cpu")
_DECODERS = {"av1": "libdav1d"}  # by name, FFmpeg picks one that needs a GPU


class Packets:
    """The packets to decode for some frames of a video, taken out of the file: run after run."""

    def __init__(self, video: bytes, numbers: list[int]) -> None:
        self._index = index = read_index(video)
        self._runs = [
            [_packet(index, video, place) for place in run.tolist()]
            for run in runs(index, video, np.asarray(numbers))
        ]

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def decode(self) -> int:
        """Returns how many frames came out."""
        frames = 0
        for run in self._runs:
            context = av.CodecContext.create(_DECODERS.get(self._index.codec, self._index.codec), "r")
            assert isinstance(context, av.VideoCodecContext)
            if self._index.extradata:
                context.extradata = self._index.extradata
            context.width, context.height = self._index.width, self._index.height
            context.thread_count = 1
            for packet in (*run, None):
                frames += len(context.decode(packet))
        return frames


def ceiling(source: Source, threads: int, batches: int) -> Part:
    """clips_per_s of decoding alone: no file is read, no index parsed, no frame converted."""

    def part(first: int) -> Figures:
        samples = source.samples(first, batches)
        packets = [Packets(source.read(one.row), np.unique(one.params.frames).tolist()) for one in samples]

        def run() -> None:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(Packets.decode, packets):
                    pass

        return rate(run, 1, len(samples), CPU)

    return part


def decoded_per_used(source: Source, batches: int, *, as_file: bool) -> float:
    """Frames decoded per frame used: the packets handed to the decoder, divided by the distinct frames that are shown.

    as_file: packets of the trimmed file that NVDEC is given; else those that FFmpeg is fed.
    """
    handed = used = 0
    for one in source.samples(0, batches):
        video, numbers = source.read(one.row), np.unique(one.params.frames)
        index = read_index(video)
        if as_file:
            handed += len(read_index(trim(index, video, numbers)[0]).sizes)
        else:
            handed += sum(map(len, runs(index, video, numbers)))
        used += len(numbers)
    return handed / used


def _packet(index: PacketIndex, video: bytes, place: int) -> av.Packet:
    first, size = int(index.offsets[place]), int(index.sizes[place])
    packet = av.Packet(size)
    packet.update(video[first : first + size])
    packet.pts = int(index.ranks[place])
    return packet
