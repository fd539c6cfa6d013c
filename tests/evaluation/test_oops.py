"""Fails on a rendered miniature whose annotations were written in the real format, through make_shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evaluate
from evaluation import oops as task
from evaluation.data import Split
from evaluation.features import Features
from evaluation.oops import Fails, classify, clip_begins, locate, oversampling
from objectives import checkpoint
from pipelines.views import ViewSpec
from shards import Dataset
from tests.evaluation.rendered import FPS, Video, render
from training.processes import Stopped
from training.trainer import Trainer

ROOT = Path(__file__).parents[2]
FRAMES = {16: 1, 17: 5}


def test_clips_of_worked_cases() -> None:
    assert clip_begins(2.0).tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert clip_begins(0.1).tolist() == [0]
    # ends at the failure: still intentional; begins at it: holds it
    assert classify(np.array([0.0, 0.25, 1.0, 1.25]), 1.0).tolist() == [0, 1, 1, 2]
    assert locate(np.array([0.0, 0.25, 0.5]), np.array([0.1, 0.7, 0.2])) == 0.75


@pytest.fixture(scope="module")
def fails(tmp_path_factory) -> Path:
    """16 videos of 3 s that turn white at their failure, and one each of 1 and of 5 frames; annotators: name → seconds,
    −1 where one saw none."""
    folder = tmp_path_factory.mktemp("oops")
    times: dict[str, list[float]] = {}
    for number in range(18):
        part = "train" if number < 10 else "val"
        failure = 1.0 + 0.1 * (number % 10) if number < 16 else 0.0
        place = folder / "oops" / part / f"Fail {number}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        render(
            place,
            Video(number % 3, part, FRAMES.get(number, 3 * FPS), bright_from=round(failure * FPS)),
            number,
        )
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


@pytest.fixture
def ask(fails, run, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def asked(protocol: str, name: str, *flags: object) -> dict:
        common = ["--checkpoint", run, "--data", fails, "--device", "cpu", "--seeds", 1]
        where = ["--cache", tmp_path / "cache", "--output", tmp_path / name]
        evaluate.main([protocol, *map(str, [*common, *where, *flags])])
        return json.loads((tmp_path / name / "result.json").read_text())

    return asked


def test_failures_are_found(ask, fails, capsys) -> None:
    assert np.nanmax(Dataset(fails).column("failure_time")) == pytest.approx(1.9)
    result = ask("oops", "out")
    assert result["evaluated"]["videos"] == 7 and result["unannotated"] == 1
    assert result["settings"]["layer"] == "surprise"
    right = np.trace(result["confusion"]) / np.sum(result["confusion"])
    assert right > 0.6  # a second that turns white, is white, or is not
    assert result["scores"]["within 1 s"]["value"] == 1.0
    assert np.sum(result["confusion"]) == 5 * 9 + 2
    assert set(result["baselines"]) == {"random", "size_length"}
    permuted = ask("oops", "permuted", "--permute-labels", "--no-baselines")
    assert abs(permuted["class_mean"] - 1 / 3) < 0.25
    said = capsys.readouterr().out
    assert "7 of 7 test videos evaluated; 1 have no failure time" in said and "random weights" in said


def test_the_network_is_trained_and_resumes_exactly(ask, tmp_path, monkeypatch) -> None:
    few = ("--steps", 6, "--train-batch-size", 12, "--validate-every", 2, "--lr", 0.01, "--dropout", 0)
    whole = ask("oops-finetune", "whole", *few)
    assert whole["evaluated"] == {"videos": 7, "of": 7, "unreadable": {}}
    assert np.sum(whole["confusion"]) == 5 * 9 + 2
    assert whole["scores"]["within 1 s"]["value"] > 0.5
    assert set(whole["baselines"]) == {"scratch", "size_length"}
    step = Trainer.train_step

    def stopping(self: Trainer, meter: object) -> None:
        if self.step == 3:
            raise Stopped(15)
        step(self, meter)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    with pytest.raises(Stopped):
        ask("oops-finetune", "stopped", *few)
    monkeypatch.setattr(Trainer, "train_step", step)
    again = ask("oops-finetune", "stopped", *few, "--resume")
    assert all(again[name] == whole[name] for name in ("scores", "confusion", "baselines"))
    newest = (checkpoint.newest(tmp_path / name / "split-seed0") for name in ("whole", "stopped"))
    a, b = (load_file(folder / "model.safetensors") for folder in newest)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_scores_of_a_worked_case(fails) -> None:
    """Two videos of 3 s at 10 frames/s with failures at 1.0 and 1.1 s; nine clips each."""
    dataset, spec = Dataset(fails), ViewSpec(offsets=((0, 1, 2),), size=16)
    failures = dataset.column("failure_time").astype(float)
    first, second = (int(np.flatnonzero(np.isclose(failures, t))[0]) for t in (1.0, 1.1))
    some = Fails(dataset, Split("", np.array([]), np.array([first, second])), failures, 0)
    windows = some.clips(some.split.test, spec)
    assert (windows.start[:3] + 3).tolist() == [10, 12, 15]  # they end with clips, at 1, 1.25 and 1.5 s
    truth = [0, 1, 1, 1, 1, 2, 2, 2, 2] + [0] + [1] * 4 + [2] * 4
    assert some.classes(windows, spec).tolist() == truth
    guess = np.eye(3)[truth]
    guess[1:5, 1] = 0.4, 1.0, 0.4, 0.4  # the first video's likeliest clip is at 0.5 s: its middle is at 1.0 s
    guess[10:14] = 1, 0, 0  # the second's is at 2.0 s: 2.5 s, all transitions missed
    guess[17] = 0, 1, 0
    found = some.scores([Features(guess, windows.row, windows.start, {})], spec)
    scores = {name: one["value"] for name, one in found["scores"].items()}
    assert scores["clips"] == pytest.approx((9 / 9 + 4 / 9) / 2)
    assert (scores["within 0.25 s"], scores["within 1 s"]) == (0.5, 0.5)
    assert found["class_mean"] == pytest.approx((1 + 4 / 8 + 7 / 8) / 3)
    assert oversampling(np.array(truth)).tolist() == [1] * 18
    assert oversampling(np.array([0, 0, 0, 0, 1, 2, 2])).tolist() == [1, 1, 1, 1, 3, 1, 1]
    assert task.CLASSES[1] == "transition"


def test_a_data_set_without_failures_is_refused(data, run, capsys) -> None:
    assert evaluate.ended(evaluate.main, ["oops", "--checkpoint", str(run), "--data", str(data)]) == 2
    assert "--layout oops" in capsys.readouterr().err
