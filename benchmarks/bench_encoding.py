#!/usr/bin/env python3
"""What each encoding costs on your videos: bytes, encoding time, and the speed of reading it back.

    benchmarks/bench_encoding.py ~/kinetics400 --videos 24 --json benchmarks/encoding.json

Varies one setting at a time from the default; prints a Markdown table. One thread throughout, timed in its CPU seconds,
the median of five rounds in which the settings take turns. `frames/s` decodes every frame; `clips/s` decodes 16
consecutive frames, or every third of 46, from a random place, as training does. `dB` is the PSNR of luma against the
frames given to the encoder.
"""

import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.machine import describe
from pipelines.decode import decode_frames
from shards import InputError, one_line
from shards.layouts import find
from shards.video.encode import Encoding
from shards.video.read import Rejected
from shards.video.transcode import Clip, transcode

BASE = Encoding()
VARIED: dict[str, tuple[Any, ...]] = {
    "gop": (4, 8, 16, 32, 250),
    "short_side": (128, 160, 256),
    "fps": (30, 10),
    "codec": ("h264", "hevc", "vp9", "mjpeg"),
    "tune": ("fastdecode", "none"),
    "b_frames": (0, 1, 3, 5),
    "crf": (22,),
}
CLIP, STRIDE = 16, 3  # frames
ROUNDS = 5


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    src: tyro.conf.Positional[Path]
    """Folder of videos, in any layout."""
    videos: int = 16
    """How many of them, evenly from the sorted names."""
    json: Path | None = None
    """File for the figures and a description of the machine."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    rows = _measure(_chosen(arguments))
    print(
        "| setting | kB/s of video | dB | encode frames/s | decode frames/s | random clips/s | every third frame |\n"
        "|---|---|---|---|---|---|---|"
    )
    for row in rows:
        rates = [row[name] for name in ("encode_frames_per_s", *READINGS)]
        print(
            f"| {row['setting']} | {row['kb_per_s']:.1f} | {row['luma_psnr_db']:.1f} | "
            + " | ".join(f"{rate:.0f}" for rate in rates)
            + " |"
        )
    if arguments.json is not None:
        report = {"command": " ".join(sys.argv), "machine": describe("av"), "base": str(BASE), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _chosen(arguments: Arguments) -> list[Path]:
    """The first readable ones of evenly spread videos."""
    if arguments.videos < 1:
        raise InputError(f"--videos {arguments.videos}: give 1 or more")
    paths = [source.path for source in find(arguments.src).sources]
    chosen = []
    for path in paths[:: max(1, len(paths) // arguments.videos)][: arguments.videos]:
        with suppress(Rejected):
            transcode(path, replace(BASE, preset="ultrafast", short_side=64))
            chosen.append(path)
    if not chosen:
        raise InputError(f"{arguments.src}: none of its first videos can be read; give another folder")
    return chosen


def _encodings() -> Iterator[tuple[str, Encoding]]:
    yield "default", BASE
    for name, values in VARIED.items():
        for value in values:
            if value != getattr(BASE, name):
                yield f"--{name.replace('_', '-')} {value}", replace(BASE, **{name: value})


def _measure(paths: list[Path]) -> list[dict[str, Any]]:
    rows, clips = [], []
    for setting, encoding in tqdm(list(_encodings()), desc="encoding", unit="setting"):
        start = time.process_time()
        clips.append([transcode(path, encoding) for path in paths])
        seconds = time.process_time() - start
        frames = sum(clip.num_frames for clip in clips[-1])
        duration = sum(clip.num_frames / clip.fps for clip in clips[-1])
        size = sum(len(clip.data) for clip in clips[-1])
        row = {
            "setting": setting,
            "kb_per_s": size / duration / 1000,
            "luma_psnr_db": _psnr(paths, encoding, clips[-1]),
            "encode_frames_per_s": frames / seconds,
        }
        rows.append(row | {name: [] for name in READINGS})
    for _ in tqdm(range(ROUNDS), desc="decoding", unit="round"):
        for row, own in zip(rows, clips, strict=True):
            for name, read in READINGS.items():
                row[name].append(_rate(read, own))
    for row in rows:
        for name in READINGS:
            row[name] = statistics.median(row[name])
    return rows


def _psnr(paths: list[Path], encoding: Encoding, clips: list[Clip]) -> float:
    """Of luma, dB, from the mean squared error over all frames; the frames given to the encoder are had by x264, lossless."""
    lossless = replace(encoding, codec="h264", crf=0, preset="ultrafast", tune="none")
    squares, pixels = 0.0, 0
    for path, clip in zip(paths, clips, strict=True):
        for given, kept in zip(_luma(transcode(path, lossless)), _luma(clip), strict=True):
            squares += float(np.square(given - kept).sum())
            pixels += given.size
    return 10 * math.log10(255**2 * pixels / squares)


def _luma(clip: Clip) -> Iterator[NDArray[np.float32]]:
    """Levels 0–255, of limited or full range."""
    with av.open(io.BytesIO(clip.data)) as container:
        for frame in container.decode(video=0):
            luma = frame.to_ndarray()[: frame.height].astype(np.float32)
            yield luma if frame.format.name == "yuvj420p" else (luma - 16) * (255 / 219)


def _rate(read: Callable[[list[Clip]], int], clips: list[Clip]) -> float:
    start = time.process_time()
    return read(clips) / (time.process_time() - start)


def _whole(clips: list[Clip]) -> int:
    frames = 0
    for clip in clips:
        with av.open(io.BytesIO(clip.data)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frames += sum(1 for _ in container.decode(video=0))
    return frames


def _random_clips(clips: list[Clip], stride: int = 1) -> int:
    random = np.random.default_rng(0)
    for clip in clips * 3:
        first = int(random.integers(max(1, clip.num_frames - (CLIP - 1) * stride)))
        numbers = list(range(first, min(first + CLIP * stride, clip.num_frames), stride))
        for _ in decode_frames(clip.data, numbers):
            pass
    return 3 * len(clips)


def _strided_clips(clips: list[Clip]) -> int:
    return _random_clips(clips, STRIDE)


READINGS: dict[str, Callable[[list[Clip]], int]] = {
    "decode_frames_per_s": _whole,
    "random_clips_per_s": _random_clips,
    "strided_clips_per_s": _strided_clips,
}

if __name__ == "__main__":
    with one_line():
        main()
