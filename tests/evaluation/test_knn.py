"""kNN accuracy while pretraining: right, and without a trace in the run."""

import json

import numpy as np
import pytest
from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from evaluation.retrieval import vote
from tests.training.harness import TOY, losses, train, train_together


def test_it_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    x = rng.normal(size=(60, 4)) + 0.8 * np.eye(4)[labels]
    theirs = KNeighborsClassifier(n_neighbors=5, metric="cosine")
    wanted = cross_val_score(theirs, x, labels, cv=LeaveOneOut()).mean()
    each = np.arange(60)
    top1, chance = vote(x, labels, each, x, labels, each, 5)  # two classes and five votes: no ties
    assert top1 == pytest.approx(wanted) and 0.5 < top1 < 1
    assert chance == pytest.approx(29 / 59)


def test_a_querys_own_group_is_no_neighbour() -> None:
    """Clips of one source are all but the same, and of its class: masked, they do not help."""
    rng = np.random.default_rng(1)
    groups = np.arange(80) // 4
    labels = groups % 2
    x = rng.normal(size=(20, 8))[groups] + 0.01 * rng.normal(size=(80, 8))
    alone = np.arange(80)
    assert vote(x, labels, alone, x, labels, alone, 3)[0] == 1.0
    top1, chance = vote(x, labels, groups, x, labels, groups, 3)
    others = KNeighborsClassifier(n_neighbors=3, metric="cosine")
    wanted = cross_val_score(others, x, labels, cv=LeaveOneGroupOut(), groups=groups)
    assert top1 == pytest.approx(wanted.mean()) and top1 < 0.9
    assert chance == pytest.approx(36 / 76)


def test_a_run_is_the_same_with_and_without_it(data, tmp_path) -> None:
    flags = (*TOY, "--data", data, "--split", "train", "--steps", 4, "--batch-size", 4)
    for name, more in (("without", ()), ("with", ("--knn-every", 2, "--knn-split", "test"))):
        done = train(*flags, "--output", tmp_path / name, *more)
        assert done.status == 0, done.said
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    lines = [json.loads(line) for line in (tmp_path / "with/metrics.jsonl").read_text().splitlines()]
    assert [line.get("knn_step") for line in lines] == [None, 2, None, 4]
    found = [line for line in lines if "knn_top1" in line]
    assert all(0 <= line["knn_top1"] <= 1 for line in found)
    assert [line["knn_chance"] for line in found] == pytest.approx([1 / 3] * 2)  # 4 of the 12 training videos
    last = "checkpoints/step-00000004/model.safetensors"
    assert (tmp_path / "with" / last).read_bytes() == (tmp_path / "without" / last).read_bytes()


def test_two_processes_report_it_once(data, tmp_path) -> None:
    flags = (*TOY, "--data", data, "--steps", 2, "--batch-size", 4, "--knn-every", 2)
    for done in train_together(2, *flags, "--output", tmp_path / "run"):
        assert done.status == 0, done.said
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["knn_top1"] <= 1 and last["knn_chance"] == pytest.approx(6 / 20)  # 7 videos a class
