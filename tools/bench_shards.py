#!/usr/bin/env python3
"""How fast videos become shards, against FFmpeg's command line; and what each setting costs in bytes and decoding.

    tools/bench_shards.py ucf101/ --json benchmarks/DATE-MACHINE-shards.json                 both parts
    tools/bench_shards.py ucf101/ --workers 8 --no-settings                                  only make_shards against ffmpeg

encode: tools/make_shards.py and `ffmpeg`, one process a video and one thread a process, make the same videos with the
same encoder settings; they take turns, `--repeats` times, and the medians are compared. (make_shards also counts
frames, hashes, and writes tars and the table.) settings: each is tried on the first `--videos` videos in one
process: bytes, seconds to encode, frames/s decoded in a row, and milliseconds for 16 frames at a random place, which is
what the GOP decides. Compare the figures of one file with each other.
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import tyro
from machine import describe
from tqdm import tqdm

from shards import InputError
from shards.encode import Encoding
from shards.layouts import find
from shards.transcode import Clip, Rejected, transcode

TOOLS = Path(__file__).parent
BASE = Encoding()
SETTINGS = [
    *(replace(BASE, gop=gop) for gop in (4, 8, 16, 32, 250)),
    *(replace(BASE, short_side=side) for side in (128, 160)),
    *(replace(BASE, fps=fps) for fps in (30.0, 10.0)),
    *(replace(BASE, codec=codec) for codec in ("hevc", "vp9", "mjpeg")),
]
CLIP = 16  # frames of the random-access measurement


@dataclass(frozen=True)
class Settings:
    """What is timed."""

    src: tyro.conf.Positional[Path]
    """Folder of videos, as tools/make_shards.py takes it."""
    json: Path | None = None
    """Write the result here as well."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Videos encoded at the same time, by either."""
    repeats: int = 3
    """Turns of each in the first part."""
    videos: int = 20
    """Videos of the second part."""
    encode: bool = True
    """Time make_shards against ffmpeg (which must be on the PATH)."""
    settings: bool = True
    """Try the settings worth choosing."""


def main(settings: Settings) -> None:
    for name in ("workers", "repeats", "videos"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name} {getattr(settings, name)}: must be at least 1")
    paths = [source.path for source in find(settings.src).sources]
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["tools/bench_shards.py", *sys.argv[1:]]),
        "machine": describe("av", "numpy", "pyarrow"),
        "data": {"name": settings.src.resolve().name, "files": len(paths)},
    }
    if settings.encode:
        result["encode"] = against_ffmpeg(settings, paths)
    if settings.settings:
        result["settings"] = list(tried(paths[: settings.videos]))
    text = json.dumps(result, indent=1)
    print(text)
    if settings.json:
        settings.json.write_text(text + "\n")


def against_ffmpeg(settings: Settings, paths: list[Path]) -> dict[str, Any]:
    """Videos/s and frames/s of both, and their ratio."""
    if shutil.which("ffmpeg") is None:
        raise InputError(
            "ffmpeg is not on the PATH: install it (apt-get install ffmpeg), or give --no-encode"
        )
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout.split("\n")[0]
    seconds: dict[str, list[float]] = {"make_shards": [], "ffmpeg": []}
    info: dict[str, Any] = {}
    for _ in tqdm(range(settings.repeats), desc="make_shards and ffmpeg", unit="turn"):
        with tempfile.TemporaryDirectory(prefix="bench-shards-") as folder:
            seconds["make_shards"].append(timed_shards(settings, Path(folder) / "out"))
            info = json.loads((Path(folder) / "out" / "dataset.json").read_text())
        with tempfile.TemporaryDirectory(prefix="bench-shards-") as folder:
            seconds["ffmpeg"].append(timed_ffmpeg(settings.workers, paths, Path(folder)))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "settings": asdict(BASE) | {"crf": BASE.quality},
        "workers": settings.workers,
        "ffmpeg_version": version,
        "rows": info["rows"],
        "frames": info["frames"],
        "rejected": info["rejected"],
        "seconds": seconds,
        **{
            name: {"videos_per_s": info["rows"] / median, "frames_per_s": info["frames"] / median}
            for name, median in medians.items()
        },
        "make_shards_over_ffmpeg": medians["ffmpeg"] / medians["make_shards"],
    }


