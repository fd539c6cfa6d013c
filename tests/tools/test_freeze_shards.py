"""tools/freeze_shards.py: the same videos, lengths and splits, without motion."""

import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from shards import Dataset, demo
from shards.video.encode import Encoding, house_frame, write_mp4

ROOT = Path(__file__).parents[2]


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "freeze_shards.py"), *map(str, argv)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def pixels(dataset: Dataset, row: int) -> np.ndarray:
    with av.open(io.BytesIO(dataset.read(row)), "r") as container:
        return np.stack([f.to_ndarray(format="gray") for f in container.decode(video=0)]).astype(float)


def written(data: bytes) -> tuple[str, list[int]]:
    """A video's codec, and the numbers of its key frames."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        return stream.codec_context.name, [n for n, packet in enumerate(packets) if packet.is_keyframe]


def test_every_video_stands_still_and_everything_else_stays(tmp_path: Path) -> None:
    moving = Dataset(demo.render(tmp_path / "moving", clips_per_class=(1, 1), frames=20, workers=1))
    done = run(moving.path, "--out", tmp_path / "still", "--per-shard", 5)
    assert done.returncode == 0, done.stderr
    still = Dataset(tmp_path / "still")
    assert len(still.info["tars"]) == 3 and still.classes == moving.classes
    for name in ("key", "label", "split", "num_frames", "fps", "width", "height"):
        assert still.column(name).tolist() == moving.column(name).tolist()
    for row in (0, 7):
        before, after = pixels(moving, row), pixels(still, row)
        assert before.shape == after.shape
        assert np.abs(before - before[10]).max() > 40
        assert np.abs(after - before[10]).mean() < 2 and np.abs(after - after[10]).mean() < 0.5
        assert written(still.read(row)) == written(moving.read(row)) == ("h264", [0, 16])
    again = run(moving.path, "--out", tmp_path / "still")
    assert again.returncode == 2 and "name a new or empty folder" in again.stderr


def test_what_an_encoder_leaves_stays_to_be_found(tmp_path: Path) -> None:
    """A still video's pictures change where a key frame is coded anew, and there above all: a shortcut, if one learns it."""
    moving = Dataset(demo.render(tmp_path / "moving", clips_per_class=(1, 0), frames=96, workers=2))
    done = run(moving.path, "--out", tmp_path / "still")
    assert done.returncode == 0, done.stderr
    still = Dataset(tmp_path / "still")
    change = np.mean([np.abs(np.diff(pixels(still, row), axis=0)).mean((1, 2)) for row in range(6)], axis=0)
    at_keys = np.arange(1, 96) % 16 == 0
    assert change[at_keys].mean() > 3 * change[~at_keys].mean()


def test_a_copied_video_keeps_its_own_key_frames(tmp_path: Path) -> None:
    (tmp_path / "videos" / "class").mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for gop in (7, 12):
        encoding = Encoding(codec="h264", gop=gop)
        frames = [av.VideoFrame.from_ndarray(np.roll(picture, n, axis=1), "rgb24") for n in range(30)]
        house = [house_frame(frame, 64, 64, "h264", VideoReformatter()) for frame in frames]
        write_mp4(house, tmp_path / "videos" / "class" / f"{gop}.mp4", Fraction(25), encoding)
    make = [
        sys.executable,
        "tools/make_shards.py",
        tmp_path / "videos",
        "--out",
        tmp_path / "copied",
        "--copy",
    ]
    made = subprocess.run(list(map(str, make)), cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    copied = Dataset(tmp_path / "copied")
    done = run(copied.path, "--out", tmp_path / "still")
    assert done.returncode == 0, done.stderr
    still = Dataset(tmp_path / "still")
    found = sorted(written(still.read(row)) for row in range(2))
    assert found == sorted(("h264", list(range(0, 30, gop))) for gop in (7, 12))
