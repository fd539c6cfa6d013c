"""benchmarks/bench_shards.py writes figures that are what they say."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from independent import ENVIRONMENT, ROOT, render


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def test_bench_shards_makes_the_same_videos_with_ffmpeg(tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not on the PATH")
    for n in range(2):
        render(tmp_path / "clips" / f"{n}.avi", frames=10 + n)
    out = tmp_path / "shards.json"
    flags = ["--repeats", 1, "--workers", 1, "--json", out]
    done = run(ROOT / "benchmarks" / "bench_shards.py", tmp_path / "clips", *flags)
    assert done.returncode == 0, done.stderr
    encode = json.loads(out.read_text())["encode"]
    assert (encode["rows"], encode["frames"]) == (2, 21)
    times = encode["seconds"]
    assert 20 < encode["make_shards_peak_rss_mib"] < 1024
    assert encode["ffmpeg"]["frames_per_s"] == pytest.approx(21 / times["ffmpeg"][0])
    assert encode["make_shards_over_ffmpeg"] == pytest.approx(times["ffmpeg"][0] / times["make_shards"][0])


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    done = run(ROOT / "benchmarks" / "bench_shards.py", tmp_path / "nowhere")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "nowhere: no such" in done.stderr
