"""The demo set: rendered on first use, so that everything can be tried without a download."""

import os
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from tqdm import tqdm

from shards.atomic import made_once
from shards.build.pool import Reject, in_order
from shards.demo.motion import CLASSES, FPS, HEIGHT, WIDTH, draw_clip
from shards.storage import cache_folder
from shards.table import publish
from shards.tar import Sample, write_shard
from shards.video.encode import Encoding, house_frame, write_mp4

# a change of what is rendered needs another name, or old caches would pass for it
VERSION = "demo-v3"
ENCODING = Encoding(codec="h264", short_side=HEIGHT, gop=16, preset="veryfast", tune="none", b_frames=0)
PER_SHARD = 60
SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Clip:
    motion: str
    split: str
    number: int
    frames: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.split}-{self.motion}-{self.number:03d}"


def render(
    out: Path,
    *,
    name: str = "demo",
    clips_per_class: tuple[int, int] = (64, 16),
    frames: int = 144,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Render the demo set into the new or empty folder `out`, and return it. Draws a progress bar.

    clips_per_class: of the train and of the test split. Clips are `frames` long, 30 frames/s, 176x144, H.264;
    the content of each depends on `seed`, its class, split and number only.
    """
    out.mkdir(parents=True, exist_ok=True)
    clips = [
        _Clip(motion, split, number, frames, seed)
        for split, count in zip(SPLITS, clips_per_class, strict=True)
        for number in range(count)  # the classes take turns, so every shard has all of them
        for motion in CLASSES
    ]
    shards = []
    bar = tqdm(total=len(clips), desc=f"rendering {name}", unit="clip", dynamic_ncols=True)
    with closing(in_order(_render_clip, clips, workers or len(os.sched_getaffinity(0)))) as results, bar:
        for first in range(0, len(clips), PER_SHARD):
            samples = []
            for clip in clips[first : first + PER_SHARD]:
                result = next(results)
                if isinstance(result, Reject):
                    raise RuntimeError(f"demo set: rendering {clip.key} failed: {result.detail}")
                samples.append(result)
                bar.update()
            shards.append(write_shard(out, f"demo-{first // PER_SHARD:06d}", samples))
    settings = {**asdict(ENCODING), "clips_per_class": list(clips_per_class), "frames": frames, "seed": seed}
    publish(out, CLASSES, shards, settings, name=name)
    return out


def ensure(cache: Path | None = None) -> Path:
    """The demo set's folder, rendered first when it is not there yet. Safe from several processes at once.

    cache: parent folder; by default $SLIPSTREAM_CACHE, else ~/.cache/slipstream. Draws a progress bar on
    standard error while it renders.
    """
    return made_once((cache or cache_folder()) / VERSION, _render_in_a_process)


def _render_in_a_process(out: Path) -> None:
    # worker processes import the main module of the process that starts them; a training script's would
    # load torch in each, or, without a __main__ guard, train
    root = str(Path(__file__).parents[__name__.count(".") + 1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    code = f"import sys; from pathlib import Path; from {__name__} import render; render(Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(out)], check=True, env={**os.environ, "PYTHONPATH": paths}
    )


def _render_clip(clip: _Clip) -> Sample:
    label = CLASSES.index(clip.motion)
    # the lowest counter word is the generator's own; the other three name the clip
    clip_words = [label, SPLITS.index(clip.split), clip.number]
    rng = np.random.Generator(np.random.Philox(key=clip.seed, counter=[0, *clip_words]))
    pixels_THWC = draw_clip(clip.motion, clip.frames, rng)
    reformatter = VideoReformatter()
    pictures = (
        house_frame(av.VideoFrame.from_ndarray(picture, "rgb24"), WIDTH, HEIGHT, ENCODING.codec, reformatter)
        for picture in pixels_THWC
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        written = write_mp4(pictures, path, Fraction(FPS), ENCODING)
        data = path.read_bytes()
    facts = {
        "label_name": clip.motion,
        "split": clip.split,
        "source": f"{VERSION}/{clip.key}",
        "num_frames": written.num_frames,
        "fps": float(FPS),
        "width": written.width,
        "height": written.height,
    }
    return Sample(clip.key, data, facts, label)
