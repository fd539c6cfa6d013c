"""benchmarks/record_run.py, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import record_run

ROOT = Path(__file__).parents[2]


def test_a_run_becomes_a_file_and_a_picture(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = {"objective": "vdim", "config": {"width": 0.125}, "settings": {"data": "demo 0123"}}
    (run / "config.json").write_text(json.dumps(config))
    start = {"hardware": {"machine": "16 cores, a GPU"}, "versions": {"torch": "2.11.0"}, "data": "elsewhere"}
    (run / "run.json").write_text(json.dumps({"starts": [{}, start]}))
    lines = [{"step": step, "loss": 3.14159265 / step, "top1": 0.25, "chance": 0.125} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record_run.main(record_run.Arguments(run, "train.py --steps 2", tmp_path / "kept" / "vdim.v1"))
    kept = json.loads((tmp_path / "kept" / "vdim.v1.json").read_text())
    assert kept["config"] == config["config"] and kept["command"] == "train.py --steps 2"
    assert [line["loss"] for line in kept["metrics"]] == [3.142, 1.571]
    assert kept["machine"] == {name: start[name] for name in ("hardware", "versions")}
    assert Image.open(tmp_path / "kept" / "vdim.v1.png").size == (900, 300)


def test_what_is_no_run_is_said_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "record_run.py", tmp_path, "--command", "train.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--out", tmp_path / "kept"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr and not (tmp_path / "kept.json").exists()


def test_the_picture_names_every_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(record_run, "draw", lambda lines, title, path: titles.append(title))
    config = {"objective": "dpc", "config": {}, "settings": {"data": "k400 0123 / my oops 4567"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "run.json").write_text(json.dumps({"starts": [{}]}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    record_run.main(record_run.Arguments(tmp_path, "train.py", tmp_path / "kept"))
    assert titles == ["dpc on k400 and my oops"]
