"""tools/render_demo.py, as typed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards import Dataset
from shards.demo import render

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/render_demo.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_other_videos_than_the_demo_sets_by_the_same_program(tmp_path: Path) -> None:
    done = run(tmp_path / "more", "--clips-per-class", 2, 1, "--frames", 5, "--workers", 2)
    assert done.returncode == 0 and done.stdout.endswith("more: 18 videos, seed 1\n"), done.stderr
    more = Dataset(tmp_path / "more")
    assert more.name == "more" and len(more.select(split="train")) == 12
    assert np.bincount(more.column("label")).tolist() == [3] * 6
    for seed in (0, 1):
        same = Dataset(
            render(tmp_path / f"seed{seed}", clips_per_class=(2, 1), frames=5, seed=seed, workers=1)
        )
        assert [more.read(row) == same.read(row) for row in range(18)] == [seed == 1] * 18


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--clips-per-class", 0, 0], "--clips-per-class 0 0"),
        (["--clips-per-class", 1, -1], "--clips-per-class 1 -1"),
        (["--frames", 0], "--frames 0"),
        (["--seed", -1], "--seed -1"),
        (["--workers", 0], "--workers 0"),
    ],
)
def test_bad_flags_end_in_one_line(tmp_path: Path, flags: list[object], says: str) -> None:
    done = run(tmp_path / "out", *flags)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {says}"), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    done = run(tmp_path)
    assert done.returncode == 2 and "new or empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
