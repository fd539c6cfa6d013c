"""A labelled data set in seconds: videos of one colour a class, of any length, with splits and failure times."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from shards.table import publish
from shards.tar import Sample, write_shard
from shards.video.encode import Encoding, write_mp4

COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220))
NAMES = ["red", "green", "blue"]
FPS = 10


@dataclass(frozen=True)
class Video:
    """bright_from: frame from which the picture is white (what an Oops failure looks like here)."""

    label: int
    split: str
    frames: int = 12
    failure_time: float | None = None
    bright_from: int | None = None
    damaged: bool = False


def write_set(
    folder: Path, videos: list[Video], *, splits: dict[str, list[str]] | None = None, fps: float = FPS
) -> Path:
    """Keys v000, v001, … splits: further split columns, such as split1, a value for each video."""
    folder.mkdir(parents=True)
    samples = []
    for number, video in enumerate(videos):
        data = render(folder / "clip.mp4", video, number)
        facts = {
            "label_name": NAMES[video.label],
            "split": video.split,
            "source": f"{NAMES[video.label]}/{number}.avi",
            "num_frames": video.frames,
            "fps": float(fps),
            "width": 48,
            "height": 36,
            **({"failure_time": video.failure_time} if video.failure_time is not None else {}),
            **{name: values[number] for name, values in (splits or {}).items()},
        }
        data = data[: len(data) // 2] if video.damaged else data
        samples.append(Sample(f"v{number:03d}", data, facts, video.label))
    (folder / "clip.mp4").unlink()
    shard = write_shard(folder, f"{folder.name}-000000", samples)
    assert shard
    publish(folder, NAMES, [shard], {}, name=folder.name)
    return folder


def render(path: Path, video: Video, seed: int) -> bytes:
    """48×36: the class's colour with noise of its own on it, so that no two videos are the same."""
    rng = np.random.default_rng(seed)

    def pictures():
        for number in range(video.frames):
            white = video.bright_from is not None and number >= video.bright_from
            colour = np.array((250, 250, 250) if white else COLOURS[video.label])
            pixels = colour + rng.normal(0, 12, (36, 48, 3))
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), "rgb24")
            yield frame.reformat(format="yuv420p")

    write_mp4(pictures(), path, Fraction(FPS), Encoding(short_side=36, preset="veryfast"))
    return path.read_bytes()
