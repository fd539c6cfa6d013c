"""Bare decoders on the samples' packets, nothing made of their frames: the ceiling of a loader, on a CPU and on NVDEC.

libavcodec on the CPU; on NVDEC DALI's decoder, SPDL's and PyNvVideoCodec's.
"""

import importlib.util
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.loader.parts import CACHED, WARM, Options
from benchmarks.loader.rounds import Figures, Part, Source, rate
from benchmarks.loader.spdl_peer import check_spdl
from pipelines.sampler import Sample
from pipelines.trim import runs, trim
from shards import InputError
from shards.video.mp4 import PacketIndex, read_index

_DECODERS = {"av1": "libdav1d"}  # by name, FFmpeg picks one that needs a GPU


class Packets:
    """The packets to decode for some frames of a video, taken out of the file: run after run."""

    def __init__(self, video: bytes, numbers: NDArray[Any]) -> None:
        self._index = index = read_index(video)
        self._runs = [
            [_packet(index, video, place) for place in run.tolist()] for run in runs(index, video, numbers)
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


def _packet(index: PacketIndex, video: bytes, place: int) -> av.Packet:
    first, size = int(index.offsets[place]), int(index.sizes[place])
    packet = av.Packet(size)
    packet.update(video[first : first + size])
    packet.pts = int(index.ranks[place])
    return packet


def libavcodec(source: Source, threads: int, batches: int) -> Part:
    """clips_per_s of decoding alone: no file is read, no index parsed, no frame converted."""

    def packets(sample: Sample) -> Packets:
        return Packets(source.read(sample.row), np.unique(sample.params.frames))

    return source.in_pool(Packets.decode, threads, batches, packets)


def decoded_per_used(source: Source, batches: int, *, as_file: bool) -> float:
    """Frames decoded per frame used: the packets handed to the decoder, divided by the distinct frames that are shown.

    as_file: packets of the trimmed file that NVDEC is given; else those that FFmpeg is given.
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


def dali_nvdec(source: Source, options: Options, batches: int, *, trimmed: bool = True) -> Part:
    """DALI's decoder in options.pipelines of options.nvdec_threads each. trimmed: files as the backend trims them, else whole.

    With options.on_cpu_dali the decoder is DALI's own, which reads VP9 and MJPEG.
    """
    turns = cycle([[encoded(source, one, trimmed) for one in batch] for batch in source.batches(0, CACHED)])
    free = deque(_pipeline(source, options) for _ in range(options.pipelines))
    begun: deque[Any] = deque()

    def finish() -> None:
        begun[0].outputs()
        free.append(begun.popleft())

    def run() -> None:
        while free:
            pipeline = free.popleft()
            files, numbers = zip(*next(turns), strict=True)
            pipeline.feed_input("encoded", list(files))
            pipeline.feed_input("numbers", list(numbers))
            pipeline.schedule_run()
            begun.append(pipeline)
        finish()

    def part(_: int) -> Figures:
        for _ in range(WARM):
            run()
        figures = rate(run, batches, source.batch_size, options.device, watched=True)
        while begun:
            finish()
        return figures

    return part


def _pipeline(source: Source, options: Options) -> Any:
    from nvidia.dali import Pipeline, fn, types

    device = None if options.on_cpu_dali else torch.cuda.current_device()
    pipeline = Pipeline(source.batch_size, options.nvdec_threads, device, prefetch_queue_depth=1)
    with pipeline:
        files = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
        decoder = "cpu" if options.on_cpu_dali else "mixed"
        pipeline.set_outputs(fn.decoders.video(files, device=decoder, frames=numbers))
    pipeline.build()
    return pipeline


def encoded(
    source: Source, sample: Sample, trimmed: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A file, and the numbers of the frames to show, ascending, each once."""
    video, numbers = source.read(sample.row), np.unique(sample.params.frames)
    if trimmed:
        video, numbers = trim(read_index(video), video, numbers)
    return np.frombuffer(video, np.uint8), numbers


def spdl_nvdec(source: Source, threads: int, batches: int) -> Part:
    """SPDL's decoder on the trimmed files, one a thread, to RGB. Raises InputError where SPDL cannot be loaded."""
    check_spdl()
    import spdl.io

    config = spdl.io.cuda_config(device_index=torch.cuda.current_device())

    def decode(file: Path) -> None:
        spdl.io.decode_packets_nvdec(spdl.io.demux_video(str(file)), device_config=config)

    return _of_files(decode, source, threads, batches)


def pynvvideocodec(source: Source, threads: int, batches: int) -> Part:
    """One SimpleDecoder a thread, given one trimmed file after the other, to RGB. Raises InputError where it is not installed."""
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        raise InputError("PyNvVideoCodec is not installed; pip install PyNvVideoCodec")
    import PyNvVideoCodec as nvc

    kept, gpu = threading.local(), torch.cuda.current_device()

    def decode(file: Path) -> None:
        if not hasattr(kept, "decoder"):
            kept.decoder = nvc.SimpleDecoder(
                str(file), gpu_id=gpu, use_device_memory=True, output_color_type=nvc.OutputColorType.RGB
            )
        else:
            kept.decoder.reconfigure_decoder(str(file))
        kept.decoder.get_batch_frames(len(kept.decoder))

    return _of_files(decode, source, threads, batches)


def _of_files(decode: Callable[[Path], None], source: Source, threads: int, batches: int) -> Part:
    def part(first: int) -> Figures:
        with (
            tempfile.TemporaryDirectory(prefix="bench-nvdec-") as folder,
            ThreadPoolExecutor(threads) as pool,
        ):
            files = []
            for number, sample in enumerate(source.samples(first, 1)):
                files.append(Path(folder) / f"{number}.mp4")
                files[-1].write_bytes(encoded(source, sample)[0])
            list(pool.map(decode, files))
            return rate(
                lambda: list(pool.map(decode, files)), batches, len(files), torch.device("cuda"), watched=True
            )

    return part
