"""The peer SPDL (Meta's): our samples, as its own functions decode, crop and resize them, uint8, in a pool of threads.

Per clip: demux the packets of a window of time, decode them, and let one filter graph crop and scale each box.
No colour arithmetic, no float: compare it with our decode-and-crop. There are two variants:

- `spdl-window`, as SPDL's documentation does it: one window from the first wanted frame to the last, every frame of it
  is cropped and scaled, and the wanted ones are picked from the array.
- `spdl`, tuned by us: a window for each stretch of wanted frames, and a `select` filter that drops the other frames
  before they are scaled.
"""

import importlib.util
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.loader.rounds import Part, Source, UncheckedReads
from pipelines.sampler import Sample
from pipelines.sampling import ViewParams
from shards import InputError

_PIXELS = {"rgb": ("rgb24", 3), "difference": ("gray", 1), "flow": ("gray", 1)}


def spdl(source: Source, workers: int, batches: int, tuned: bool = True) -> Part:
    """As parts.decode_alone, by either variant. Raises InputError where SPDL cannot be loaded."""
    check_spdl()
    read = UncheckedReads(source)
    gop = int(source.dataset.info["settings"].get("gop") or 16)
    fps = source.dataset.column("fps")

    def work(sample: Sample) -> NDArray[np.uint8]:
        spec = source.spec
        return crops(
            read(sample.row), sample.params, spec.size, float(fps[sample.row]), gop, spec.modality, tuned
        )

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
    halves = 2 if modality == "flow" else 1
    boxes = _boxes(params, halves)
    out = np.empty((params.frames.size, size, size, halves * channels), np.uint8)
    used = np.unique(params.frames)
    for numbers in stretches(used, gop) if tuned else [list(range(used[0], used[-1] + 1))]:
        window = ((numbers[0] - 0.5) / fps, (numbers[-1] + 0.5) / fps)
        packets = spdl.io.demux_video(video, timestamp=window)
        scaled = [_at(box.shown, numbers) if tuned else np.array(numbers) for box in boxes]
        chains = [
            (_select(shown, fps) if tuned else "") + _crop(box, size, format_)
            for box, shown in zip(boxes, scaled, strict=True)
        ]
        for box, shown, frames in zip(boxes, scaled, _filtered(packets, chains), strict=True):
            if len(shown):
                pixels = np.asarray(spdl.io.to_numpy(spdl.io.convert_frames(frames)))
                here = np.isin(box.shown, shown)
                pixels_NHWC = pixels.reshape(len(shown), size, size, channels)
                of_half = slice(box.half, box.half + channels)
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


def stretches(numbers: NDArray[Any], gop: int) -> list[list[int]]:
    """Ascending numbers, parted where a whole GOP lies between two: each part is demuxed on its own."""
    ends = [n for n, (now, then) in enumerate(pairwise(numbers), 1) if then - now > gop]
    return [part.tolist() for part in np.split(numbers, ends)]


@dataclass(frozen=True)
class Box:
    """The views of a sample that have the same box. half: of a flow's picture, u above v. rows: places of their frames among
    the sample's V·T; shown: the frames' numbers."""

    left: int
    top: int
    width: int
    height: int
    flip: bool
    half: int
    rows: NDArray[np.int64]
    shown: NDArray[np.int32]


def _boxes(params: ViewParams, halves: int) -> list[Box]:
    views_of: dict[tuple[int, ...], list[int]] = {}
    for view, (box, flip) in enumerate(zip(params.boxes.tolist(), params.flips.tolist(), strict=True)):
        views_of.setdefault((*box, flip), []).append(view)
    rows = np.arange(params.frames.size).reshape(params.frames.shape)
    return [
        Box(*box, bool(flip), half, rows[views].ravel(), params.frames[views].ravel())
        for (*box, flip), views in views_of.items()
        for half in range(halves)
    ]


def _at(shown: NDArray[np.int32], numbers: list[int]) -> NDArray[np.int32]:
    shown = np.unique(shown)
    return shown[(shown >= numbers[0]) & (shown <= numbers[-1])]


def _select(numbers: NDArray[np.int32], fps: float) -> str:
    equal = "+".join(f"eq(ld(0),{number})" for number in numbers.tolist()) or "0"
    return f"select='st(0,round(t*{fps}))*0+{equal}',"


def _crop(box: Box, size: int, format_: str) -> str:
    return (
        f"crop={box.width}:{box.height}:{box.left}:{box.top}+{box.half}*in_h/2,"
        f"scale={size}:{size}:flags=bilinear,format={format_}" + (",hflip" if box.flip else "")
    )


def check_spdl() -> None:
    """Raise InputError that says what the peer lacks."""
    if importlib.util.find_spec("spdl") is None:
        raise InputError("--against spdl: SPDL is not installed; pip install -e '.[bench]'")
    try:
        import spdl.io

        spdl.io.get_video_filter_desc()
        spdl.io.FilterGraph  # noqa: B018 (loads FFmpeg's libraries)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--against spdl: SPDL cannot be loaded ({reason}); it needs FFmpeg's shared libraries from the "
            "system, such as Debian's ffmpeg"
        ) from error
