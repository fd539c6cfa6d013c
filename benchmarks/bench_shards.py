#!/usr/bin/env python3
"""How fast videos become shards, against FFmpeg's command line.

    benchmarks/bench_shards.py ucf101/ --json benchmarks/results/DATE-MACHINE-shards.json

tools/make_shards.py and `ffmpeg`, one process a video and one thread a process, make the same videos with the same
encoder settings; they take turns, `--repeats` times, and the medians are compared. (make_shards also counts frames,
hashes, and writes tars and the table.)
"""

import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from tqdm import tqdm

from benchmarks.report import origin
from shards import InputError, at_least, one_line
from shards.documents import write_json
from shards.layouts import find
from shards.video.encode import Encoding

ROOT = Path(__file__).parents[1]
BASE = Encoding()


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
    """Turns of each."""


def main(settings: Settings) -> None:
    at_least(settings, 1, "workers", "repeats")
    paths = [source.path for source in find(settings.src).sources]
    result = origin("benchmarks/bench_shards.py", sys.argv[1:])
    result["data"] = {"name": settings.src.resolve().name, "files": len(paths)}
    result["encode"] = against_ffmpeg(settings, paths)
    print(json.dumps(result, indent=1))
    if settings.json:
        write_json(settings.json, result)


def against_ffmpeg(settings: Settings, paths: list[Path]) -> dict[str, Any]:
    """Videos/s and frames/s of both, and their ratio."""
    if shutil.which("ffmpeg") is None:
        raise InputError("ffmpeg is not on the PATH: install it (apt-get install ffmpeg)")
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout.split("\n")[0]
    seconds: dict[str, list[float]] = {"make_shards": [], "ffmpeg": []}
    peak = 0.0
    for _ in tqdm(range(settings.repeats), desc="make_shards and ffmpeg", unit="turn"):
        with tempfile.TemporaryDirectory(prefix="bench-shards-") as name:
            folder = Path(name)
            seconds["make_shards"].append(timed(lambda: run_make_shards(settings, folder / "out")))  # noqa: B023
            peak = peak or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # before any ffmpeg
            made = json.loads((folder / "out" / "dataset.json").read_text())
            with ThreadPoolExecutor(settings.workers) as pool:
                targets = [folder / f"{n}.mp4" for n in range(len(paths))]
                seconds["ffmpeg"].append(timed(lambda: list(pool.map(run_ffmpeg, paths, targets))))  # noqa: B023
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "settings": BASE.settings(),
        "workers": settings.workers,
        "ffmpeg_version": version,
        **{name: made[name] for name in ("rows", "frames", "rejected")},
        "seconds": seconds,
        "make_shards_peak_rss_mib": peak,  # of its largest process
        **{
            name: {"videos_per_s": made["rows"] / median, "frames_per_s": made["frames"] / median}
            for name, median in medians.items()
        },
        "make_shards_over_ffmpeg": medians["ffmpeg"] / medians["make_shards"],
    }


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def run_make_shards(settings: Settings, out: Path) -> None:
    flags = [str(settings.src), "--out", str(out), "--workers", str(settings.workers)]
    command = [sys.executable, str(ROOT / "tools" / "make_shards.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{settings.src}: make_shards.py fails: {done.stderr.strip().splitlines()[-1]}")


def run_ffmpeg(source: Path, to: Path) -> None:
    """What Encoding() asks for, in the words of the command line."""
    step = f"if(lt(min(iw,ih),{BASE.multiple}),2,{BASE.multiple})"
    scale = f"trunc(min({BASE.short_side},min(iw,ih))/{step})*{step}/min(iw,ih)"
    size = f"w='round(iw*{scale}/2)*2':h='round(ih*{scale}/2)*2'"
    centre = f"w='trunc(iw/{step})*{step}':h='trunc(ih/{step})*{step}'"
    command = f"""
        ffmpeg -nostdin -v quiet -threads 1 -i {shlex.quote(str(source))} -map 0:v:0 -an
        -vf "scale={size}:flags=bicubic,crop={centre}" -filter_threads 1 -pix_fmt yuv420p -fps_mode passthrough
        -c:v libx264 -threads 1 -preset {BASE.preset} -tune {BASE.tune} -crf {BASE.quality}
        -bf {BASE.b_frames_in_a_row} -b_strategy 0 -b-pyramid none -g {BASE.gop}
        -keyint_min {BASE.gop} -sc_threshold 0 -flags +cgop -movflags +faststart -y {shlex.quote(str(to))}"""
    subprocess.run(shlex.split(command), check=False)  # broken files fail here too


if __name__ == "__main__":
    with one_line():
        main(tyro.cli(Settings, description=__doc__))
