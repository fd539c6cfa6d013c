"""Fails on a rendered miniature whose annotations were written in the real format, through make_shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import evaluate
from evaluation import oops as task
from evaluation.features import Features
from evaluation.metrics import Split
from evaluation.model import SURPRISE
from evaluation.oops import Fails, classify, oversampling, time_step, window_starts
from objectives import checkpoint
from pipelines.views import ViewSpec
from shards import Dataset, InputError
from tests.evaluation.rendered import FPS, Video, render
from training.processes import Stopped
from training.trainer import Trainer

ROOT = Path(__file__).parents[2]
FRAMES = {16: 1, 17: 5, 18: 31, 19: 301}
BLOCKS = tuple(tuple(3 * (5 * block + frame) for frame in range(5)) for block in range(8))  # MemDPC's window


def test_time_steps_of_a_worked_video() -> None:
    """150 frames at 30 frames/s, windows of 118, the failure at 4 s: frame 120."""
    spec = ViewSpec(offsets=BLOCKS, size=16)
    starts = window_starts(150, spec.span, 30.0)
    assert starts.tolist() == [0, 8, 15, 22, 30]  # every 7.5 frames; the next, 37.5, ends after the video
    assert time_step(spec, SURPRISE) == (105, 13)  # x_8: frames 105, 108, …, 117 of the window
    # the steps begin at frames 105, 113, 120, 127, 135; the first ends with 117
    assert classify(starts + 105, 13, np.full(5, 120.0)).tolist() == [0, 1, 1, 2, 2]
    assert window_starts(118, 118, 30.0).tolist() == [0] and not len(window_starts(117, 118, 30.0))
    # another feature looks at the whole window, with a difference at one frame more
    assert time_step(spec, "") == (0, 118)
    difference = ViewSpec(offsets=((4, 5, 6),), size=16, modality="difference")
    assert time_step(difference, "") == (4, 4)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 130),
    st.floats(0.5, 60),
    st.integers(1, 130),
    st.floats(0, 400),
)
def test_time_steps_are_their_definition(
    num_frames: int, span: int, fps: float, length: int, failure: float
) -> None:
    """Every whole window on a grid of a quarter of a second, and no other; the class by the frame shown at the failure."""
    starts = window_starts(num_frames, span, fps).tolist()
    grid = {round(k * 0.25 * fps) for k in range(8000) if k * 0.25 * fps <= num_frames - span}
    assert starts == sorted(grid)
    classes = classify(np.array(starts, dtype=np.int64), length, np.array(failure)).tolist()
    shown = int(failure)
    assert classes == [
        1 if shown in range(start, start + length) else 0 if start < failure else 2 for start in starts
    ]


@pytest.fixture(scope="module")
def fails(tmp_path_factory) -> Path:
    """16 videos of 4 s that turn white at their failure, and those that the data set's filter leaves out: of 0.1, 0.5,
    3.1 and 30.1 s, and with the failure in their first hundredth; annotators: name → seconds, −1 where one saw none."""
    folder = tmp_path_factory.mktemp("oops")
    times: dict[str, list[float]] = {}
    for number in range(21):
        part = "train" if number < 10 else "val"
        failure = 1.0 + 0.1 * (number % 10) if number < 20 else 0.03
        place = folder / "oops" / part / f"Fail {number}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        render(
            place,
            Video(number % 3, part, FRAMES.get(number, 4 * FPS), bright_from=round(failure * FPS)),
            number,
        )
        times[f"Fail {number}"] = [failure - 0.02, failure, failure + 0.3, -1]
    times["Fail 15"] = [-1, -1, 2.0]  # most saw no failure
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
    assert result["evaluated"]["videos"] == result["evaluated"]["of"] == 5
    assert list(result["left_out"].values()) == [1, 5, 0]
    assert result["settings"]["layer"] == "surprise"
    right = np.trace(result["confusion"]) / np.sum(result["confusion"])
    assert right > 0.6  # three frames that turn white, are white, or are not
    assert result["scores"]["within 1 s"]["value"] == 1.0
    assert right == pytest.approx(result["scores"]["clips"]["value"])  # over time steps
    assert np.sum(result["confusion"]) == 5 * 12  # starts 0 to 28 of 40 − 11, every 2.5 frames
    assert set(result["baselines"]) == {"random", "size_length"}
    permuted = ask("oops", "permuted", "--permute-labels", "--no-baselines")
    assert abs(permuted["class_mean"] - 1 / 3) < 0.25
    said = capsys.readouterr().out
    assert (
        "5 of 5 test videos evaluated; 1 have no failure time; 5 are left out by the data set's filter"
        in said
    )
    assert "random weights" in said


def test_the_network_is_trained_and_resumes_exactly(ask, tmp_path, monkeypatch) -> None:
    few = ("--steps", 6, "--train-batch-size", 12, "--validate-every", 2, "--lr", 0.01, "--dropout", 0)
    whole = ask("oops-finetune", "whole", *few)
    assert whole["evaluated"] == {"videos": 5, "of": 5, "unreadable": {}}
    assert np.sum(whole["confusion"]) == 5 * 12
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


def test_flags_that_the_time_steps_do_not_allow_are_refused(ask) -> None:
    for flag in ("--downsample", "--segments"):
        with pytest.raises(InputError, match=f"{flag}: of oops-finetune the windows are those of oops"):
            ask("oops-finetune", "refused", flag, 2)


def test_scores_of_a_worked_case(fails) -> None:
    """Two videos of 40 frames at 10 frames/s with failures at 1.0 and 1.1 s, windows and time steps of 3 frames."""
    dataset = Dataset(fails)
    failures = dataset.column("failure_time").astype(float)
    frames = dataset.column("num_frames")
    first, second = (int(np.flatnonzero(np.isclose(failures, t) & (frames == 40))[0]) for t in (1.0, 1.1))
    some = Fails(dataset, Split("", np.array([]), np.array([first, second])), failures, 3, 0, 3)
    windows = some.clips(some.split.test)
    assert windows.start[:7].tolist() == [0, 2, 5, 8, 10, 12, 15] and len(windows) == 2 * 15
    truth = [0, 0, 0, 1, 1] + [2] * 10 + [0, 0, 0, 0, 1] + [2] * 10  # of frames 8 to 10 only the first's
    assert some.classes(windows).tolist() == truth
    guess = np.eye(3)[truth]
    guess[3, 1] = 0.9  # the first video's likeliest step is that of frames 10 to 12: its middle is at 1.15 s
    guess[19] = 1, 0, 0  # the second's is that of frames 20 to 22: 2.15 s, the transition missed
    guess[23] = 0, 1, 0
    found = some.scores([Features(guess, windows.row, windows.start, {})])
    scores = {name: one["value"] for name, one in found["scores"].items()}
    assert scores["clips"] == pytest.approx(28 / 30)
    assert (scores["within 0.25 s"], scores["within 1 s"]) == (0.5, 0.5)
    assert found["class_mean"] == pytest.approx((1 + 2 / 3 + 19 / 20) / 3)
    assert set(oversampling(np.array(truth))) == {1, 4}
    assert oversampling(np.array([0, 0, 0, 0, 1, 2, 2])).tolist() == [1, 1, 1, 1, 3, 1, 1]
    assert task.CLASSES[1] == "transition"


def test_a_data_set_without_failures_is_refused(data, run, capsys) -> None:
    assert evaluate.ended(evaluate.main, ["oops", "--checkpoint", str(run), "--data", str(data)]) == 2
    assert "--layout oops" in capsys.readouterr().err


def test_videos_shorter_than_a_window_are_counted_and_none_left_is_refused(fails) -> None:
    """A window of 41 frames; the time step of another feature than [z_t, ẑ_t] would be all of it."""
    with pytest.raises(InputError, match="15 are shorter than a window of 41 frames"):
        Fails.of(Dataset(fails), ViewSpec(offsets=((0, 40),), size=16), "")
    whole = Fails.of(Dataset(fails), ViewSpec(offsets=((0, 39),), size=16), "")
    assert whole.length == 40 and len(whole.clips(whole.split.test)) == 5
