"""Fails on a rendered miniature whose annotations were written in the real format, through make_shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
from evaluation.oops import classify, clip_begins, locate
from shards import Dataset
from tests.evaluation.rendered import FPS, Video, render

ROOT = Path(__file__).parents[2]


def test_clips_of_worked_cases() -> None:
    assert clip_begins(2.0).tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert clip_begins(0.1).tolist() == [0]
    # ends at the failure: still intentional; begins at it: holds it
    assert classify(np.array([0.0, 0.25, 1.0, 1.25]), 1.0).tolist() == [0, 1, 1, 2]
    assert locate(np.array([0.0, 0.25, 0.5]), np.array([0.1, 0.7, 0.2])) == 0.75


@pytest.fixture(scope="module")
def fails(tmp_path_factory) -> Path:
    """16 videos of 3 s that turn white at their failure; annotators: name → seconds, −1 where one saw none."""
    folder = tmp_path_factory.mktemp("oops")
    times: dict[str, list[float]] = {}
    for number in range(16):
        part = "train" if number < 10 else "val"
        failure = 1.0 + 0.1 * (number % 10)
        place = folder / "oops" / part / f"Fail {number}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        render(place, Video(number % 3, part, 3 * FPS, bright_from=round(failure * FPS)), number)
        times[f"Fail {number}"] = [failure - 0.02, failure, failure + 0.3, -1]
    times["Fail 15"] = [-1, -1]
    (folder / "oops" / "transition_times.json").write_text(json.dumps(times))
    done = subprocess.run(
        [
            sys.executable,
            "tools/make_shards.py",
            str(folder / "oops"),
            "--out",
            str(folder / "set"),
            "--workers",
            "1",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "set"


def test_failures_are_found(fails, run, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    dataset = Dataset(fails)
    assert np.nanmax(dataset.column("failure_time")) == pytest.approx(1.9)
    flags = [
        "--checkpoint",
        run,
        "--data",
        fails,
        "--cache",
        tmp_path / "cache",
        "--output",
        tmp_path / "out",
    ]
    flags += ["--seeds", 1, "--no-baselines", "--device", "cpu"]
    evaluate.main(["oops", *map(str, flags)])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["evaluated"]["videos"] == 5 and result["unannotated"] == 1
    assert result["settings"]["layer"] == "surprise"
    assert result["scores"]["clips"]["value"] > 0.6  # a second that turns white, is white, or is not
    assert result["scores"]["within 1 s"]["value"] == 1.0
    assert np.sum(result["confusion"]) == 5 * 9
    assert "1 have no failure time" in capsys.readouterr().out


def test_a_data_set_without_failures_is_refused(data, run, capsys) -> None:
    assert evaluate.ended(evaluate.main, ["oops", "--checkpoint", str(run), "--data", str(data)]) == 2
    assert "--layout oops" in capsys.readouterr().err
