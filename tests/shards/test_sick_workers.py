"""A video that crashes its worker, hangs it, or takes its memory costs one row: its own."""

import json
import subprocess
import sys
from pathlib import Path

from independent import ENVIRONMENT, ROOT, TOOL, render

from shards import Dataset
from shards.reading import REASONS

# Python runs a sitecustomize module in every process: this one gives FFmpeg the bugs that it has now and then.
SICK_FFMPEG = """
import ctypes, os, time, av
healthy = av.open
def open(file, *arguments, **options):
    name = os.path.basename(str(getattr(file, "name", "")))
    if name == "segfault.avi":
        ctypes.string_at(0)
    if name == "killed.avi":
        os.kill(os.getpid(), 9)
    if name == "hang.avi":
        time.sleep(3600)
    if name == "memory.avi":
        bytearray(2**36)
    return healthy(file, *arguments, **options)
av.open = open
"""
EXPECTED = {
    "segfault.avi": "crashed",
    "killed.avi": "crashed",
    "hang.avi": "timeout",
    "memory.avi": "out_of_memory",
}


def test_each_costs_one_rejected_video(tmp_path: Path) -> None:
    for name in (*EXPECTED, "fine 1.avi", "fine 2.avi", "fine 3.avi"):
        render(tmp_path / "videos" / name, frames=4, size=(48, 32))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SICK_FFMPEG)
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    command = [sys.executable, str(TOOL), str(tmp_path / "videos"), "--out", str(tmp_path / "out")]
    options = ["--workers", "2", "--timeout", "10", "--codec", "mjpeg"]
    result = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    rejected = {one["source"]: one for one in map(json.loads, lines)}
    assert {name: one["reason"] for name, one in rejected.items()} == EXPECTED
    assert "SIGSEGV" in rejected["segfault.avi"]["detail"] and "memory" in rejected["killed.avi"]["detail"]
    assert all(one["reason"] in REASONS and one["reason"] in result.stdout for one in rejected.values())
    assert sorted(Dataset(tmp_path / "out").column("source")) == ["fine 1.avi", "fine 2.avi", "fine 3.avi"]
