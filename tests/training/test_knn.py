"""kNN accuracy while pretraining: right, and without a trace in the run."""

import json

import numpy as np
import pytest
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from tests.training.harness import TOY, losses, train, train_together
from training.knn import leave_one_out


def test_it_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    x = rng.normal(size=(60, 4)) + 0.8 * np.eye(4)[labels]
    theirs = KNeighborsClassifier(n_neighbors=5, metric="cosine")
    wanted = cross_val_score(theirs, x, labels, cv=LeaveOneOut()).mean()
    top1, chance = leave_one_out(x, labels, 5)  # two classes and five votes: no ties
    assert top1 == pytest.approx(wanted) and 0.5 < top1 < 1
    assert chance == pytest.approx(29 / 59)


def test_a_run_is_the_same_with_and_without_it(data, tmp_path) -> None:
    flags = (*TOY, "--data", data, "--split", "train", "--steps", 4, "--batch-size", 4)
    for name, more in (("without", ()), ("with", ("--knn-every", 2, "--knn-split", "test"))):
        done = train(*flags, "--output", tmp_path / name, *more)
        assert done.status == 0, done.said
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    lines = [json.loads(line) for line in (tmp_path / "with/metrics.jsonl").read_text().splitlines()]
    assert [line.get("knn_step") for line in lines] == [None, 2, None, 4]
    # one video of each of six classes: none has another of its class
    assert [line["knn_top1"] for line in lines if "knn_top1" in line] == [0.0, 0.0]
    last = "checkpoints/step-00000004/model.safetensors"
    assert (tmp_path / "with" / last).read_bytes() == (tmp_path / "without" / last).read_bytes()


def test_two_processes_report_it_once(data, tmp_path) -> None:
    flags = (*TOY, "--data", data, "--steps", 2, "--batch-size", 4, "--knn-every", 2)
    for done in train_together(2, *flags, "--output", tmp_path / "run"):
        assert done.status == 0, done.said
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["knn_top1"] <= 1 and last["knn_chance"] == pytest.approx(6 * 3 * 2 / (18 * 17))
