"""Decoders on the samples' packets: bare ones, the ceiling of a loader, and the peer SPDL, which also crops and resizes.

Bare, with nothing made of their frames: libavcodec on the CPU; on NVDEC DALI's decoder and SPDL's.

SPDL is Meta's. Per clip: demux the packets of a window of time, decode them, and let one filter graph crop and scale each
box, uint8, in a pool of threads. No colour arithmetic, no float: compare it with our decode-and-crop. Two variants:
- `spdl-window`, as SPDL's documentation does it: one window from the first wanted frame to the last, every frame of it
  is cropped and scaled, and the wanted ones are picked from the array.
- `spdl`, tuned by us: a window for each stretch of wanted frames, and a `select` filter that drops the other frames
  before they are scaled.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.loader.parts import CACHED, Options, under_way
from benchmarks.loader.rounds import Figures, Part, Source, check_installed, rate
from pipelines.decode import Box, boxes_of, open_decoder, packets_of
from pipelines.sampler import Sample
from pipelines.sampling import ViewParams
from pipelines.trim import runs, trim
from shards.video.mp4 import PacketIndex, read_index

_PIXELS = {"rgb": ("rgb24", 3), "difference": ("gray", 1), "flow": ("gray", 1)}
Runs = list[list[av.Packet | None]]


def demuxed(video: bytes, numbers: NDArray[Any]) -> tuple[PacketIndex, Runs]:
    """The packets to decode for some frames of a video, taken out of the file: run after run, None after each."""
    index = read_index(video)
    return index, [list(packets_of(index, video, run)) for run in runs(index, video, numbers)]


def decode(video: tuple[PacketIndex, Runs]) -> int:
    """Decode what `demuxed` gives. Returns how many frames came out."""
    index, parts = video
    frames = 0
    for run in parts:
        decoder = open_decoder(index)
        frames += sum(len(decoder.decode(packet)) for packet in run)
    return frames


def libavcodec(source: Source, threads: int, batches: int) -> Part:
    """clips_per_s of decoding alone: no file is read, no index parsed, no frame converted."""

    def packets(sample: Sample) -> tuple[PacketIndex, Runs]:
        return demuxed(source.read(sample.row), np.unique(sample.params.frames))

    return source.in_pool(decode, threads, batches, packets)


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


def dali_nvdec(source: Source, options: Options, batches: int, threads: int = 8) -> Part:
    """DALI's decoder on the trimmed files, in pipelines of so many threads each.

    With options.on_cpu_dali the decoder is DALI's own, which reads VP9 and MJPEG.
    """
    turns = cycle([[encoded(source, one) for one in batch] for batch in source.batches(0, CACHED)])
    free = [_pipeline(source, options, threads) for _ in range(options.pipelines)]

    def start() -> Callable[[], None]:
        pipeline = free.pop(0)
        files, numbers = zip(*next(turns), strict=True)
        pipeline.feed_input("encoded", list(files))
        pipeline.feed_input("numbers", list(numbers))
        pipeline.schedule_run()

        def finish() -> None:
            pipeline.outputs()
            free.append(pipeline)

        return finish

    return lambda _: under_way(start, options.pipelines, source, options, batches, watched=True)


def _pipeline(source: Source, options: Options, threads: int) -> Any:
    from nvidia.dali import Pipeline, fn, types

    device = None if options.on_cpu_dali else torch.cuda.current_device()
    pipeline = Pipeline(source.batch_size, threads, device, prefetch_queue_depth=1)
    with pipeline:
        files = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
        decoder = "cpu" if options.on_cpu_dali else "mixed"
        pipeline.set_outputs(fn.decoders.video(files, device=decoder, frames=numbers))
    pipeline.build()
    return pipeline


def encoded(source: Source, sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A trimmed file, and the numbers of the frames to show, ascending, each once."""
    video = source.read(sample.row)
    file, numbers = trim(read_index(video), video, np.unique(sample.params.frames))
    return np.frombuffer(file, np.uint8), numbers


def spdl_nvdec(source: Source, threads: int, batches: int) -> Part:
    """SPDL's decoder on the trimmed files, one a thread, to RGB."""
    import spdl.io

    config = spdl.io.cuda_config(device_index=torch.cuda.current_device())

    def decode(file: Path) -> None:
        spdl.io.decode_packets_nvdec(spdl.io.demux_video(str(file)), device_config=config)

    def part(first: int) -> Figures:
        with (
            tempfile.TemporaryDirectory(prefix="bench-nvdec-") as folder,
            ThreadPoolExecutor(threads) as pool,
        ):
            files = []
            for number, sample in enumerate(source.samples(first, 1)):
                files.append(Path(folder) / f"{number}.mp4")
                files[-1].write_bytes(encoded(source, sample)[0])
            run = lambda: list(pool.map(decode, files))  # noqa: E731
            run()
            return rate(run, batches, len(files), torch.device("cuda"), watched=True)

    return part


