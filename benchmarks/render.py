#!/usr/bin/env python3
"""The set `--data rendered`: videos of ten seconds, 336×256, 30 frames/s, as Kinetics' come out of make_shards.

benchmarks/render.py OUT [--b-frames 0] [--width 340] …
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from shards.atomic import made_once
from shards.build.pool import Reject, in_order
from shards.cache import cache_folder
from shards.demo.motion import EASY_CLASSES as CLASSES
from shards.demo.motion import FPS, draw_clip
from shards.table import publish
from shards.tar import Sample, write_shard
from shards.video.encode import Encoding, house_frame, write_mp4

VERSION = "rendered-v4"
VIDEOS, FRAMES, WIDTH, HEIGHT = 48, 300, 336, 256
GRAIN = 5.0  # deviation of the camera's noise, 8-bit levels: without it the videos would decode faster than real ones
ENCODING = Encoding()


def render(
    out: Path,
    videos: int = VIDEOS,
    frames: int = FRAMES,
    workers: int = 2,
    encoding: Encoding = ENCODING,
    width: int = WIDTH,
) -> Path:
    """Render the set into the new or empty folder `out`, and return it."""
    out.mkdir(parents=True, exist_ok=True)
    tasks = [(number, frames, encoding, width) for number in range(videos)]
    with closing(in_order(_video, tasks, workers)) as results:
        samples = list(tqdm(results, total=videos, desc="rendering ten-second videos, once", unit="video"))
    if crashed := [result.detail for result in samples if isinstance(result, Reject)]:
        raise RuntimeError(f"rendering failed: {crashed[0]}")
    shard = write_shard(out, "rendered-000000", [one for one in samples if isinstance(one, Sample)])
    assert shard is not None
    settings = {**encoding.settings(), "frames": frames, "grain": GRAIN}
    publish(out, CLASSES, [asdict(shard)], settings, name="rendered")
    return out


def ensure() -> Path:
    """The set in the cache folder, rendered there on first use: about two minutes of two cores."""
    return made_once(cache_folder() / VERSION, render_in_a_process)


def render_in_a_process(out: Path, *flags: str) -> None:
    """The pool's processes import the main module of the one that starts them: let it be this small one."""
    subprocess.run([sys.executable, __file__, str(out), *flags], check=True)


def _video(task: tuple[int, int, Encoding, int]) -> Sample:
    number, frames, encoding, width = task
    label = number % len(CLASSES)
    rng = np.random.default_rng([2026, number])
    clip_THWC = draw_clip(CLASSES[label], frames, rng)
    grain = rng.normal(0, GRAIN, (16, HEIGHT + 16, width + 16, 1)).astype(np.float32)
    scaled, coded = VideoReformatter(), VideoReformatter()

    def picture(n: int) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(clip_THWC[n], "rgb24")
        large = scaled.reformat(frame, width, HEIGHT, "rgb24", interpolation="BICUBIC").to_ndarray()
        top, left = rng.integers(0, 16, 2)
        noise = grain[n % 16, top : top + HEIGHT, left : left + width]
        noisy = np.clip(large + noise, 0, 255).astype(np.uint8)
        return house_frame(av.VideoFrame.from_ndarray(noisy, "rgb24"), width, HEIGHT, encoding.codec, coded)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        written = write_mp4((picture(n) for n in range(frames)), path, Fraction(FPS), encoding)
        data = path.read_bytes()
    facts = {
        "label_name": CLASSES[label],
        "source": f"{VERSION}/{number:03d}",
        "num_frames": written.num_frames,
        "fps": float(FPS),
        "width": written.width,
        "height": written.height,
    }
    return Sample(f"{CLASSES[label]}-{number:03d}", data, facts, label)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--b-frames", type=int)
    parser.add_argument("--codec", default=ENCODING.codec)
    for name, default in (("videos", VIDEOS), ("frames", FRAMES), ("workers", 2), ("width", WIDTH)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    chosen = replace(ENCODING, b_frames=flags.b_frames, codec=flags.codec)
    render(flags.out, flags.videos, flags.frames, flags.workers, chosen, flags.width)
