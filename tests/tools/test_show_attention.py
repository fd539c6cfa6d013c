"""tools/show_attention.py: a picture with a row a video and a column a pace, from a checkpoint's own conv5."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from objectives import checkpoint
from objectives.pace import Pace, PaceConfig
from shards import Dataset, demo
from tools import show_attention

ROOT = Path(__file__).parents[2]


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


def test_an_earlier_stage_has_more_locations_and_the_pictures_are_sharper_than_the_networks(
    tmp_path: Path,
) -> None:
    """The same places of the same frames, at whatever size they are drawn."""
    torch.manual_seed(0)
    objective = Pace(PaceConfig(width=1 / 16, frames=8, size=32, paces=(1.0, 2.0)))
    views = torch.randn(1, 2, 3, 8, 32, 32)
    assert [show_attention.look(objective.eval(), views, stage)[0].shape[-1] for stage in (5, 4, 1)] == [
        2,
        4,
        16,
    ]
    dataset = Dataset(demo.render(tmp_path / "data", clips_per_class=(1, 1), frames=30, workers=1))
    spec = show_attention.column_spec(objective.config)
    arguments = show_attention.Arguments(tmp_path, dataset.path, videos=2, device="cpu", threads=1)
    small, large = (
        show_attention.first_batch(arguments, dataset, replace(spec, size=size)) for size in (36, 72)
    )
    assert small["key"] == large["key"]
    halved = torch.nn.functional.avg_pool2d(large["views"].flatten(0, 3), 2)
    error = (halved - small["views"].flatten(0, 3)).abs().mean()
    assert error < 0.1 * small["views"].std()


def test_what_is_no_checkpoint_is_refused_in_a_line(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
