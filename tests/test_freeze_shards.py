"""tools/freeze_shards.py: the same videos, lengths and splits, without motion."""

import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np

from shards import Dataset, demo

ROOT = Path(__file__).parents[1]


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "freeze_shards.py"), *map(str, argv)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def pixels(dataset: Dataset, row: int) -> np.ndarray:
    with av.open(io.BytesIO(dataset.read(row)), "r") as container:
        return np.stack([f.to_ndarray(format="gray") for f in container.decode(video=0)]).astype(float)


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
    again = run(moving.path, "--out", tmp_path / "still")
    assert again.returncode != 0 and "name a new or empty folder" in again.stderr
