"""train.py and tools/bench_loader.py as a user types them, on a small rendered data set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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


def test_a_resumed_run_has_the_losses_of_one_never_stopped(whole, data, tmp_path):
    out = ["train.py", "--data", str(data), "--output", str(tmp_path / "run"), *TINY]
    assert command(*out, "--steps", "2").returncode == 0
    done = command(*out, "--steps", "4", "--resume")
    assert done.returncode == 0, done.stderr
    assert [line["loss"] for line in lines(tmp_path / "run")] == [line["loss"] for line in lines(whole)]
    a, b = (load_file(run / "encoder.safetensors") for run in (tmp_path / "run", whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_train_together(data, tmp_path):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    out = tmp_path / "run"
    flags = ["--data", str(data), "--output", str(out), "--steps", "2", "--negatives", "gathered", *TINY]
    done = command("train.py", *flags, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(out)] == [1, 2]
    assert lines(out)[0]["chance"] == 0.25  # gathered: two processes of two clips
    assert json.loads((out / "config.json").read_text())["settings"]["global_batch"] == 4


def test_accumulation_clipping_lab_and_bf16(data, tmp_path):
    flags = [
        "--accumulate",
        "2",
        "--clip-norm",
        "1",
        "--colour",
        "lab",
        "--mixed-precision",
        "bf16",
        "--steps",
        "2",
    ]
    done = command("train.py", "--data", str(data), "--output", str(tmp_path / "run"), *TINY, *flags)
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())
    assert state["loader"]["samples"] == 8  # 2 steps × 2 batches × 2 clips


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--objective", "nope"], "--objective nope"),
        (["--data", "/nonexistent"], "/nonexistent"),
        (["--batch-size", "100"], "--batch-size"),
        (["--split", "val"], "val"),
        (["--steps", "0"], "--steps 0"),
        (["--device", "gpu"], "--device gpu"),
        (["--antecedents", "9"], "--antecedents"),
        (["--min-frames", "1000"], "--min-frames"),
    ],
)
def test_bad_input_ends_in_one_line(data, tmp_path, flags, says):
    if "gpu" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    base = ["train.py", "--output", str(tmp_path / "run"), "--data", str(data), *TINY, "--steps", "1"]
    done = command(*base, *flags)
    assert done.returncode != 0
    assert says in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_resume_refuses_another_run(whole, data):
    flags = ["--data", str(data), "--output", str(whole), "--steps", "5", *TINY]
    other = command("train.py", *flags, "--resume", "--lr", "0.1")
    assert other.returncode != 0 and "lr" in other.stderr and "Traceback" not in other.stderr
    again = command("train.py", *flags)
    assert again.returncode != 0 and "--resume" in again.stderr


def test_bench_loader(data, tmp_path):
    out = tmp_path / "bench.json"
    flags = [
        "--data",
        str(data),
        "--json",
        str(out),
        "--batches",
        "2",
        "--batch-size",
        "2",
        "--width",
        "0.03",
    ]
    done = command("tools/bench_loader.py", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["loader"]["clips_per_s"] > 0 and result["model"]["clips_per_s"] > 0
    assert result["together"]["clips_per_s"] > 0 and 0 <= result["together"]["wait_share"] <= 1
    assert 1 <= result["loader"]["frames_decoded_per_frame_used"] < 2
    assert result["machine"]["cores"] and result["memory"]["peak_rss_gib"] > 0
