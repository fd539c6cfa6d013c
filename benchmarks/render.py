#!/usr/bin/env python3
"""The set `--data rendered`: videos of ten seconds, 336×256, 30 frames/s, as Kinetics' come out of make_shards.

benchmarks/render.py OUT [--b-frames 0] [--width 340] …
"""

import math
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import tyro
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
from shards.atomic import made_once
from shards.build.pool import Reject, in_order
from shards.demo.motion import FPS, SPEED_SPREAD, Blob, Pose, draw_background, draw_blob, paint
from shards.storage import cache_folder
from shards.table import publish
from shards.tar import Sample, write_shard
from shards.video.encode import Codec, Encoding, house_frame, write_mp4

VERSION = "rendered-v4"
WIDTH, HEIGHT = 336, 256
MOTIONS = ("bounce", "circle", "pulse", "spin", "sway", "swing")
PERIOD = 36.0  # frames; a motion takes 1.2 s, ± 15 %
GRAIN = 5.0  # deviation of the camera's noise, 8-bit levels: without it the videos would decode faster than real ones


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    out: tyro.conf.Positional[Path]
    """Folder to write; new or empty."""
    videos: int = 48
    frames: int = 300
    width: int = WIDTH
    codec: Codec = Encoding.codec
    b_frames: int | None = Encoding.b_frames
    workers: int = 2
    """Processes that render."""


def render(arguments: Arguments) -> Path:
    """Render the set into `out`, and return it."""
    out, videos, frames = arguments.out, arguments.videos, arguments.frames
    encoding = replace(Encoding(), codec=arguments.codec, b_frames=arguments.b_frames)
    out.mkdir(parents=True, exist_ok=True)
    tasks = [(number, frames, encoding, arguments.width) for number in range(videos)]
    with closing(in_order(_video, tasks, arguments.workers)) as results:
        samples = list(tqdm(results, total=videos, desc="rendering ten-second videos, once", unit="video"))
    if crashed := [result.detail for result in samples if isinstance(result, Reject)]:
        raise RuntimeError(f"rendering failed: {crashed[0]}")
    shard = write_shard(out, "rendered-000000", [one for one in samples if isinstance(one, Sample)])
    assert shard is not None
    settings = {**encoding.settings(), "frames": frames, "grain": GRAIN}
    publish(out, MOTIONS, [shard], settings, name="rendered")
    return out


def ensure() -> Path:
    """The set in the cache folder, rendered there on first use: about two minutes of two cores."""
    return made_once(cache_folder() / VERSION, render_in_a_process)


def render_in_a_process(out: Path, *flags: str) -> None:
    """The pool's processes import the main module of the one that starts them: let it be this small one."""
    subprocess.run([sys.executable, __file__, str(out), *flags], check=True)


def _video(task: tuple[int, int, Encoding, int]) -> Sample:
    number, frames, encoding, width = task
    label = number % len(MOTIONS)
    rng = np.random.default_rng([2026, number])
    clip_THWC = draw_clip(MOTIONS[label], frames, rng)
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
        "label_name": MOTIONS[label],
        "source": f"{VERSION}/{number:03d}",
        "num_frames": written.num_frames,
        "fps": float(FPS),
        "width": written.width,
        "height": written.height,
    }
    return Sample(f"{MOTIONS[label]}-{number:03d}", data, facts, label)


def draw_clip(motion: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """One of MOTIONS by one to three blobs before a still background, uint8 RGB of shape (frames, 144, 176, 3)."""
    background = draw_background(rng, 0)
    blobs = [draw_blob(rng, background, reach=(14, 21)) for _ in range(rng.integers(1, 4))]
    step = 2 * math.pi / (PERIOD * rng.uniform(1 - SPEED_SPREAD, 1 + SPEED_SPREAD))
    clip = np.empty((frames, *background.shape), np.uint8)
    for t in range(frames):
        canvas = background.copy()
        for blob in blobs:
            paint(canvas, blob, *_pose(motion, blob, step * t))
        np.add(canvas, 0.5, out=canvas)
        clip[t] = canvas
    return clip


def _pose(motion: str, blob: Blob, angle: float) -> Pose:
    """The pose of a blob, `angle` radians into its motion's cycle."""
    (x, y), reach, tilt = blob.centre, blob.reach, blob.tilt
    angle = blob.turn * angle + blob.phase
    wave = math.sin(angle)
    # a pendulum hung above: the blob turns with its rod, unlike in sway
    swing, rod = 0.7 * wave, 1.5 * reach
    poses: dict[str, Pose] = {
        "sway": (x + reach * wave, y, tilt, 1.0),
        # |sin| of half the angle: one hop a period, sharp on the ground, slow at the top
        "bounce": (x, y + reach * (1 - 2 * abs(math.sin(angle / 2))), tilt, 1.0),
        "circle": (x + reach * math.cos(angle), y + reach * wave, tilt, 1.0),
        "pulse": (x, y, tilt, 1.0 + 0.35 * wave),
        "spin": (x, y, tilt + angle, 1.0),
        "swing": (x + rod * math.sin(swing), y + rod * (math.cos(swing) - 0.87), tilt - swing, 1.0),
    }
    return poses[motion]


if __name__ == "__main__":
    render(tyro.cli(Arguments, description=__doc__))