def spdl(source: Source, workers: int, batches: int, tuned: bool = True) -> Part:
    """As parts.decode_alone, by either variant. Raises InputError where SPDL cannot be loaded."""
    check_spdl()
    gop = int(source.dataset.info["settings"].get("gop") or 16)
    fps = source.dataset.column("fps")

    def work(sample: Sample) -> NDArray[np.uint8]:
        spec, video, frame_rate = source.spec, source.read_unchecked(sample.row), float(fps[sample.row])
        return crops(video, sample.params, spec.size, frame_rate, gop, spec.modality, tuned)

    return source.in_pool(work, workers, batches)


def crops(
    video: bytes,
    params: ViewParams,
    size: int,
    fps: float,
    gop: int,
    modality: str = "rgb",
    tuned: bool = True,
) -> NDArray[np.uint8]:
    """As pipelines.decode.decode_views, from a video of a constant frame rate, for its V·T frames."""
    import spdl.io

    format_, channels = _PIXELS[modality]
    halves = 2 if modality == "flow" else 1  # of a flow's picture, u above v
    views = [(box, half) for box in boxes_of(params) for half in range(halves)]
    out = np.empty((params.frames.size, size, size, halves * channels), np.uint8)
    used = np.unique(params.frames)
    for numbers in stretches(used, gop) if tuned else [np.arange(used[0], used[-1] + 1)]:
        window = ((numbers[0] - 0.5) / fps, (numbers[-1] + 0.5) / fps)
        packets = spdl.io.demux_video(video, timestamp=window)
        scaled = [np.intersect1d(box.numbers, numbers) if tuned else numbers for box, _ in views]
        chains = [
            (_select(shown, fps) if tuned else "") + _crop(box, half, size, format_)
            for (box, half), shown in zip(views, scaled, strict=True)
        ]
        for (box, half), shown, frames in zip(views, scaled, _filtered(packets, chains), strict=True):
            if len(shown):
                pixels = np.asarray(spdl.io.to_numpy(spdl.io.convert_frames(frames)))
                here = np.isin(box.shown, shown)
                pixels_NHWC = pixels.reshape(len(shown), size, size, channels)
                of_half = slice(half, half + channels)
                out[box.rows[here], ..., of_half] = pixels_NHWC[np.searchsorted(shown, box.shown[here])]
    return out


def _filtered(packets: Any, chains: list[str]) -> list[Any]:
    """What each chain of filters makes of the packets, which are decoded once."""
    import spdl.io

    if len(chains) == 1:
        return [spdl.io.decode_packets(packets, filter_desc=chains[0])]
    outputs = "".join(f"[s{n}]" for n in range(len(chains)))
    ways = ";".join(f"[s{n}]{chain},buffersink@{n}" for n, chain in enumerate(chains))
    graph = spdl.io.FilterGraph(
        f"{spdl.io.get_buffer_desc(packets.codec)},split={len(chains)}{outputs};{ways}"
    )
    # without a filter, frames of a window of packets have no time stamps and are all dropped (SPDL 0.8)
    graph.add_frames(spdl.io.decode_packets(packets, filter_desc="null"))
    graph.flush()
    return [graph.get_frames(key=f"buffersink@{n}") for n in range(len(chains))]


def stretches(numbers: NDArray[Any], gop: int) -> list[NDArray[Any]]:
    """Ascending numbers, parted where a whole GOP lies between two: each part is demuxed on its own."""
    return np.split(numbers, np.flatnonzero(np.diff(numbers) > gop) + 1)


def _select(numbers: NDArray[np.int32], fps: float) -> str:
    equal = "+".join(f"eq(ld(0),{number})" for number in numbers.tolist()) or "0"
    return f"select='st(0,round(t*{fps}))*0+{equal}',"


def _crop(box: Box, half: int, size: int, format_: str) -> str:
    width, height = box.size
    return (
        f"crop={width}:{height}:{box.left}:{box.top}+{half}*in_h/2,"
        f"scale={size}:{size}:flags=bilinear,format={format_}" + (",hflip" if box.flip else "")
    )


def check_spdl() -> None:
    """Raise InputError that says what the peer lacks."""

    def load() -> None:
        import spdl.io

        spdl.io.get_video_filter_desc()
        spdl.io.FilterGraph  # noqa: B018 (loads FFmpeg's libraries)

    check_installed("spdl", "SPDL", "spdl", load)
