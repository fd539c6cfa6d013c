"""MemDPC trains on the optical flow that make_shards puts beside the videos, and says where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards import Dataset
from tests.training.harness import losses, train

ROOT = Path(__file__).parents[2]
FLAGS = ("--objective", "memdpc", "--modality", "flow", "--width", 0.05, "--memory-size", 8, "--size", 34)
SHORT = ("--blocks", 3, "--frames", 2, "--pred-steps", 1, "--batch-size", 2, "--steps", 2, "--log-every", 1)


@pytest.fixture(scope="module")
def flow_data(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos with DIS flow."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "videos").mkdir()
    dataset = Dataset(data)
    for row in range(4):
        (folder / f"videos/{row}.mp4").write_bytes(dataset.read(row))
    dataset.close()
    command = [sys.executable, ROOT / "tools/make_shards.py", folder / "videos", "--out", folder / "set"]
    done = subprocess.run(
        [*map(str, command), "--flow", "dis"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return folder / "set"


def test_flow_trains(flow_data: Path, tmp_path: Path) -> None:
    done = train(*FLAGS, *SHORT, "--data", flow_data, "--output", tmp_path / "run")
    assert done.status == 0, done.said
    assert list(losses(tmp_path / "run")) == [1, 2]


def test_a_data_set_without_flow_is_one_line(data: Path, tmp_path: Path) -> None:
    done = train(*FLAGS, *SHORT, "--data", data, "--output", tmp_path / "run")
    assert done.status == 2 and "flow" in done.said and "Traceback" not in done.said, done.said
