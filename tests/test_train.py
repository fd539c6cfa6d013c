"""train.py as a user types it, on a small rendered data set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import objectives
from shards import demo

ROOT = Path(__file__).parents[1]
TINY = [
    "--width",
    "0.03",
    "--batch-size",
    "2",
    "--log-every",
    "1",
    "--no-temporal-difference",
    "--threads",
    "2",
]


def command(*arguments: str, launcher: tuple[str, ...] = (sys.executable,), **environment: str):
    return subprocess.run(
        [*launcher, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return demo.render(tmp_path_factory.mktemp("data") / "set", clips_per_class=(2, 1), frames=80)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run of four steps, never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = command("train.py", "--data", str(data), "--output", str(out), "--steps", "4", *TINY)
    assert done.returncode == 0, done.stderr
    assert str(out / "encoder.safetensors") in done.stdout + done.stderr
    return out


def test_a_run_leaves_what_it_promises(whole):
    wanted = {"step", "loss", "top1", "data_ms", "step_ms", "clips_per_s", "wait_share"}
    assert [line["step"] for line in lines(whole)] == [1, 2, 3, 4]
    assert all(wanted <= line.keys() for line in lines(whole))
    assert (whole / "first_batch.png").read_bytes()[:4] == b"\x89PNG"
    assert any((whole / "tensorboard").iterdir())
    last = whole / "checkpoints" / "step-00000004"
    assert {"config.json", "model.safetensors", "optimizer.safetensors", "state.json", "rows.txt"} <= {
        path.name for path in last.iterdir()
    }
    objective = objectives.load(whole)
    encoder = load_file(whole / "encoder.safetensors")
    for name, value in objective.encoder.state_dict().items():
        assert torch.equal(value, encoder[name]), name
    assert json.loads((whole / "config.json").read_text())["config"]["width"] == 0.03
    for file in (whole / "encoder.safetensors", last / "model.safetensors"):
        with safe_open(file, "pt") as weights:
            facts = weights.metadata()
        assert (facts["method"], facts["step"]) == ("vdim", "4") and json.loads(facts["config"])[
            "width"
        ] == 0.03
        assert facts["input"].startswith("RGB, 0–1, minus") and facts["clip"].startswith(
            "views (B, V, C, T, H, W) float32"
        )


def test_bad_input_ends_in_one_line(data, tmp_path):
    """Through the command itself; the list of what can be wrong is in tests/training/test_bad_input.py."""
    out = ["--output", str(tmp_path / "run")]
    done = command("train.py", "--data", "/nonexistent", *out, *TINY, "--steps", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: /nonexistent") and len(done.stderr.splitlines()) == 1, done.stderr