def timed_shards(settings: Settings, out: Path) -> float:
    command = [sys.executable, str(TOOLS / "make_shards.py"), str(settings.src), "--out", str(out)]
    began = time.perf_counter()
    done = subprocess.run([*command, "--workers", str(settings.workers)], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{settings.src}: make_shards.py fails: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - began


def timed_ffmpeg(workers: int, paths: list[Path], folder: Path) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one_ffmpeg, paths, [folder / f"{n}.mp4" for n in range(len(paths))]))
    return time.perf_counter() - began


def one_ffmpeg(source: Path, to: Path) -> None:
    """What Encoding() asks for, in the words of the command line."""
    side = BASE.short_side
    smaller = f"if(gt(min(iw,ih),{side}),{side}/min(iw,ih),1)"
    size = f"w='trunc(iw*{smaller}/2)*2':h='trunc(ih*{smaller}/2)*2'"
    command = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "quiet",
        "-threads",
        "1",
        "-i",
        str(source),
        "-map",
        "0:v:0",
        "-an",
    ]
    command += [
        "-vf",
        f"scale={size}:flags=bicubic",
        "-filter_threads",
        "1",
        "-pix_fmt",
        "yuv420p",
        "-fps_mode",
        "passthrough",
    ]
    command += [
        "-c:v",
        "libx264",
        "-threads",
        "1",
        "-preset",
        BASE.preset,
        "-crf",
        str(BASE.quality),
        "-bf",
        "0",
    ]
    command += ["-g", str(BASE.gop), "-keyint_min", str(BASE.gop), "-sc_threshold", "0", "-flags", "+cgop"]
    subprocess.run(
        [*command, "-movflags", "+faststart", "-y", str(to)], check=False
    )  # broken files fail here too


def tried(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """A row for each of SETTINGS."""
    for encoding in tqdm(SETTINGS, desc="settings", unit="setting"):
        clips: list[Clip] = []
        began = time.perf_counter()
        for path in paths:
            try:
                clips.append(transcode(path, encoding))
            except Rejected:
                continue
        seconds = time.perf_counter() - began
        if not clips:
            raise InputError(
                f"{paths[0]}: not one of the first {len(paths)} videos can be decoded; give others"
            )
        frames = sum(clip.num_frames for clip in clips)
        began = time.perf_counter()
        for clip in clips:
            decode(clip, range(clip.num_frames))
        decoding = time.perf_counter() - began
        random = np.random.default_rng(0)
        starts = [int(random.integers(0, max(1, clip.num_frames - CLIP))) for clip in clips]
        began = time.perf_counter()
        for clip, start in zip(clips, starts, strict=True):
            decode(clip, range(start, min(start + CLIP, clip.num_frames)))
        yield {
            **asdict(encoding),
            "crf": encoding.quality,
            "videos": len(clips),
            "frames": frames,
            "bytes_per_video": sum(len(clip.data) for clip in clips) // len(clips),
            "kbit_per_frame": sum(len(clip.data) for clip in clips) * 8e-3 / frames,
            "encode_frames_per_s": frames / seconds,
            "decode_frames_per_s": frames / decoding,
            "random_clip_ms": 1000 * (time.perf_counter() - began) / len(clips),
        }


def decode(clip: Clip, numbers: range) -> None:
    """Decode frames `numbers`, and what leads to the first of them, on one thread."""
    with av.open(io.BytesIO(clip.data), "r") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        assert stream.time_base is not None
        container.seek(round(numbers.start / clip.fps / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time is not None and round(frame.time * clip.fps) >= numbers.stop - 1:
                break


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
