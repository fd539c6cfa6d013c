"""Two evaluations on one output folder: the second ends in one line, the first is untouched."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import evaluate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("protocol", ["linear", "fuse", "curve"])
def test_the_second_is_refused_and_the_first_ends_well(
    run: Path, data: Path, tmp_path: Path, monkeypatch, capfd, protocol: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    out = tmp_path / "out"
    common = ("--checkpoint", run, "--data", data, "--device", "cpu", "--seeds", 1, "--no-baselines")
    first = ("linear", *common, "--output", out, "--cache", tmp_path / "cache")
    child = subprocess.Popen([sys.executable, "evaluate.py", *map(str, first)], cwd=ROOT)
    try:
        lock, end = out / ".lock", time.monotonic() + 120
        while not (lock.is_file() and lock.stat().st_size):
            assert child.poll() is None and time.monotonic() < end
        os.kill(child.pid, signal.SIGSTOP)
        given = {
            "linear": first,
            "fuse": ("fuse", "--results", tmp_path, tmp_path, "--output", out),
            "curve": ("curve", *common, "--output", out),
        }[protocol]
        before = sorted(path.name for path in out.rglob("*"))
        assert evaluate.ended(evaluate.main, list(map(str, given))) == 2
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1 and f"--output {out}: process {child.pid} on " in said[0]
        assert sorted(path.name for path in out.rglob("*")) == before
    finally:
        os.kill(child.pid, signal.SIGCONT)
        status = child.wait(300)
    assert status == 0 and json.loads((out / "result.json").read_text())["evaluated"]["videos"] == 9
