"""A video that crashes its worker, hangs it, or takes its memory costs one row: its own."""

import json
import subprocess
import sys
from pathlib import Path

import av
from independent import ENVIRONMENT, ROOT, TOOL, make_shards, render

from shards import Dataset
from shards.build.pool import Limits
from shards.video.read import REASONS

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


def test_a_video_beyond_the_memory_of_a_worker_is_named_so_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with av.open(str(tmp_path / "videos" / "huge.avi"), "w") as container:
        stream = container.add_stream("huffyuv", rate=25)
        stream.width, stream.height, stream.pix_fmt = 10000, 8000, "yuv422p"
        container.mux(stream.encode(av.VideoFrame(10000, 8000, "yuv422p")))  # 160 MB
        container.mux(stream.encode(None))
    render(tmp_path / "videos" / "fine.avi", frames=4)
    settings = ("--workers", 1, "--memory", 0.3, "--codec", "mjpeg")
    result = make_shards(tmp_path / "videos", "--out", tmp_path / "out", *settings)
    assert result.returncode == 0, result.stderr
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "out_of_memory" and "1 out_of_memory" in result.stdout
    assert list(Dataset(tmp_path / "out").column("source")) == ["fine.avi"]


def test_memory_is_bounded_unless_asked_otherwise() -> None:
    assert Limits().memory == 1.0
