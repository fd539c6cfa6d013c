"""tools/show_attention.py: a picture with a row a video and a column a pace, from a checkpoint's own conv5."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from objectives import checkpoint
from objectives.pace import Pace, PaceConfig
from shards import demo

ROOT = Path(__file__).parents[1]


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "show_attention.py"), *map(str, argv)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_the_command_draws_a_row_a_video_and_a_column_a_pace(tmp_path: Path) -> None:
    torch.manual_seed(0)
    objective = Pace(PaceConfig(width=1 / 16, frames=8, size=64, paces=(0.5, 1.0, 3.0)))
    checkpoint.save_config(tmp_path, objective, {})
    checkpoint.save_weights(tmp_path / "model.safetensors", objective)
    data = demo.render(tmp_path / "data", clips_per_class=(1, 1), frames=30, workers=1)
    done = run(
        tmp_path, "--data", data, "--split", "test", "--videos", 2, "--size", 40, "--out", tmp_path / "a"
    )
    assert done.returncode == 0, done.stderr
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (24 + 2 * 44 - 4, 3 * 44 - 4, 3)
    cells = [picture[24 + 44 * b : 64 + 44 * b, 44 * v : 44 * v + 40] for b in range(2) for v in range(3)]
    for cell in cells:  # each map runs from blue to red
        warmth = cell[..., 0].astype(int) - cell[..., 2]
        assert warmth.max() > 50 > -20 > warmth.min()
    page = (tmp_path / "a.html").read_text()
    assert page.count("<img") == 12 and all(f"p = {p}" in page for p in ("1/2", "1", "3"))
    assert page.count("taken for") == 6


def test_what_is_no_checkpoint_is_refused_in_a_line(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing")
    assert done.returncode != 0 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
